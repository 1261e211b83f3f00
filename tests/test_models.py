"""Architectures against hand-computed sizes and outputs, and every model of conf/ with every initializer."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS, STREAMS, build, build_own, images
from conftest import ROOT
from initialized import initialize, options_of
from torch import Tensor, nn

from fanin import models
from fanin.errors import ConfigError
from fanin.models.activation import ACTIVATIONS, activation
from fanin.models.norm import NoisyBatchNorm1d, NoisyBatchNorm2d

INITIALIZERS = sorted(path.stem for path in (ROOT / "conf" / "initializer").glob("*.yaml"))
OURS = ["mlp", "mlp_deep", "mlp_narrow", "mlp_wide", "cnn_small", "cnn"]  # with hidden layers of our own making
RESIDUAL = ["resmlp", "rescnn"]
BRANCHES = {"fixup": "fixup", "rezero": "gated", "skipinit": "gated"}  # of those models, what these initializers need


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
