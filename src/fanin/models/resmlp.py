"""The residual multi-layer perceptron: an in-projection, blocks of two linear layers, the logits."""

from math import prod

from torch import Tensor, nn

from fanin.models.norm import centres_each_unit, norm_1d
from fanin.models.residual import check_count, make_blocks


class ResMlp(nn.Module):
    """(N, C, H, W) -> logits (N, classes): `depth` blocks x + b(x) on `width` units between two linear maps.

    What the branch b is: residual.py.
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

        def layers(_: int) -> tuple[nn.Module, nn.Module, nn.Module]:
            first = nn.Linear(width, width, bias=bias and not centres_each_unit(norm))
            return first, norm_1d(norm, width, groups=groups, noise=norm_noise), nn.Linear(width, width, bias=bias)

        self.stem = nn.Linear(prod(in_shape), width)
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
        return self.head(self.blocks(self.stem(x.flatten(1))))
