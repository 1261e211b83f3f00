"""The residual convolutional network: stages of blocks at ever coarser resolution, without need of a norm."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fanin.errors import require
from fanin.models.mlp import check_widths
from fanin.models.norm import centres_each_unit, norm_2d
from fanin.models.residual import check_count, make_blocks


class ResCnn(nn.Module):
    """(N, C, H, W) -> logits (N, classes).

    Stage i has `depth` blocks x + b(x) of two 3x3 convolutions on `channels[i]` channels, after a 3x3 convolution of
    stride 2 that leads there; a linear map of the channels' means over the picture ends it. Only the branches have
    norms and activations, and every block keeps the shape, so that each can start as the identity. What the branch b
    is: residual.py.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        classes: int,
        channels: Sequence[int],
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
        check_widths("model.channels", channels)
        require(channels, "model.channels", "must name a stage, such as [16,32]", channels)
        check_count("model.depth", depth)
        bias = branch != "fixup"  # which has numbers in the place of vectors

        def layers(stage: int) -> tuple[nn.Module, nn.Module, nn.Module]:
            n = channels[stage]
            first = nn.Conv2d(n, n, 3, padding=1, bias=bias and not centres_each_unit(norm))
            norm_module = norm_2d(norm, n, groups=groups, noise=norm_noise)
            return first, norm_module, nn.Conv2d(n, n, 3, padding=1, bias=bias)

        widths = [in_shape[0], *channels]
        self.steps = nn.ModuleList(nn.Conv2d(m, n, 3, stride=2, padding=1) for m, n in pairwise(widths))
        self.stages = nn.ModuleList(
            make_blocks(
                [depth] * len(channels),
                layers,
                branch=branch,
                scale=scale,
                activation=activation,
                dropout=dropout,
                stochastic_depth=stochastic_depth,
            )
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for step, stage in zip(self.steps, self.stages, strict=True):
            x = stage(step(x))
        return self.head(x.mean((2, 3)))
