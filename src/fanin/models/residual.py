"""Residual blocks: x + b(x), with the learned numbers in the branch b that some initializers need.

| branch | b(x) |
| --- | --- |
| plain | W2 phi(W1 x) |
| scaled | s W2 phi(W1 x) with a fixed s, by default 1 / sqrt(number of branches): what batch norm makes of it |
| gated | a W2 phi(W1 x) with a learned number a: for the initializers rezero and skipinit |
| fixup | a W2 (phi(W1 (x + b1) + b2) + b3) + b4 with learned numbers: for the initializer fixup |

De & Smith 2020 (scaled, gated), Bachlechner et al. 2020 (gated), Zhang et al. 2019 (fixup). W1 is followed by norm,
activation and dropout as in any hidden layer, and the branch ends with stochastic depth. As built, a = 1 and
b1 = ... = b4 = 0. With W1 ~ c1 / fan_in and W2 ~ c2 / fan_in, a plain ReLU block multiplies the second moment of its
input by 1 + c1 c2 / 2: by 2 under He and LeCun, so that 64 blocks of them explode.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

from fanin.errors import require, unknown
from fanin.models.activation import activation as activation_module
from fanin.models.dropout import Dropout, StochasticDepth
from fanin.ranges import is_number, is_whole

BRANCHES = ("plain", "scaled", "gated", "fixup")


class Block(nn.Module):
    """x + b(x), for a `first` and a `last` layer that make b's output as large as its input.

    `branch` is one of BRANCHES. `scale` is the s of a scaled one; `drop` is the probability with which an image
    skips the branch in training.
    """

    def __init__(
        self,
        first: nn.Module,
        last: nn.Module,
        *,
        branch: str,
        scale: float,
        norm: nn.Module,
        activation: str,
        dropout: float,
        drop: float,
    ):
        super().__init__()
        ends: dict[str, dict[str, nn.Module]] = {
            "plain": {},
            "scaled": {"scale": Scale(scale)},
            "gated": {"gate": Gate()},
            "fixup": {"gate": Gate(), "shift_end": Shift()},
        }
        hidden = {"norm": norm, "activation": activation_module(activation), "dropout": Dropout(dropout)}
        parts: dict[str, nn.Module] = {"first": first, **hidden, "last": last}
        if branch == "fixup":
            rest = {"activation": hidden["activation"], "dropout": hidden["dropout"]}
            parts = {"shift_first": Shift(), "first": first, "norm": norm, "shift_activation": Shift(), **rest}
            parts |= {"shift_last": Shift(), "last": last}
        parts |= ends[branch] | {"drop": StochasticDepth(drop)}
        self.branch = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Scale(nn.Module):
    """Multiplies by a fixed number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


class Gate(nn.Module):
    """Multiplies by one learned number, at first 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Shift(nn.Module):
    """Adds one learned number, at first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def make_blocks(
    counts: list[int],
    make_layers: Callable[[int], tuple[nn.Module, nn.Module, nn.Module]],
    *,
    branch: str,
    scale: float | None,
    activation: str,
    dropout: float,
    stochastic_depth: float,
) -> list[nn.Sequential]:
    """`counts[i]` blocks for each stage i, out of what `make_layers(i)` gives: first layer, norm, last layer.

    Branch l of L is dropped with probability stochastic_depth l / L: the first ones, which all others build on,
    least often (Huang et al. 2016). Raises ConfigError for malformed options.
    """
    if branch not in BRANCHES:
        raise unknown("model.branch", branch, BRANCHES)
    rule = "must be null, or with model.branch=scaled a number > 0"
    fits = scale is None or (branch == "scaled" and is_number(scale) and scale > 0)
    require(fits, "model.scale", rule, scale)
    total, number = sum(counts), 0
    factor = 1 / sqrt(total) if scale is None else scale
    stages = []
    for stage, count in enumerate(counts):
        blocks = []
        for _ in range(count):
            number += 1
            first, norm, last = make_layers(stage)
            block = Block(
                first,
                last,
                branch=branch,
                scale=factor,
                norm=norm,
                activation=activation,
                dropout=dropout,
                drop=stochastic_depth * number / total,
            )
            blocks.append(block)
        stages.append(nn.Sequential(*blocks))
    return stages


def check_count(key: str, value: object) -> None:
    require(is_whole(value, least=1), key, "must be a whole number >= 1", value)
