"""The multi-layer perceptron: fully connected layers of any widths."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from fanin.errors import require
from fanin.models.activation import activation as activation_module
from fanin.models.dropout import Dropout
from fanin.models.norm import centres_each_unit, norm_1d
from fanin.ranges import is_whole


class Mlp(nn.Module):
    """(N, C, H, W) -> logits (N, classes). A hidden layer is linear, norm, activation, dropout.

    `widths` are the hidden layers' units; `depth` (how many hidden layers) and `width` (units of each) make them
    all alike: depth=30 width=128.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        classes: int,
        widths: Sequence[int],
        activation: str,
        norm: str,
        dropout: float,
        groups: int = 1,
        norm_noise: float = 0.0,
        depth: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        check_widths("model.widths", widths)
        widths = alike(widths, depth=depth, width=width)
        require(widths, "model.widths", "must name a hidden layer (without any, it is model=softmax)", widths)
        sizes = [prod(in_shape), *widths]
        # A bias before batch norm would be subtracted again with the mean.
        bias = not centres_each_unit(norm)
        hidden = [nn.Linear(m, n, bias=bias) for m, n in pairwise(sizes)]
        self.layers = nn.ModuleList([*hidden, nn.Linear(sizes[-1], classes)])
        self.norms = nn.ModuleList(norm_1d(norm, width, groups=groups, noise=norm_noise) for width in widths)
        self.activations = nn.ModuleList(activation_module(activation) for _ in widths)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        *hidden, logits = self.layers
        for layer, norm, activation, dropout in zip(hidden, self.norms, self.activations, self.dropouts, strict=True):
            x = dropout(activation(norm(layer(x))))
        return logits(x)


def alike(widths: Sequence[int], *, depth: int | None, width: int | None) -> Sequence[int]:
    """`depth` layers of `width` units; what is None is as in `widths`. Raises ConfigError."""
    for key, value in (("model.depth", depth), ("model.width", width)):
        require(value is None or is_whole(value, least=1), key, "must be null or a whole number >= 1", value)
    if depth is None and width is None:
        return widths
    first = width or next(iter(widths), None)
    require(first, "model.width", "is needed where model.widths is empty", width)
    return [first or 0] * (depth or len(widths))


def check_widths(key: str, widths: Sequence[int]) -> None:
    """Check a list of numbers of units, which may be empty. Raises ConfigError."""
    is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
    valid = is_list and all(is_whole(width, least=1) for width in widths)
    require(valid, key, "must be a list of positive integers, such as [256,256]", widths)
