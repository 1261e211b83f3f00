"""The residual convolutional network: stages of blocks at ever coarser resolution, without need of a norm."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fanin.errors import require
from fanin.models.activation import activation as activation_module
from fanin.models.mlp import check_widths
from fanin.models.norm import centres_each_unit, norm_2d
from fanin.models.residual import check_count, make_blocks


class ResCnn(nn.Module):
    """(N, C, H, W) -> logits (N, classes).

    Stage i has `depth` blocks x + b(x) of two 3x3 convolutions on `channels[i]` channels, after a step that leads
    there: a 3x3 convolution of stride 2, norm, activation. The logits are a linear map of the channels' means over the
    picture. Every block keeps the shape, so that each can start as the identity; what the branch b is: residual.py.
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
        before_norm = not centres_each_unit(norm)

        def make_norm(stage: int) -> nn.Module:
            return norm_2d(norm, channels[stage], groups=groups, noise=norm_noise)

        def layers(stage: int) -> tuple[nn.Module, nn.Module, nn.Module]:
            n = channels[stage]
            first = nn.Conv2d(n, n, 3, padding=1, bias=bias and before_norm)
            return first, make_norm(stage), nn.Conv2d(n, n, 3, padding=1, bias=bias)

        widths = pairwise([in_shape[0], *channels])
        self.steps = nn.ModuleList(nn.Conv2d(m, n, 3, stride=2, padding=1, bias=before_norm) for m, n in widths)
        self.norms = nn.ModuleList(make_norm(stage) for stage in range(len(channels)))
        self.activations = nn.ModuleList(activation_module(activation) for _ in channels)
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
        for step, norm, activation, stage in zip(self.steps, self.norms, self.activations, self.stages, strict=True):
            x = stage(activation(norm(step(x))))
        return self.head(x.mean((2, 3)))
