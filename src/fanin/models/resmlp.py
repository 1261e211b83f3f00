"""The residual multi-layer perceptron: a hidden layer, blocks of two linear layers, the logits."""

from math import prod

from torch import Tensor, nn

from fanin.models.activation import activation as activation_module
from fanin.models.norm import centres_each_unit, norm_1d
from fanin.models.residual import check_count, make_blocks


class ResMlp(nn.Module):
    """(N, C, H, W) -> logits (N, classes): `depth` blocks x + b(x) on the `width` units of a hidden layer.

    That layer is linear, norm, activation; what the branch b is: residual.py.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        classes: int,
        width: int,
        depth: int,
        branch: str,
        scale: float | None,
        activation: str,
        norm: str,
        dropout: float,
        groups: int = 1,
        norm_noise: float = 0.0,
        stochastic_depth: float = 0.0,
    ):
        super().__init__()
        check_count("model.width", width)
        check_count("model.depth", depth)
        bias = branch != "fixup"  # which has numbers in the place of vectors
        before_norm = not centres_each_unit(norm)

        def make_norm() -> nn.Module:
            return norm_1d(norm, width, groups=groups, noise=norm_noise)

        def layers(_: int) -> tuple[nn.Module, nn.Module, nn.Module]:
            first = nn.Linear(width, width, bias=bias and before_norm)
            return first, make_norm(), nn.Linear(width, width, bias=bias)

        self.stem = nn.Linear(prod(in_shape), width, bias=before_norm)
        self.norm = make_norm()
        self.activation = activation_module(activation)
        [self.blocks] = make_blocks(
            [depth],
            layers,
            branch=branch,
            scale=scale,
            activation=activation,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x.flatten(1))))
        return self.head(self.blocks(x))
