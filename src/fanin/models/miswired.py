"""A well-known mistake, kept for study: a deep perceptron of which only the first layers are in the forward pass."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from fanin.errors import require
from fanin.models.activation import activation as activation_module
from fanin.models.mlp import check_widths

WIRED = 3


class MlpMiswired(nn.Module):
    """(N, C, H, W) -> "logits" (N, widths[2]): five layers are built, three are used.

    As in a course's notebook that builds 784-512-512-512-512-10 and then writes Sequential(linear1, relu, linear2,
    relu, linear3). It trains: the third layer's 512 units serve as logits, of which the labels only ever name 10. The
    initial loss gives it away, ln 512 = 6.24 in the place of ln 10 = 2.30.
    """

    def __init__(self, *, in_shape: tuple[int, int, int], classes: int, widths: Sequence[int], activation: str):
        super().__init__()
        check_widths("model.widths", widths)
        require(len(widths) >= WIRED, "model.widths", f"must name at least {WIRED} layers", widths)
        enough = f"must be at least the {classes} classes in its third place, whose units serve as logits"
        require(widths[WIRED - 1] >= classes, "model.widths", enough, widths)
        self.outputs = widths[WIRED - 1]  # more than there are classes: see check_fit
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise([prod(in_shape), *widths, classes]))
        self.activations = nn.ModuleList(activation_module(activation) for _ in range(WIRED - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer, activation in zip(self.layers[: WIRED - 1], self.activations, strict=True):
            x = activation(layer(x))
        return self.layers[WIRED - 1](x)
