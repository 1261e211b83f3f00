"""Initializers of residual networks without norms: every block starts as the identity, however deep the network.

They need numbers to set in the branches of the blocks, and so a model with `branch: gated` or `branch: fixup`, such
as resmlp or rescnn (or one of yours, made of fanin.models.residual.Block).
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fanin.errors import ConfigError
from fanin.initializers.closed_form import require_number
from fanin.initializers.layers import check_weight, fill_weights
from fanin.initializers.whole import checked_by
from fanin.models.residual import Block, Gate, Shift
from fanin.randomness import Streams

Weight = Callable[..., None]


def check_fixup(model: nn.Module, *, weight: Weight, in_shape: tuple[int, ...]) -> None:
    """Raise a ConfigError for options or a model without branches that fixup can set."""
    check_branches(model, name="fixup", branch="fixup", needs=(Gate, Shift))
    check_weight(model, weight, option="weight", in_shape=in_shape)


@checked_by(check_fixup)
@torch.no_grad()
def fixup(model: nn.Module, *, streams: Streams, in_shape: tuple[int, ...], weight: Weight) -> None:
    """Fixup (Zhang, Dauphin & Ma 2019): updates of the function stay of order lr whatever the number L of branches.

    Fill the weights by `weight` (the paper's is He), then in each branch scale its first layer by
    L^(-1 / (2 m - 2)), L^(-1/2) with the m = 2 layers of ours, and set its last layer to 0; the logits' layer is 0,
    too: the initial loss is ln(classes). The branches' multipliers are 1, their biases 0.
    """
    fill_weights(model, weight=weight, streams=streams, in_shape=in_shape)
    branches = blocks(model)
    for block in branches:
        first, last = layers(block)
        first.weight.mul_(len(branches) ** -0.5)
        last.weight.zero_()
        set_numbers(block, gate=1.0)
    nn.init.zeros_(head(model).weight)


def check_skipinit(model: nn.Module, *, weight: Weight, alpha: float, in_shape: tuple[int, ...]) -> None:
    """Raise a ConfigError for options or a model without branches that skipinit can set."""
    require_number("alpha", alpha)
    check_branches(model, name="skipinit", branch="gated", needs=(Gate,))
    check_weight(model, weight, option="weight", in_shape=in_shape)


@checked_by(check_skipinit)
@torch.no_grad()
def skipinit(model: nn.Module, *, streams: Streams, in_shape: tuple[int, ...], weight: Weight, alpha: float) -> None:
    """SkipInit (De & Smith 2020): fill the weights by `weight` (theirs is He), and set the number that multiplies
    each branch to `alpha`: 0, or at most 1 / sqrt(number of branches)."""
    fill_weights(model, weight=weight, streams=streams, in_shape=in_shape)
    for block in blocks(model):
        set_numbers(block, gate=alpha)


def check_rezero(model: nn.Module, *, weight: Weight, in_shape: tuple[int, ...]) -> None:
    """Raise a ConfigError for options or a model without branches that rezero can set."""
    check_branches(model, name="rezero", branch="gated", needs=(Gate,))
    check_weight(model, weight, option="weight", in_shape=in_shape)


@checked_by(check_rezero)
@torch.no_grad()
def rezero(model: nn.Module, *, streams: Streams, in_shape: tuple[int, ...], weight: Weight) -> None:
    """ReZero (Bachlechner et al. 2020): fill the weights by `weight` (theirs is Xavier's), and set the number that
    multiplies each branch to 0. It is what skipinit does with alpha = 0, found for other architectures."""
    fill_weights(model, weight=weight, streams=streams, in_shape=in_shape)
    for block in blocks(model):
        set_numbers(block, gate=0.0)


def check_branches(model: nn.Module, *, name: str, branch: str, needs: tuple[type[nn.Module], ...]) -> None:
    """Raise a ConfigError for a model of which not all branches hold the numbers that initializer `name` sets."""
    found = blocks(model)
    if not found:
        rule = f"{name} needs residual branches: take model=resmlp or model=rescnn, with model.branch={branch}"
        raise ConfigError(f"initializer: {rule}; this model has none")
    for block in found:
        kinds = {type(module) for module in block.branch}
        if not kinds.issuperset(needs):
            rule = f"{name} sets learned numbers in the branches: take model.branch={branch}"
            raise ConfigError(f"initializer: {rule}; these branches have none to set")


def blocks(model: nn.Module) -> list[Block]:
    """The residual blocks, in the order in which they were built."""
    return [module for module in model.modules() if isinstance(module, Block)]


def layers(block: Block) -> tuple[nn.Linear | _ConvNd, nn.Linear | _ConvNd]:
    """The first and the last layer of the branch."""
    found = [module for module in block.branch if isinstance(module, nn.Linear | _ConvNd)]
    return found[0], found[-1]


def set_numbers(block: Block, *, gate: float) -> None:
    """Set the branch's multipliers to `gate` and its shifts to 0."""
    for module in block.branch:
        if isinstance(module, Gate):
            nn.init.constant_(module.weight, gate)
        elif isinstance(module, Shift):
            nn.init.zeros_(module.bias)


def head(model: nn.Module) -> nn.Linear | _ConvNd:
    """The layer of the logits: the last that was built outside the blocks."""
    inside = {module for block in blocks(model) for module in block.modules()}
    outside = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) and m not in inside]
    return outside[-1]
