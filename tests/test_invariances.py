"""Identities that hold for any weights, by the algebra of the layers: no tolerance but that of float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin import initializers, models
from fanin.randomness import Streams

STREAMS = Streams(seed=0, replicate=0)
SHAPE = (1, 6, 6)
CNN = dict(stages=[[3, 4], [5]], kernel=3, padding=1, hidden=[7])


def make(kind: str, *, activation: str = "relu", norm: str = "none", bias: str = "zeros") -> Any:
    """An mlp or a cnn in float64, drawn by he_normal."""
    shared: dict[str, Any] = dict(in_shape=SHAPE, classes=4, activation=activation, norm=norm, dropout=0.0)
    model = models.Mlp(widths=[9, 8, 7], **shared) if kind == "mlp" else models.Cnn(**CNN, **shared)
    he = initializers.bind(initializers.he_normal, {"gain": 2**0.5, "mode": "fan_in"})
    initializers.initialize(model, weight=he, bias=bias, streams=STREAMS)
    return model.double()


def data(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def differentiate(model: Any) -> Tensor:
    """The loss, with its gradient in place."""
    x, labels = data()
    model.zero_grad()
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_layer_before_a_norm_may_be_scaled_and_its_gradient_shrinks_as_much(kind: str, norm: str) -> None:
    """BN(c W x) = BN(W x), so that the gradient by c W is 1 / c of that by W (Ioffe & Szegedy 2015, section 3.3)."""
    model = make(kind, norm=norm)
    for module in model.norms:
        module.eps = 1e-30
    loss = differentiate(model)
    before = [layer.weight.grad.clone() for layer in model.layers]
    with torch.no_grad():
        for layer in model.layers[:-1]:
            layer.weight.mul_(8)
            if layer.bias is not None:
                layer.bias.mul_(8)
    assert differentiate(model).item() == pytest.approx(loss.item(), rel=1e-12)
    for layer, gradient in zip(model.layers[:-1], before[:-1], strict=True):
        torch.testing.assert_close(layer.weight.grad, gradient / 8, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(model.layers[-1].weight.grad, before[-1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_relu_layers_can_be_rescaled_against_the_next_without_a_trace(kind: str, number: int) -> None:
    """(a W1, a b1) and W2 / a compute the same (Neyshabur et al. 2015): a relu passes a factor a > 0 on."""
    model, (x, _) = make(kind, bias="torch_default"), data()
    expected = model(x).detach()
    with torch.no_grad():
        model.layers[number].weight.mul_(5), model.layers[number].bias.mul_(5)
        model.layers[number + 1].weight.div_(5)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_relu_network_without_biases_is_positively_homogeneous(kind: str) -> None:
    """f(255 x) = 255 f(x): raw pixels cost a relu network nothing but the scale of its biases."""
    model, (x, _) = make(kind), data()
    torch.testing.assert_close(model(255 * x), 255 * model(x), rtol=1e-12, atol=1e-12)
    tanh = make(kind, activation="tanh")
    assert not torch.allclose(tanh(255 * x), 255 * tanh(x), rtol=0.1)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_weights_and_gradients_have_the_same_inner_product_in_every_layer_of_a_relu_network(kind: str) -> None:
    """<W_l, dL/dW_l> = sum_i <f_i, dL/df_i> for each l: f is homogeneous of degree 1 in each W_l."""
    model, (x, labels) = make(kind), data()
    differentiate(model)
    logits = model(x)
    [by_logits] = torch.autograd.grad(F.cross_entropy(logits, labels), [logits])
    expected = (by_logits * logits).sum().item()
    products = [(layer.weight * layer.weight.grad).sum().item() for layer in model.layers]
    assert products == pytest.approx([expected] * len(products), rel=1e-10) and abs(expected) > 1e-3


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_hidden_units_can_be_permuted(activation: str, norm: str) -> None:
    model, (x, _) = make("mlp", activation=activation, norm=norm, bias="torch_default"), data()
    expected, order = model(x).detach(), torch.randperm(8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, second = model.layers[1], model.layers[2]
        first.weight.copy_(first.weight[order])
        if first.bias is not None:
            first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    assert not torch.equal(order, torch.arange(8))
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_units_that_start_alike_stay_alike_through_training(kind: str) -> None:
    """Constant weights: the rows of a hidden layer stay equal, whatever the data: an effective width of 1."""
    model = make(kind, activation="tanh")
    constant = initializers.bind(initializers.constant, {"value": 0.1})
    initializers.initialize(model, weight=constant, bias="zeros", streams=STREAMS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        differentiate(model)
        optimizer.step()
    for layer in model.layers[:-1]:
        rows = layer.weight.detach().flatten(1)
        assert (rows - rows[:1]).abs().max() < 1e-12 < (rows - 0.1).abs().max()
    logits = model.layers[-1].weight.detach()
    assert (logits - logits[:1]).abs().max() > 1e-3  # the labels tell the outputs apart


def test_the_gradient_of_a_shift_of_all_logits_is_zero() -> None:
    """Softmax ignores a constant added to all logits, so the gradients by the output biases sum to 0."""
    model = make("mlp", bias="torch_default")
    differentiate(model)
    assert model.layers[-1].bias.grad.sum().abs() < 1e-15 < model.layers[-1].bias.grad.abs().max()


def test_a_block_that_is_the_identity_passes_the_gradient_unchanged() -> None:
    shared: dict[str, Any] = dict(in_shape=SHAPE, classes=4, activation="relu", norm="none", dropout=0.0)
    model = models.ResMlp(width=6, depth=5, branch="gated", scale=None, **shared).double()
    for block in model.blocks:
        nn.init.zeros_(block.branch.gate.weight)
    seen: list[Tensor] = []
    model.blocks.register_forward_hook(lambda _, inputs, output: (output.register_hook(seen.append), None)[1])
    model.blocks.register_forward_pre_hook(lambda _, inputs: (inputs[0].register_hook(seen.append), None)[1])
    x, labels = data()
    F.cross_entropy(model(x), labels).backward()
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
