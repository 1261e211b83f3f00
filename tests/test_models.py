"""Architectures against hand-computed sizes and outputs, and every model of conf/ with every initializer."""

import math
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import torch.nn.functional as F
from initialized import initialize, options_of
from torch import Tensor, nn

from fanin import models, vision
from fanin.errors import ConfigError
from fanin.models.activation import ACTIVATIONS, activation
from fanin.models.dropout import Dropout, StochasticDepth
from fanin.models.norm import NoisyBatchNorm1d, NoisyBatchNorm2d, disturb
from fanin.randomness import Streams

CONF = Path(__file__).parent.parent / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
INITIALIZERS = sorted(path.stem for path in (CONF / "initializer").glob("*.yaml"))
OURS = ["mlp", "mlp_deep", "mlp_narrow", "mlp_wide", "cnn_small", "cnn"]  # with hidden layers of our own making
RESIDUAL = ["resmlp", "rescnn"]
BRANCHES = {"fixup": "fixup", "rezero": "gated", "skipinit": "gated"}  # of those models, what these initializers need
STREAMS = Streams(seed=0, replicate=0)
MNIST = (1, 28, 28)


LAYERS = ("groups", "norm_noise", "stochastic_depth")  # what regularization asks a model for, besides norm and dropout


def build(choice: str, *, shape=MNIST, classes=10, norm="none", dropout=0.0, **changes) -> nn.Module:
    """The model of conf/model/<choice>.yaml with some options changed."""
    layers = {name: changes.pop(name) for name in LAYERS if name in changes}
    options = options_of("model", choice) | changes
    factory = resolve_name(options.pop("_target_"))
    settings = dict(in_shape=shape, classes=classes, norm=norm, dropout=dropout, **layers)
    return models.build(factory, options=options, **settings)


def build_own(factory, *, norm="none", dropout=0.0, make=models.build, **options) -> nn.Module:
    return make(factory, in_shape=MNIST, classes=10, norm=norm, dropout=dropout, options=options)


def images(count: int = 8, shape=MNIST) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


# Architectures.

SIZES = {
    "softmax": 784 * 10 + 10,
    "mlp": 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10,
    "mlp_deep": 784 * 512 + 512 + 3 * (512 * 512 + 512) + 512 * 10 + 10,
    "mlp_wide": 784 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 10 + 10,
    "mlp_miswired": 784 * 512 + 512 + 3 * (512 * 512 + 512) + 512 * 10 + 10,  # two layers of which are never used
    "resmlp": 784 * 128 + 128 + 8 * 2 * (128 * 128 + 128) + 128 * 10 + 10,
    "rescnn": 9 * 16 + 16 + 4 * (9 * 16 * 16 + 16) + 9 * 16 * 32 + 32 + 4 * (9 * 32 * 32 + 32) + 32 * 10 + 10,
    "mlp_narrow": 784 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10,
    # Before batch norm there is no bias; it has two parameters a channel.
    "cnn_small": 25 * 10 + 25 * 10 * 20 + 320 * 50 + 2 * (10 + 20 + 50) + 50 * 10 + 10,
    "cnn": 9 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 64 + 64 + 7 * 7 * 64 * 100 + 100 + 100 * 10 + 10,
    # The published size; less two of three input channels; ten instead of 1000 classes.
    "resnet18": 11_689_512 - 2 * 64 * 7 * 7 - 990 * (512 + 1),
}


@pytest.mark.parametrize("name, size", SIZES.items())
def test_a_model_has_as_many_parameters_as_its_layers_make(name, size):
    assert sum(parameter.numel() for parameter in build(name).parameters()) == size


def test_an_mlp_is_linear_maps_with_activations_between_and_none_on_the_logits():
    model, x = build("mlp", widths=[5, 4, 3], activation="tanh"), images()
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(5, 784), (4, 5), (3, 4), (10, 3)]
    expected = x.reshape(8, 784)
    for layer in model.layers[:3]:
        expected = torch.tanh(expected @ layer.weight.T + layer.bias)
    expected = expected @ model.layers[3].weight.T + model.layers[3].bias
    torch.testing.assert_close(model(x), expected)


def test_softmax_is_one_linear_map():
    model, x = build("softmax"), images()
    [layer] = model.layers
    torch.testing.assert_close(model(x), x.reshape(8, 784) @ layer.weight.T + layer.bias)


def test_cnn_is_its_convolutions_poolings_and_linear_layers_in_order():
    model, x = build("cnn"), images()
    one, two, three, hidden, logits = model.layers
    expected = F.relu(F.conv2d(x, one.weight, one.bias, padding=1))
    expected = F.max_pool2d(F.relu(F.conv2d(expected, two.weight, two.bias, padding=1)), 2)
    expected = F.max_pool2d(F.relu(F.conv2d(expected, three.weight, three.bias, padding=1)), 2)
    expected = logits(F.relu(hidden(expected.reshape(8, 7 * 7 * 64))))
    torch.testing.assert_close(model(x), expected)


def test_cnn_small_normalises_every_hidden_layer_over_the_batch():
    model, x = build("cnn_small"), images()
    one, two, hidden, logits = model.layers

    def normalised(z: Tensor) -> Tensor:
        rest = [0, *range(2, z.dim())]
        variance, mean = torch.var_mean(z, dim=rest, keepdim=True, correction=0)
        return (z - mean) / (variance + 1e-5).sqrt()

    expected = F.max_pool2d(F.relu(normalised(F.conv2d(x, one.weight))), 2)
    expected = F.max_pool2d(F.relu(normalised(F.conv2d(expected, two.weight))), 2)
    expected = logits(F.relu(normalised(expected.reshape(8, 320) @ hidden.weight.T)))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_layer_norm_normalises_each_image_over_all_units_of_each_hidden_layer(name):
    model, pairs = build(name, norm="layer"), []
    for norm in model.norms:
        norm.register_forward_hook(lambda _, inputs, output: pairs.append((*inputs, output)))
    model(images())
    assert len(pairs) == len(model.layers) - 1
    for before, after in pairs:
        torch.testing.assert_close(after, F.layer_norm(before, before.shape[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, classes", [((3, 32, 32), 100), ((1, 28, 28), 2), ((2, 40, 30), 7)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_images_of_other_shapes_and_other_numbers_of_classes(name, shape, classes):
    with torch.device("meta"):
        model = build(name, shape=shape, classes=classes)
        assert model(torch.empty(5, *shape)).shape == (5, getattr(model, "outputs", classes))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("chosen", ACTIVATIONS)
def test_every_activation_is_used_by_every_model_of_ours(name, chosen):
    with torch.device("meta"):
        model = build(name, activation=chosen)
    assert len(model.activations) == len(model.layers) - 1
    assert {type(module) for module in model.activations} == {type(ACTIVATIONS[chosen]())}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "norm, kinds",
    [
        ("batch", (nn.BatchNorm1d, nn.BatchNorm2d)),
        ("noisy_batch", (NoisyBatchNorm1d, NoisyBatchNorm2d)),
        ("layer", (nn.LayerNorm, nn.GroupNorm)),
        ("group", nn.GroupNorm),
    ],
)
def test_norm_and_dropout_go_into_every_hidden_layer_of_ours(name, norm, kinds):
    model = build(name, norm=norm, dropout=0.25)
    hidden = len(model.layers) - 1
    assert [isinstance(module, kinds) for module in model.norms] == [True] * hidden
    assert [module.p for module in model.dropouts] == [0.25] * hidden


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_group_norm_normalises_each_image_within_each_group_of_units(name):
    model, pairs = build(name, norm="group", groups=4), []
    for norm in model.norms:
        norm.register_forward_hook(lambda _, inputs, output: pairs.append((*inputs, output)))
    model(images())
    assert len(pairs) == len(model.layers) - 1
    for before, after in pairs:
        grouped = before.reshape(8, 4, -1)
        expected = F.layer_norm(grouped, grouped.shape[2:]).reshape(before.shape)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [3, 0, 2.0])
def test_groups_that_do_not_divide_the_units_are_refused(groups):
    with pytest.raises(ConfigError, match=f"regularization.groups: must divide the 16 units .* got {groups}"):
        build("cnn", norm="group", groups=groups)


def test_noisy_batch_norm_is_batch_norm_in_evaluation_and_without_noise():
    plain, noisy = nn.BatchNorm2d(6), NoisyBatchNorm2d(6, noise=1.0)
    x = images(shape=(6, 5, 5))
    for module in (plain, noisy):
        module.train()(2 * x)
    assert torch.equal(plain.eval()(x), noisy.eval()(x))
    assert torch.equal(plain.train()(x), NoisyBatchNorm2d(6, noise=0.0)(x))


def test_the_noise_of_noisy_batch_norm_has_the_moments_of_its_definition():
    """y = s x + m at x = 0 and x = 1: unit j has E m = mu_j ~ U(-.5, .5), E s = sigma_j ~ U(1, 1.25)."""
    zeros, ones = (
        disturb(torch.full((4000, 200), value), strength=1.0, generator=torch.Generator().manual_seed(3)).double()
        for value in (0.0, 1.0)
    )
    mean, scale = zeros.mean(0), (ones - zeros).mean(0)  # equal draws: the difference is s
    assert mean.abs().max() < 0.52 and 0.98 < scale.min() and scale.max() < 1.27
    assert abs(mean.mean()) < 5 * math.sqrt(1 / 12 / 200)
    assert mean.var().item() == pytest.approx(1 / 12, rel=0.35)
    assert scale.mean().item() == pytest.approx(1.125, abs=5 * 0.25 / math.sqrt(12 * 200))
    torch.testing.assert_close(zeros.std(0), torch.full((200,), 0.2 / math.sqrt(12)).double(), rtol=0.08, atol=0)
    torch.testing.assert_close((ones - zeros).std(0), torch.full((200,), 0.1).double(), rtol=0.08, atol=0)


def test_the_noise_of_a_norm_has_streams_of_its_own_and_leaves_those_of_dropout_alone():
    def masks(**settings) -> list[Tensor]:
        model = build("mlp", dropout=0.5, **settings)
        models.seed_noise(model, STREAMS)
        model(images())
        return [dropout(torch.ones(8, 256)) for dropout in model.dropouts]

    noisy = masks(norm="noisy_batch", norm_noise=1.0)
    assert all(torch.equal(a, b) for a, b in zip(masks(norm="batch"), noisy, strict=True))
    model = build("mlp", norm="noisy_batch", norm_noise=1.0)
    models.seed_noise(model, STREAMS)
    before = torch.random.get_rng_state()
    first = model(images())
    assert sorted(models.noise_state(model)) == ["dropouts.0", "dropouts.1", "norms.0", "norms.1"]
    assert torch.equal(torch.random.get_rng_state(), before)
    models.seed_noise(model, STREAMS)
    assert torch.equal(model(images()), first)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    module = StochasticDepth(0.3)
    models.seed_noise(module, STREAMS)
    dropped = module(torch.ones(20_000, 3, 2, 2)).flatten(1)
    assert torch.equal(dropped.amin(1), dropped.amax(1))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.7]))
    assert (dropped[:, 0] == 0).double().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))
    assert torch.equal(module.eval()(images()), images())


def test_the_norm_of_cnn_small_yields_to_that_of_regularization_and_to_model_norm():
    kinds = [{type(norm) for norm in build("cnn_small", **change).norms} for change in ({}, {"norm": "layer"})]
    assert kinds == [{nn.BatchNorm2d, nn.BatchNorm1d}, {nn.GroupNorm, nn.LayerNorm}]
    options = options_of("model", "cnn_small") | {"norm": "none"}
    del options["_target_"]
    assert {type(norm) for norm in build_own(models.Cnn, **options).norms} == {nn.Identity}


def test_the_head_of_a_cnn_is_linear_or_the_mistake_of_a_relu_on_the_logits():
    linear, relu = build("cnn_small"), build("cnn_small", head="relu")
    relu.load_state_dict(linear.state_dict())
    x = images()
    assert (linear(x) < 0).any()
    torch.testing.assert_close(relu(x), linear(x).clamp(min=0))
    with torch.no_grad():
        relu.layers[3].bias[4] = -100  # a dead class: nothing can bring its logit back
    F.cross_entropy(relu(x), torch.full((8,), 4)).backward()
    assert not relu.layers[3].weight.grad[4].any() and relu.layers[3].weight.grad[3].any()


# Three layers of five.


def test_the_miswired_mlp_uses_its_first_three_layers_and_never_trains_the_others():
    model, x = build("mlp_miswired"), images()
    one, two, three, *unused = model.layers
    expected = three(F.relu(two(F.relu(one(x.reshape(8, 784))))))
    torch.testing.assert_close(model(x), expected)
    F.cross_entropy(model(x), torch.arange(8)).backward()
    assert all(parameter.grad is None for layer in unused for parameter in layer.parameters())
    assert all(layer.weight.grad.any() for layer in (one, two, three))


@pytest.mark.parametrize(
    "widths, message", [([512, 512], "must name at least 3"), ([512, 512, 9], "must be at least the 10 classes")]
)
def test_a_miswired_mlp_too_short_or_narrow_for_the_labels_is_refused(widths, message):
    with pytest.raises(ConfigError, match=f"model.widths: {message}"):
        build("mlp_miswired", widths=widths)


# Activations, by their formulas.

Z = torch.linspace(-4, 4, 81, dtype=torch.float64)
PHI = 0.5 * (1 + torch.erf(Z / math.sqrt(2)))
FORMULAS = {
    "relu": Z.clamp(min=0),
    "leaky_relu": torch.maximum(Z, 0.01 * Z),
    "sigmoid": 1 / (1 + torch.exp(-Z)),
    "tanh": (torch.exp(2 * Z) - 1) / (torch.exp(2 * Z) + 1),
    "softsign": Z / (1 + Z.abs()),
    "elu": torch.where(Z > 0, Z, torch.exp(Z) - 1),
    "selu": 1.0507009873554805 * torch.where(Z > 0, Z, 1.6732632423543772 * (torch.exp(Z) - 1)),
    "gelu": Z * PHI,
    "silu": Z / (1 + torch.exp(-Z)),
    "linear": Z,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name):
    torch.testing.assert_close(activation(name)(Z), FORMULAS[name])


@pytest.mark.parametrize(
    "name, hint", [("rleu", "did you mean 'relu'"), (None, "not one of"), (["relu"], "not one of")]
)
def test_an_unknown_activation_is_refused(name, hint):
    with pytest.raises(ConfigError, match=f"model.activation: .*{hint}"):
        build("mlp", activation=name)


# Dropout.


def seeded(p: float, *, seed: int = 0, replicate: int = 0) -> Dropout:
    module = Dropout(p)
    models.seed_noise(module, Streams(seed, replicate))
    return module


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_zeroes_a_share_p_of_the_units_and_scales_up_the_others(p):
    dropped = seeded(p)(torch.ones(1000, 100))
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 1e5)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - p)]))


def test_dropped_units_are_independent_of_each_other():
    kept = (seeded(0.5)(torch.ones(4000, 50)) != 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(50)
    assert correlations.abs().max() < 5 / math.sqrt(4000)


def test_dropout_masks_the_gradient_like_the_output():
    x = torch.full((100, 100), 2.0, requires_grad=True)
    output = seeded(0.3)(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, output.detach() / 2)


def test_dropout_does_nothing_in_evaluation_or_with_p_0():
    x = images()
    assert seeded(0.5).eval()(x) is x
    assert seeded(0.0)(x) is x


def test_dropout_keeps_the_type_of_its_input():
    assert seeded(0.5)(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_masks_depend_on_seed_replicate_and_path_and_on_nothing_else():
    def masks(model: nn.Module, streams: Streams, *, disturb: int = 0) -> list[Tensor]:
        models.seed_noise(model, streams)
        torch.rand(disturb)
        return [dropout(torch.ones(64, 256)) for dropout in model.dropouts]

    relu, tanh = build("mlp", dropout=0.5), build("mlp", dropout=0.5, activation="tanh", norm="batch")
    first, second = masks(relu, STREAMS)
    for found, expected in zip(masks(tanh, STREAMS, disturb=3), (first, second), strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(first, second)
    assert not torch.equal(first, masks(relu, Streams(seed=0, replicate=1))[0])
    assert not torch.equal(first, masks(relu, Streams(seed=1, replicate=0))[0])


def test_dropout_neither_uses_nor_moves_the_global_random_stream():
    module, before = seeded(0.5), torch.random.get_rng_state()
    module(torch.ones(100))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_streams_of_dropout_continue_where_their_state_was_taken():
    model, other = build("mlp", dropout=0.5), build("mlp", dropout=0.5)
    other.load_state_dict(model.state_dict())
    models.seed_noise(model, STREAMS)
    models.seed_noise(other, STREAMS)
    model(images())
    state = models.noise_state(model)
    assert sorted(state) == ["dropouts.0", "dropouts.1"]
    expected = model(images())
    for _ in range(3):
        other(images())
    assert not torch.equal(other(images()), expected)
    models.load_noise_state(other, state)
    assert torch.equal(other(images()), expected)


# Building for the data at hand.


class Plain(nn.Module):
    """What a user may bring: it names what it needs and knows nothing of norms or dropout."""

    def __init__(self, classes: int, width: int, depth: int = 1):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoHeaded(nn.Linear):
    def __init__(self):
        super().__init__(28, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def test_a_users_class_is_given_what_its_signature_names():
    assert build_own(Plain, width=7)(images()).shape == (8, 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=7, norm="batch"), r"regularization.norm: .*\.Plain has no place for norm 'batch'"),
        (dict(width=7, dropout=0.5), r"regularization.dropout: .*\.Plain has no place for dropout 0.5"),
        (dict(widht=7), "model: 'widht' is not one of: depth, width; did you mean 'width'"),
        ({}, r"model.width: missing, and .*\.Plain has no default for it"),
        (dict(width=7, norm="bacth"), "regularization.norm: 'bacth' .* did you mean 'batch'"),
        (dict(width=7, dropout=1.0), r"regularization.dropout: must be a number in \[0, 1\), got 1.0"),
        (dict(width=7, dropout="much"), r"regularization.dropout: must be a number in \[0, 1\), got 'much'"),
    ],
)
def test_what_a_users_class_cannot_take_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_own(Plain, **changes)


@pytest.mark.parametrize("name", ["softmax", "resnet18", "torchvision", "mlp_miswired"])
@pytest.mark.parametrize("change", [{"norm": "batch"}, {"dropout": 0.5}, {"stochastic_depth": 0.2}])
def test_norm_or_dropout_is_refused_where_it_would_do_nothing(name, change):
    [key] = change
    with pytest.raises(ConfigError, match=f"regularization.{key}: .* has no place for {key}"):
        build(name, **change)


@pytest.mark.parametrize("make", [models.build, models.draft])
@pytest.mark.parametrize(
    "factory, message",
    [
        (
            lambda: nn.Linear(784, 10),
            "model: does not fit the data: on images of 1x28x28 torch says: mat1 and mat2",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 12)),
            r"images of 1x28x28 must give logits of shape \(2, 10\), got \(2, 12\)",
        ),
        (lambda: "no model", "model._target_: must make a torch.nn.Module, got 'str'"),
        (TwoHeaded, "model: must return one tensor of logits, got tuple"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(make, factory, message):
    with pytest.raises(ConfigError, match=message):
        build_own(factory, make=make)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "mlp",
            dict(widths=[]),
            r"model.widths: must name a hidden layer \(without any, it is model=softmax\)",
        ),
        (
            "mlp",
            dict(widths=[256, 0]),
            r"model.widths: must be a list of positive integers.*, got \[256, 0\]",
        ),
        ("mlp", dict(widths=256), "model.widths: must be a list of positive integers.*, got 256"),
        ("mlp", dict(widths="256"), "model.widths: must be a list of positive integers.*, got '256'"),
        ("cnn", dict(hidden=[1.5]), "model.hidden: must be a list of positive integers"),
        ("cnn", dict(stages=[]), "model.stages: must be a list of lists"),
        ("cnn", dict(stages=[[]]), "model.stages: must hold at least one convolution a stage"),
        ("cnn", dict(stages=[16]), "model.stages: must be a list of positive integers"),
        ("cnn", dict(head="softmax"), "model.head: 'softmax' is not one of: linear, relu"),
        ("cnn", dict(kernel=0), "model.kernel: must be a positive integer, got 0"),
        ("cnn", dict(padding=3), "model.padding: must be in 0..kernel - 1, got 3"),
        (
            "cnn_small",
            dict(shape=(1, 8, 8)),
            "model: does not fit the data: 5x5 convolutions .* images of 8x8",
        ),
        ("cnn", dict(shape=(1, 3, 3)), "model: does not fit the data: 3x3 convolutions .* images of 3x3"),
        ("resnet18", dict(name="resnet81"), "model.name: 'resnet81' .* did you mean 'resnet18'"),
        (
            "resnet18",
            dict(name="vgg11", stem="small"),
            "model.stem: must be original for vgg11, which is no ResNet",
        ),
        ("resnet18", dict(stem="tiny"), "model.stem: 'tiny' is not one of: original, small"),
        ("resnet18", dict(dropuot=0.5), "model: torchvision cannot build resnet18 .*dropuot"),
        (
            "torchvision",
            dict(name="alexnet"),
            "model: does not fit the data: on images of 1x28x28 torch says: ",
        ),
        ("torchvision", dict(name="vit_b_16", image_size=28), "model: torchvision cannot build vit_b_16"),
        (
            "torchvision",
            dict(name="googlenet", activation="tanh"),
            "model.activation: must be null for googlenet",
        ),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(name, changes, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_the_smallest_images_that_cnn_small_takes_are_16_pixels_wide():
    # (((16 - 4) / 2) - 4) / 2 = 1
    assert build("cnn_small", shape=(1, 16, 16)).layers[2].in_features == 20
    with pytest.raises(ConfigError, match="leave nothing of images of 15x16"):
        build("cnn_small", shape=(1, 15, 16))


def test_checking_the_fit_leaves_no_trace():
    torch.manual_seed(0)
    expected = models.Mlp(in_shape=MNIST, classes=10, widths=[8], activation="relu", norm="batch", dropout=0.5)
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = build("mlp", widths=[8], norm="batch", dropout=0.5)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert model.training
    for found, state in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, state)


# Drafts: checking a plan without building it.


@pytest.mark.parametrize("name", MODELS)
def test_a_draft_holds_no_numbers_and_moves_no_random_stream(name):
    options = options_of("model", name)
    before = torch.random.get_rng_state()
    model = build_own(resolve_name(options.pop("_target_")), make=models.draft, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_class_that_needs_numbers_is_drafted_for_real():
    def factory(classes: int) -> nn.Module:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

    before = torch.random.get_rng_state()
    assert build_own(factory, make=models.draft)(images()).shape == (8, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_second_output_is_refused_by_a_draft_though_it_exists_in_training_only(name):
    options = dict(name=name, stem="original", activation=None, aux_logits=True)
    arguments = dict(in_shape=(3, 299, 299), classes=10, norm="none", dropout=0.0, options=options)
    with pytest.raises(ConfigError, match="must return one tensor of logits, got .*Outputs"):
        models.draft(models.torchvision_classifier, **arguments)


# torchvision.


@pytest.mark.parametrize("stem, side", [("small", 28), ("original", 7)])
def test_the_small_stem_keeps_the_resolution_that_the_original_divides_by_four(stem, side):
    sides = []
    with torch.device("meta"):
        model = build("resnet18", stem=stem)
        model.layer1.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
        model(torch.empty(2, *MNIST))
    assert sides == [side]


def test_an_activation_replaces_every_module_of_a_torchvision_classifier():
    with torch.device("meta"):
        kinds = [type(module) for module in build("resnet18", activation="tanh").modules()]
    assert nn.ReLU not in kinds and kinds.count(nn.Tanh) == 9  # the stem's and one a block, each used twice there


def test_torchvision_classifiers_work_out_of_place_and_drop_by_our_streams():
    with torch.device("meta"):
        model = build("torchvision", name="mobilenet_v2")
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert [type(module) for module in model.classifier] == [Dropout, nn.Linear]
    assert model.classifier[0].p == 0.2  # as torchvision has it


@pytest.mark.parametrize("name", ["resnet34", "efficientnet_b0", "shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet"])
def test_other_classifiers_of_torchvision_are_built_by_name(name):
    assert build_own(models.torchvision_classifier, make=models.draft, name=name, stem="original", activation=None)


def test_nothing_is_declared_where_the_native_library_of_torchvision_loads(monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert vision.has_native_operators()
    assert [path.name.split(".")[0] for path in loaded] == ["_C"]


# The contract: all of conf/model with all of conf/initializer.

# Why an initializer may refuse a model, on the meta device as on real numbers.
REFUSALS = {
    "dbn": "dbn pretrains a multi-layer perceptron",
    "gradinit": "hardsigmoid_backward is not implemented",  # of mobilenet_v3
    "metainit": "hardsigmoid_backward is not implemented",
    "delta_orthogonal": "needs at least as many channels out of a convolution as into it",
    "mup": "scales with the width of hidden layers, and this model has none",
    "partial_identity": "would show the first .* inputs",
    "sparse": "must be at most 9, the number of inputs of a unit",
    "zero_hadamard": "would show the first .* inputs",
}
# Channels that start at 0 have no variance, and batch norm multiplies their gradient by 1 / sqrt(eps) in each layer.
EXPLODES = [("resnet18", "zero_hadamard")]


@pytest.mark.parametrize("initializer", INITIALIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_a_finite_step_from_every_initializer_or_the_plan_refuses_the_pair(name, initializer):
    changes = {"depth": 1} if name in RESIDUAL else {}  # of many blocks, ones and the like make infinities
    x, labels = images(4), torch.tensor([0, 1, 2, 3])
    brief = {"steps": 2, "epochs": 1, "batch_size": 4}  # of those that learn
    options = {key: value for key, value in brief.items() if key in options_of("initializer", initializer)}
    if branch := BRANCHES.get(initializer):
        changes |= {"branch": branch}
        if name not in RESIDUAL:
            with pytest.raises(ConfigError, match=f"initializer: {initializer} needs residual branches: .*resmlp"):
                initialize(build(name), initializer, images=x, labels=labels, streams=STREAMS)
            return
    model = build(name, **changes)
    try:
        initialize(model, initializer, images=x, labels=labels, streams=STREAMS, **options)
    except ConfigError as refused:
        assert re.search(REFUSALS[initializer], str(refused))
        with torch.device("meta"), pytest.raises(ConfigError, match=re.escape(str(refused))):
            initialize(build(name, **changes), initializer, images=x, labels=labels, streams=STREAMS, **options)
        return
    F.cross_entropy(model(x), labels).backward()
    torch.optim.SGD(model.parameters(), lr=1e-9).step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.eval()(x).isfinite().all() == ((name, initializer) not in EXPLODES)


SERVED = {"partial_identity": "cnn_small", "zero_hadamard": "cnn_small", "delta_orthogonal": "cnn"}


@pytest.mark.parametrize("initializer", REFUSALS)
def test_an_initializer_that_refuses_some_models_sets_every_weight_of_others(initializer):
    name, given = SERVED.get(initializer, "mlp_narrow"), dict(images=images(20), labels=torch.arange(20) % 10)
    with torch.device("meta"):
        initialize(build(name), initializer, streams=STREAMS, **given)  # the plan does not refuse it
    drawn = []
    for seed in (1, 2):  # of the constructor's draws nothing is left
        torch.manual_seed(seed)
        model = build(name)
        brief = {"steps": 2, "epochs": 1, "batch_size": 5}
        options = {key: value for key, value in brief.items() if key in options_of("initializer", initializer)}
        initialize(model, initializer, streams=STREAMS, **given, **options)
        drawn.append([layer.weight.detach() for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other) and one.any()
