"""Initializing a whole model: each layer by its type, each parameter from a random stream of its own."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fanin.errors import require, unknown
from fanin.initializers.closed_form import fans, fill, require_number, symmetric_uniform
from fanin.randomness import Streams
from fanin.signatures import accepts, check_options, label

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def bind(function: Callable[..., None], options: Mapping[str, object]) -> Callable[..., None]:
    """`function` with its options filled in, ready to be the `weight` of `initialize`.

    Raises ConfigError for an option that the function does not have, or that it lacks.
    """
    tensor = next(iter(signature(function).parameters), None)
    rule = "must take the weight, to be filled in place, as its first argument"
    require(tensor, "initializer._target_", rule, label(function))
    assert tensor
    check_options(function, options, group="initializer", supplied=(tensor, "generator"))
    return partial(function, **options)


def initialize(model: nn.Module, *, weight: Callable[..., None], bias: str | float, streams: Streams) -> None:
    """Fill the weights of linear and convolutional layers by `weight` and their biases as `bias` says.

    `weight(tensor, generator=...)` fills a CPU tensor of shape (units out, units in, *kernel) in place, as do
    the functions of closed_form and of torch.nn.init. `bias` is "zeros", "torch_default", which is U(-a, a)
    with a = 1 / sqrt(fan_in), or a number. Normalisation layers become the identity: weight 1, bias 0.
    Parameters of other layers stay as they were built.

    On a model of the meta device nothing is drawn, yet every option is checked against every layer's shape.
    Raises ConfigError with the key `initializer.<option>`.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, NORMS):
            make_identity(layer)
        elif isinstance(layer, nn.Linear | _ConvNd):
            fill_weight(layer, weight, streams.generator("init", parameter_path(path, "weight")))
            fill_bias(layer, bias, streams.generator("init", parameter_path(path, "bias")))


def fill_weight(layer: nn.Linear | _ConvNd, weight: Callable[..., None], generator: torch.Generator) -> None:
    values = layer.weight.detach()
    if not values.is_meta:
        fill(layer.weight, filled(layer, values.cpu(), weight, generator))
        return
    try:
        filled(layer, values, weight, generator)
    except RuntimeError:  # it computes with what it draws: try it on real numbers
        filled(layer, torch.zeros(values.shape), weight, generator)


def filled(
    layer: nn.Linear | _ConvNd, values: Tensor, weight: Callable[..., None], generator: torch.Generator
) -> Tensor:
    """`values`, the layer's weights, after `weight` has been at work on each block."""
    stream = {"generator": generator} if accepts(weight, "generator") else {}
    for block in blocks(layer, values):
        weight(block, **stream)
    return values


def fill_bias(layer: nn.Linear | _ConvNd, bias: str | float, generator: torch.Generator) -> None:
    if not isinstance(bias, str):
        require_number("bias", bias)
    elif bias not in ("zeros", "torch_default"):
        raise unknown("initializer.bias", bias, ["zeros", "torch_default", "any number"])
    if layer.bias is None:
        return
    if bias == "torch_default":
        fan_in = fans(next(blocks(layer, layer.weight))).fan_in
        fill(layer.bias, symmetric_uniform(layer.bias, generator) / sqrt(fan_in))
    else:
        nn.init.constant_(layer.bias, 0.0 if bias == "zeros" else float(bias))


def make_identity(norm: nn.Module) -> None:
    for name, parameter in norm.named_parameters(recurse=False):
        nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)


def blocks(layer: nn.Linear | _ConvNd, weight: Tensor) -> Iterator[Tensor]:
    """Views on `weight` of shape (units out, units in, *kernel) whose fans are the true ones.

    A grouped convolution is several small ones side by side, so each group is a block of its own
    (torch.nn.init counts all groups in fan_out). A transposed convolution stores its units in first.
    """
    for block in weight.chunk(getattr(layer, "groups", 1)):
        yield block.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else block


def parameter_path(layer_path: str, name: str) -> str:
    return f"{layer_path}.{name}" if layer_path else name
