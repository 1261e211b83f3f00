"""Initializing a whole model: each layer by its type, each parameter from a random stream of its own."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from fanin.errors import ConfigError, require, unknown
from fanin.initializers.closed_form import fans, fill, require_number, symmetric_uniform
from fanin.initializers.roles import Layer, survey
from fanin.randomness import Streams
from fanin.signatures import accepts, asked, check_options, label

OFFERED = ("generator", "layer", "bias")  # what a function is given if it names it
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def bind(
    function: Callable[..., None], options: Mapping[str, object], *, group: str = "initializer"
) -> Callable[..., None]:
    """`function` with its options filled in, ready to be the `weight` of `initialize`.

    An option with a `_target_` is an initializer itself, and bound likewise.
    Of a class it makes an instance, to be called likewise.
    Raises ConfigError for an option that the function does not have, or that it lacks.
    """
    if isinstance(function, type):
        check_options(function, options, group=group)
        return function(**options)
    tensor = next(iter(signature(function).parameters), None)
    rule = "must take the weight, to be filled in place, as its first argument"
    require(tensor, f"{group}._target_", rule, label(function))
    assert tensor
    check_options(function, options, group=group, supplied=(tensor, *OFFERED), offered=OFFERED)
    return partial(function, **options)


def initialize(
    model: nn.Module,
    *,
    weight: Callable[..., None],
    bias: str | float | None,
    streams: Streams,
    in_shape: tuple[int, ...] | None = None,
) -> None:
    """Fill the weights of linear and convolutional layers by `weight` and their biases as `bias` says.

    `weight(tensor, generator=...)` fills a CPU tensor of shape (units out, units in, *kernel) in place, as do
    the functions of this package and of torch.nn.init. One that names an argument `layer` is told which Layer
    it is (that takes `in_shape`, the shape of an image); one that names `bias` fills that, too.

    `bias` is "zeros", "torch_default", which is U(-a, a) with a = 1 / sqrt(fan_in), or a number; None if
    `weight` fills it. Normalisation layers become the identity: weight 1, bias 0. Parameters of other layers
    stay as they were built.

    On a model of the meta device nothing is drawn, yet every option is checked against every layer's shape.
    Raises ConfigError with the key `initializer.<option>`.
    """
    check_bias(bias, filled=accepts(weight, "bias"))
    fill_biases(model, bias=bias, streams=streams)
    fill_weights(model, weight=weight, streams=streams, in_shape=in_shape)


def fill_weights(
    model: nn.Module, *, weight: Callable[..., None], streams: Streams, in_shape: tuple[int, ...] | None = None
) -> None:
    """Fill the weights of linear and convolutional layers (and their biases, if `weight` does so) and nothing
    else."""
    layers: Mapping[str, Layer] = {}
    if accepts(weight, "layer"):
        assert in_shape is not None, "to know the layers takes the shape of an image"
        layers = survey(model, in_shape)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            generator = streams.generator("init", parameter_path(path, "weight"))
            fill_layer(module, weight, generator=generator, layer=layers.get(path))


def fill_biases(model: nn.Module, *, bias: str | float | None, streams: Streams) -> None:
    """Fill the biases of linear and convolutional layers (unless None), and make norms the identity."""
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            make_identity(module)
        elif isinstance(module, nn.Linear | _ConvNd) and module.bias is not None and bias is not None:
            fill_bias(module, module.bias, bias, streams.generator("init", parameter_path(path, "bias")))


def check_weight(model: nn.Module, weight: object, *, option: str, in_shape: tuple[int, ...]) -> None:
    """Refuse an option that is to be an initializer of one weight, and is not, or cannot serve `model`'s layers."""
    rule = "must be an initializer of one weight, a mapping with _target_ and its options"
    require(callable(weight), f"initializer.{option}", rule, weight)
    assert callable(weight)
    rule = "must be an initializer that sets no learning rates (mup has readout=zeros)"
    require(not hasattr(weight, "learning_rates"), f"initializer.{option}", rule, weight)
    if any(parameter.is_meta for parameter in model.parameters()):
        fill_weights(model, weight=weight, streams=Streams(0, 0), in_shape=in_shape)


def learning_rates(
    weight: Callable[..., None] | None,
    model: nn.Module,
    *,
    in_shape: tuple[int, ...],
    optimizer: Callable[..., Optimizer],
) -> Mapping[nn.Parameter, float]:
    """What an initializer multiplies the optimizer's learning rate by, parameter by parameter: mostly nothing.

    It says so by a method `learning_rates(model, layers, optimizer)`. Raises ConfigError for an optimizer that it
    has no rule for.
    """
    rule = getattr(weight, "learning_rates", None)
    return rule(model, survey(model, in_shape), optimizer) if rule else {}


def fill_layer(module: nn.Linear | _ConvNd, function: Callable[..., None], **offered: object) -> None:
    """Let `function` fill the weight of `module`, and the bias if it asks for it."""
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if not weight.is_meta:
        weight, bias = weight.cpu(), None if bias is None else bias.cpu()
        fill_blocks(module, weight, bias, function, offered)
        fill(module.weight, weight)
        if module.bias is not None and bias is not None:
            fill(module.bias, bias)
        return
    try:
        fill_blocks(module, weight, bias, function, offered)
    except RuntimeError:  # it computes with what it draws: try it on real numbers
        weight, bias = torch.zeros(weight.shape), None if bias is None else torch.zeros(bias.shape)
        fill_blocks(module, weight, bias, function, offered)


def fill_blocks(
    module: nn.Linear | _ConvNd,
    weight: Tensor,
    bias: Tensor | None,
    function: Callable[..., object],
    offered: Mapping[str, object],
) -> None:
    """Call `function` on each block of `weight`, with its part of `bias`."""
    groups = getattr(module, "groups", 1)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    for block, part in zip(blocks(module, weight), biases, strict=True):
        before = block._version  # torch counts what is written in place, on the meta device too
        returned = function(block, **asked(function, bias=part, **offered))
        if isinstance(returned, Tensor) and returned is not block and block._version == before:
            name = label(getattr(function, "func", function))
            raise ConfigError(
                f"initializer: {name} returns a tensor, and its weight stays as it was: "
                "fill the weight in place, as in weight.copy_(...)"
            )


def check_bias(bias: str | float | None, *, filled: bool) -> None:
    """Raise a ConfigError unless `bias` says what the biases become, or None where the initializer fills them."""
    if filled:
        rule = "must be left out (or null): this initializer sets the biases itself"
        require(bias is None, "initializer.bias", rule, bias)
    elif bias is None:
        raise ConfigError("initializer.bias: is needed: zeros, torch_default or a finite number")
    elif not isinstance(bias, str):
        require_number("bias", bias)
    elif bias not in ("zeros", "torch_default"):
        raise unknown("initializer.bias", bias, ["zeros", "torch_default", "any number"])


def fill_bias(module: nn.Linear | _ConvNd, tensor: Tensor, bias: str | float, generator: torch.Generator) -> None:
    """Fill the bias `tensor` of `module`: a constant, or as torch does, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    if bias == "torch_default":
        fan_in = fans(next(blocks(module, module.weight))).fan_in
        fill(tensor, symmetric_uniform(tensor, generator) / sqrt(fan_in))
    else:
        nn.init.constant_(tensor, 0.0 if bias == "zeros" else float(bias))


def make_identity(norm: nn.Module) -> None:
    """Scale 1 and shift 0, of a norm that has them."""
    for name, parameter in norm.named_parameters(recurse=False):
        nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)


def blocks(module: nn.Linear | _ConvNd, weight: Tensor) -> Iterator[Tensor]:
    """Views on `weight` of shape (units out, units in, *kernel) whose fans are the true ones.

    A grouped convolution is several small ones side by side, so each group is a block of its own
    (torch.nn.init counts all groups in fan_out). A transposed convolution stores its units in first.
    """
    for block in weight.chunk(getattr(module, "groups", 1)):
        yield block.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else block


def parameter_path(layer_path: str, name: str) -> str:
    """As in `named_parameters`, where the path of the model itself is empty."""
    return f"{layer_path}.{name}" if layer_path else name
