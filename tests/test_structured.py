"""Initializers with a structure, or that depend on the layer: exact statements and closed forms."""

import math
from functools import partial

import pytest
import torch
from architectures import MNIST, mlp
from initialized import initialize
from scipy import linalg, stats
from torch import nn
from trained import SMALL, configuration, train

from fanin import initializers as init
from fanin import models
from fanin.errors import ConfigError
from fanin.randomness import Streams
from fanin.run import Trainer
from fanin.stats.gains import measure_gains

STREAMS = Streams(seed=0, replicate=0)


def started(model: nn.Module, function, *, bias="zeros", in_shape=MNIST, streams=STREAMS, **options) -> nn.Module:
    weight = init.bind(function, options)
    init.initialize(model, weight=weight, bias=bias, streams=streams, in_shape=in_shape)
    return model


def weight_of(layer: nn.Module, function, *, in_shape, **options) -> torch.Tensor:
    """The weight of `layer` as the middle one of three, so that it is neither first nor last."""
    first, last = nn.Conv2d(in_shape[0], in_shape[0], 1), nn.Identity()
    if isinstance(layer, nn.Linear):
        first, last = nn.Linear(in_shape[-1], layer.in_features), nn.Linear(layer.out_features, layer.out_features)
    else:
        last = nn.Conv2d(layer.out_channels, layer.out_channels, 1)
    model = nn.Sequential(first, layer, last)
    started(model, function, in_shape=in_shape, bias="zeros", **options)
    return layer.weight.detach()


def linear(units_in: int, units_out: int, function, **options) -> torch.Tensor:
    return weight_of(nn.Linear(units_in, units_out), function, in_shape=(units_in,), **options)


def conv(channels_in: int, channels_out: int, kernel: int, function, **options) -> torch.Tensor:
    layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    return weight_of(layer, function, in_shape=(channels_in, 9, 9), **options)


def off_centre(weight: torch.Tensor) -> torch.Tensor:
    taps = weight.clone()
    taps[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 0
    return taps


# Orthogonal.


@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (40, 24, 5, 5), (40, 4, 3, 3)])
def test_an_orthogonal_weight_has_mean_0_and_the_variance_of_its_larger_side(shape):
    weight = torch.empty(shape)
    init.orthogonal(weight, generator=torch.Generator().manual_seed(0), gain=1.3)
    largest = max(shape[0], math.prod(shape[1:]))
    # Rows (or columns) of unit length: the mean square is exact.
    assert weight.double().square().mean().item() == pytest.approx(1.3**2 / largest, rel=1e-6)
    assert abs(weight.double().mean()) < 5 * 1.3 / math.sqrt(largest * weight.numel())


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_delta_orthogonal_convolution_keeps_the_length_of_every_image_times_its_gain(kernel):
    # The truth is the map: sqrt(gain) instead of gain, or a tap off the centre, fails here.
    weight = conv(12, 20, kernel, init.delta_orthogonal, gain=1.4)
    x = torch.randn(5, 12, 9, 9, generator=torch.Generator().manual_seed(1))
    y = nn.functional.conv2d(x, weight, padding=kernel // 2)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), 1.4 * x.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    centre = weight[:, :, kernel // 2, kernel // 2]
    torch.testing.assert_close(centre.T @ centre, 1.4**2 * torch.eye(12), atol=1e-5, rtol=0)
    assert not off_centre(weight).any()


def test_delta_orthogonal_is_a_function_of_the_normal_draw_at_the_centre():
    layer = nn.Conv2d(3, 4, 3)
    started(nn.Sequential(layer), init.delta_orthogonal, in_shape=(3, 8, 8), gain=1.0)
    z = torch.randn(4, 3, 3, 3, generator=STREAMS.generator("init", "0.weight"))[:, :, 1, 1].double().numpy()
    q, r = linalg.qr(z, mode="economic")
    expected = torch.from_numpy(q * [math.copysign(1, value) for value in r.diagonal()]).float()
    torch.testing.assert_close(layer.weight[:, :, 1, 1].detach(), expected)


def test_delta_orthogonal_makes_linear_layers_orthogonal():
    weight = linear(30, 8, init.delta_orthogonal, gain=1.2)
    torch.testing.assert_close(weight @ weight.T, 1.2**2 * torch.eye(8), atol=1e-5, rtol=0)


# Identities.


@pytest.mark.parametrize("units_in, units_out", [(6, 6), (9, 4), (4, 9)])
def test_a_partial_identity_is_torch_s_eye_and_dirac(units_in, units_out):
    expected = nn.init.eye_(torch.empty(units_out, units_in))
    assert torch.equal(linear(units_in, units_out, init.partial_identity), expected)
    for kernel in (1, 3, 5):
        expected = nn.init.dirac_(torch.empty(units_out, units_in, kernel, kernel))
        assert torch.equal(conv(units_in, units_out, kernel, init.partial_identity), expected)


def test_identity_passes_on_what_comes_in_where_the_width_stays_and_is_orthogonal_elsewhere():
    assert torch.equal(linear(7, 7, init.identity, gain=1.5), 1.5 * torch.eye(7))
    assert torch.equal(conv(7, 7, 3, init.identity, gain=1.5), 1.5 * nn.init.dirac_(torch.empty(7, 7, 3, 3)))
    weight = linear(30, 8, init.identity, gain=1.5)
    torch.testing.assert_close(weight @ weight.T, 1.5**2 * torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("units_in, units_out, order", [(1, 5, 8), (3, 8, 8), (20, 33, 64), (784, 1000, 1024)])
def test_zero_hadamard_widens_by_the_corner_of_sylvester_s_matrix(units_in, units_out, order):
    expected = linalg.hadamard(order)[:units_out, :units_in] / math.sqrt(order)
    weight = linear(units_in, units_out, init.zero_hadamard)
    torch.testing.assert_close(weight, torch.from_numpy(expected).float())
    if units_in < 100:
        filters = conv(units_in, units_out, 3, init.zero_hadamard)
        assert torch.equal(filters[:, :, 1, 1], weight) and not off_centre(filters).any()


@pytest.mark.parametrize("units_in, units_out", [(6, 6), (9, 4)])
def test_zero_hadamard_is_a_partial_identity_where_it_does_not_widen(units_in, units_out):
    assert torch.equal(linear(units_in, units_out, init.zero_hadamard), torch.eye(units_out, units_in))


def test_a_deterministic_start_is_the_same_in_every_replicate():
    one, other = (started(mlp([784, 32]), init.zero_hadamard, streams=Streams(0, k)) for k in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_training_moves_partial_identity_within_the_rank_of_the_input_and_hadamard_beyond_it():
    # Zhao et al. 2021, lemma 1, small: 6 inputs, 16-16 wide; after a step of partial identity W2 - I has rank <= 6.
    images = torch.rand(64, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ranks = {}
    for function in (init.partial_identity, init.zero_hadamard):
        shape = dict(in_shape=(1, 2, 3), classes=3)
        model = started(mlp([6, 16, 16], **shape).double(), function, in_shape=(1, 2, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(64) % 3).backward()
            optimizer.step()
        change = model.layers[2].weight.detach() - torch.eye(16, dtype=torch.float64)
        ranks[function] = torch.linalg.matrix_rank(change, atol=1e-9).item()
    assert ranks[init.partial_identity] <= 6 < ranks[init.zero_hadamard]


def test_a_deep_linear_network_of_orthogonal_weights_keeps_every_length_and_every_gradient():
    model = started(mlp([40] * 30, activation="linear").double(), init.orthogonal, gain=1.0)
    images = torch.randn(50, *MNIST, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gains = measure_gains(model, images, torch.arange(50) % 10)
    forward, backward = list(gains.forward.values())[1:-1], list(gains.backward.values())[:-1]
    assert len(forward) == len(backward) == 29
    assert [*forward, *backward] == pytest.approx([1.0] * 58, rel=1e-9)  # all but the projections at both ends


# Sparse.


@pytest.mark.parametrize("make, fan_in", [(partial(linear, 400, 300), 400), (partial(conv, 16, 300, 5), 400)])
def test_every_unit_of_a_sparse_layer_has_exactly_k_normal_incoming_weights_in_random_places(make, fan_in):
    weight = make(init.sparse, nonzeros=15, std=2.0).flatten(1)
    assert (weight != 0).sum(dim=1).tolist() == [15] * 300
    values = weight[weight != 0].double()
    n = len(values)
    assert abs(values.mean()) < 5 * 2.0 / math.sqrt(n)
    assert abs(values.std() - 2.0) < 5 * 2.0 * math.sqrt(2 / (4 * n))
    assert stats.kstest(values.numpy() / 2, "norm").pvalue > 1e-3
    assert weight.double().square().mean().item() == pytest.approx(4.0 * 15 / fan_in, rel=5 * math.sqrt(2 / n))
    listeners = (weight != 0).sum(dim=0).numpy()  # of each input: 300 * 15 / 400 = 11.25 on average
    assert stats.chisquare(listeners).pvalue > 1e-3


def test_a_sparse_weight_is_the_normal_draw_with_holes():
    layer = nn.Linear(50, 20)
    started(nn.Sequential(layer), init.sparse, in_shape=(50,), nonzeros=5, std=1.0)
    z = torch.randn(20, 50, generator=STREAMS.generator("init", "0.weight"))
    kept = layer.weight.detach() != 0
    assert torch.equal(layer.weight.detach()[kept], z[kept])


def test_the_places_of_a_sparse_layer_leave_the_global_random_stream_alone():
    model = nn.Sequential(nn.Linear(50, 20))
    before = torch.random.get_rng_state()
    started(model, init.sparse, in_shape=(50,), nonzeros=5, std=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


# Scales that depend on the layer.


def test_zero_last_gives_equal_logits_and_starts_the_rest_as_told():
    model = started(mlp([40, 30]), init.zero_last, rest=partial(init.he_normal, gain=1.0, mode="fan_in"))
    plain = started(mlp([40, 30]), init.he_normal, gain=1.0, mode="fan_in")
    assert not model(torch.rand(4, *MNIST)).any()
    assert [torch.equal(a.weight, b.weight) for a, b in zip(model.layers, plain.layers, strict=True)] == [1, 1, 0]


def test_the_rest_of_zero_last_may_itself_ask_for_the_layer():
    model = started(mlp([40, 30]), init.zero_last, rest=partial(init.sparse, nonzeros=3, std=1.0))
    assert ((model.layers[1].weight != 0).sum(dim=1) == 3).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_he_dropout_makes_the_weights_smaller_where_dropout_feeds_the_layer(model, p):
    if model == "mlp":
        net = mlp([300, 300], dropout=p)
    else:
        options = dict(stages=[[24, 24]], kernel=5, padding=2, hidden=[50], activation="relu", norm="none", dropout=p)
        net = models.Cnn(in_shape=MNIST, classes=10, **options)
    started(net, init.he_dropout, gain=math.sqrt(2))
    for number, layer in enumerate(net.layers):
        weight = layer.weight.detach().double().flatten(1)
        n, std = weight.numel(), math.sqrt(2 * (1 - p * (number > 0)) / weight.shape[1])
        assert abs(weight.mean()) < 5 * std / math.sqrt(n)
        assert abs(weight.std() - std) < 5 * std * math.sqrt(2 / (4 * n))


@torch.no_grad()
@pytest.mark.parametrize("function, gain", [(init.he_dropout, 1.0), (partial(init.he_normal, mode="fan_in"), 2.0)])
def test_under_dropout_the_signal_keeps_its_size_by_he_dropout_and_doubles_a_layer_by_he(function, gain):
    # Pretorius et al. 2018: with p = 1/2 a He layer multiplies the second moment by 1 / (1 - p).
    squares = []
    for replicate in range(4):
        model = started(mlp([512] * 6, dropout=0.5), function, gain=math.sqrt(2), streams=Streams(0, replicate))
        models.seed_noise(model, STREAMS)
        outputs = []
        for layer in model.layers[:-1]:
            layer.register_forward_hook(lambda _, __, output, to=outputs: to.append(output.square().mean().item()))
        model(torch.rand(64, *MNIST, generator=torch.Generator().manual_seed(4)))
        squares.append((outputs[-1] / outputs[0]) ** (1 / 5))
    assert sum(squares) / 4 == pytest.approx(gain, rel=0.05)


@pytest.mark.parametrize("weights", ["normal", "orthogonal"])
def test_the_edge_of_chaos_has_the_variances_it_is_given(weights):
    options = dict(sigma_w=1.5, sigma_b=0.3, weights=weights)
    convolutional = models.Cnn(
        in_shape=(8, 28, 28),
        **dict(classes=10, stages=[[64]], kernel=3, padding=1, hidden=[200], activation="tanh"),
        **dict(norm="none", dropout=0.0),
    )
    for model, shape in ((mlp([300, 900, 300]), MNIST), (convolutional, (8, 28, 28))):
        started(model, init.edge_of_chaos, bias=None, in_shape=shape, **options)
        for layer in model.layers:
            weight = layer.weight.detach().double().flatten(1)
            std, n = 1.5 / math.sqrt(weight.shape[1]), weight.numel()
            assert abs(weight.mean()) < 5 * std / math.sqrt(n)
            assert abs(weight.std() - std) < 5 * std * math.sqrt(2 / (4 * n))
        biases = torch.cat([layer.bias.detach() for layer in model.layers]).double()
        assert abs(biases.mean()) < 5 * 0.3 / math.sqrt(len(biases))
        assert abs(biases.std() - 0.3) < 5 * 0.3 * math.sqrt(2 / (4 * len(biases)))


@torch.no_grad()
def test_inputs_meet_in_order_part_in_chaos_and_settle_where_mean_field_theory_says():
    # tanh, sigma_b^2 = 0.05, 30 layers: c* = 1 and q* = .1936 at sigma_w^2 = 1; c* = .1651 and q* = 2.1955 at 4.
    images = torch.randn(2, *MNIST, generator=torch.Generator().manual_seed(5))
    found = {}
    for variance in (1.0, 4.0):
        pairs = []
        for replicate in range(4):
            model = mlp([512] * 30, activation="tanh")
            options = dict(sigma_w=math.sqrt(variance), sigma_b=math.sqrt(0.05), weights="normal")
            started(model, init.edge_of_chaos, bias=None, streams=Streams(0, replicate), **options)
            outputs = []
            model.layers[29].register_forward_hook(lambda _, __, output, to=outputs: to.append(output))
            model(images)
            [(one, other)] = outputs
            pairs.append([one.square().mean().item(), torch.cosine_similarity(one, other, dim=0).item()])
        found[variance] = torch.tensor(pairs).mean(dim=0).tolist()
    assert found[1.0] == pytest.approx([0.1936, 1.0], rel=0.1)
    assert found[4.0] == pytest.approx([2.1955, 0.1651], rel=0.1, abs=0.06)


# Refusals: on the meta device, where a plan is checked.

CNN = dict(stages=[[16, 8]], kernel=3, padding=1, hidden=[], activation="relu", norm="none", dropout=0.0)
REFUSED = [
    (
        init.delta_orthogonal,
        dict(gain=1.0),
        "initializer: delta_orthogonal needs at least as many channels .* layers.1 has 8 out, 16 in; 16 or more would",
    ),
    (init.sparse, dict(nonzeros=15, std=1.0), "initializer.nonzeros: must be at most 9, .* of layers.0, got 15"),
    (init.sparse, dict(nonzeros=0, std=1.0), "initializer.nonzeros: must be a whole number >= 1, got 0"),
    (init.sparse, dict(nonzeros=1.5, std=1.0), "initializer.nonzeros: must be a whole number >= 1, got 1.5"),
    (init.sparse, dict(nonzeros=1, std=0), "initializer.std: must be above 0, got 0"),
    (init.identity, dict(gain=-1), "initializer.gain: must be above 0, got -1"),
    (init.he_dropout, dict(gain="a"), "initializer.gain: must be a finite number, got 'a'"),
    (
        init.zero_last,
        dict(rest=partial(init.he_normal, gain=0, mode="fan_in")),
        "initializer.gain: must be above 0, got 0",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("function, options, message", REFUSED)
def test_a_layer_that_an_initializer_cannot_serve_is_refused_by_name(function, options, message, device):
    with torch.device(device):
        model = models.Cnn(in_shape=MNIST, classes=10, **CNN)
    with pytest.raises(ConfigError, match=message):
        started(model, function, **options)


@pytest.mark.parametrize("function", [init.zero_hadamard, init.partial_identity])
def test_a_first_layer_that_would_hide_pixels_is_refused_and_a_wide_one_is_not(function):
    with torch.device("meta"):
        narrow, wide, softmax = mlp([256, 784]), mlp([784, 32]), models.Softmax(in_shape=MNIST, classes=10)
    message = (
        f"initializer: {function.__name__} would show the first 256 of 784 inputs to layers.0 .* 784 units or more"
    )
    with pytest.raises(ConfigError, match=rf"{message} works, such as model.widths=\[784,256\]"):
        started(narrow, function)
    started(wide, function)
    started(softmax, function)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sigma_w=0.0), "initializer.sigma_w: must be above 0, got 0.0"),
        (dict(sigma_b=-0.1), "initializer.sigma_b: must be at least 0, got -0.1"),
        (dict(weights="orthgonal"), "initializer.weights: 'orthgonal' .* did you mean 'orthogonal'"),
    ],
)
def test_the_edge_of_chaos_refuses_what_is_no_variance(changes, message):
    options = dict(sigma_w=1.0, sigma_b=0.1, weights="normal") | changes
    with pytest.raises(ConfigError, match=message):
        started(mlp([8]), init.edge_of_chaos, bias=None, **options)


@pytest.mark.parametrize(
    "rest, message",
    [
        ({"_target_": "fanin.initializers.he_norml"}, "initializer.rest._target_: cannot import '.*he_norml'"),
        ({"_target_": 3}, "initializer.rest._target_: must name a callable, got 3"),
        ("he_normal", "initializer.rest: must be an initializer of one weight, a mapping with _target_"),
        (
            {"_target_": "fanin.initializers.he_normal", "gian": 1.0, "mode": "fan_in"},
            "initializer.rest: 'gian' is not one of: gain, mode, slope; did you mean 'gain'",
        ),
    ],
)
def test_the_rest_of_zero_last_is_checked_like_an_initializer_of_its_own(rest, message):
    images, labels = torch.zeros(4, *MNIST), torch.arange(4)
    with pytest.raises(ConfigError, match=message):
        initialize(mlp([8]), "zero_last", rest=rest, images=images, labels=labels, streams=STREAMS)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["initializer=edge_of_chaos"], None),
        (["initializer=zero_last"], None),
        (["initializer=he_normal", "~initializer.bias"], "initializer.bias: is needed: zeros, torch_default or a "),
    ],
)
def test_a_configuration_says_what_biases_become_where_the_initializer_does_not(overrides, message):
    complaint = Trainer(threads=1).complaint(configuration(*SMALL, *overrides))
    assert complaint is None if message is None else complaint.startswith(message)


def test_a_run_starts_on_the_edge_of_chaos_with_the_biases_it_asked_for(project):
    train(configuration(*SMALL, "initializer=edge_of_chaos", "initializer.sigma_b=0.5", "optimizer.lr=1e-9"), project)
    state = torch.load(project / "artifacts" / "last.pt", weights_only=True)
    biases = torch.cat([value for name, value in state.items() if name.endswith("bias")])
    assert abs(biases.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * len(biases))
