"""The multi-layer perceptron: fully connected layers of any widths."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from fanin.errors import require
from fanin.models.activation import activation as activation_module
from fanin.models.dropout import Dropout
from fanin.models.norm import centres_each_unit, norm_1d


class Mlp(nn.Module):
    """(N, C, H, W) -> logits (N, classes). A hidden layer is linear, norm, activation, dropout."""

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
    ):
        super().__init__()
        check_widths("model.widths", widths)
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


def check_widths(key: str, widths: Sequence[int]) -> None:
    """Check a list of numbers of units, which may be empty. Raises ConfigError."""
    is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
    valid = is_list and all(type(width) is int and width > 0 for width in widths)
    require(valid, key, "must be a list of positive integers, such as [256,256]", widths)
