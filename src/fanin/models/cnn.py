"""Plain convolutional networks: stages of convolutions, each ended by a max-pooling, then linear layers."""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fanin.errors import ConfigError, require, unknown
from fanin.models.activation import activation as activation_module
from fanin.models.dropout import Dropout
from fanin.models.mlp import check_widths
from fanin.models.norm import centres_each_unit, norm_1d, norm_2d
from fanin.ranges import is_whole

HEADS = {"linear": nn.Identity, "relu": nn.ReLU}


class Cnn(nn.Module):
    """(N, C, H, W) -> logits (N, classes).

    `stages` lists the channels of the convolutions of each stage; 2x2 max-pooling with stride 2 ends a stage.
    `hidden` lists the widths of the linear layers that follow. Each hidden layer, convolutional or linear, is
    layer, norm, activation, (pooling,) dropout in this order; dropout drops single units, not channels.
    `head` is "linear", or "relu": a ReLU on the logits, known from tutorials. A class whose logit is below 0 for every
    image is dead then: it gets no gradient.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        classes: int,
        stages: Sequence[Sequence[int]],
        kernel: int,
        padding: int,
        hidden: Sequence[int],
        activation: str,
        norm: str,
        dropout: float,
        groups: int = 1,
        norm_noise: float = 0.0,
        head: str = "linear",
    ):
        super().__init__()
        height, width = final_size(in_shape, stages=stages, kernel=kernel, padding=padding)
        check_widths("model.hidden", hidden)
        if head not in HEADS:
            raise unknown("model.head", head, HEADS)
        channels = [in_shape[0], *chain.from_iterable(stages)]
        features = [channels[-1] * height * width, *hidden]
        bias = not centres_each_unit(norm)  # batch norm would subtract it again with the mean
        convolutions = [nn.Conv2d(m, n, kernel, padding=padding, bias=bias) for m, n in pairwise(channels)]
        linear = [nn.Linear(m, n, bias=bias) for m, n in pairwise(features)]
        norms = [norm_2d(norm, n, groups=groups, noise=norm_noise) for n in channels[1:]]
        norms += [norm_1d(norm, n, groups=groups, noise=norm_noise) for n in hidden]
        self.pooled = set(accumulate(len(stage) for stage in stages))  # numbers of the last layers of a stage
        self.layers = nn.ModuleList([*convolutions, *linear, nn.Linear(features[-1], classes)])
        self.head = HEADS[head]()
        self.norms = nn.ModuleList(norms)
        self.activations = nn.ModuleList(activation_module(activation) for _ in norms)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in norms)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, logits = self.layers
        blocks = zip(hidden, self.norms, self.activations, self.dropouts, strict=True)
        for number, (layer, norm, activation, dropout) in enumerate(blocks, start=1):
            x = x.flatten(1) if isinstance(layer, nn.Linear) else x
            x = activation(norm(layer(x)))
            x = F.max_pool2d(x, 2) if number in self.pooled else x
            x = dropout(x)
        return self.head(logits(x.flatten(1)))


def final_size(
    in_shape: tuple[int, int, int], *, stages: Sequence[Sequence[int]], kernel: int, padding: int
) -> tuple[int, int]:
    """Height and width after all stages. Raises ConfigError for malformed options and too small images."""
    require(is_list(stages) and stages, "model.stages", "must be a list of lists such as [[16,32],[64]]", stages)
    for stage in stages:
        check_widths("model.stages", stage)
        require(stage, "model.stages", "must hold at least one convolution a stage", stages)
    require(is_whole(kernel, least=1), "model.kernel", "must be a positive integer", kernel)
    require(is_whole(padding, least=0) and padding < kernel, "model.padding", "must be in 0..kernel - 1", padding)
    _, height, width = in_shape
    for stage in stages:
        growth = len(stage) * (2 * padding - kernel + 1)
        height, width = (height + growth) // 2, (width + growth) // 2
        if min(height, width) < 1:
            raise ConfigError(
                f"model: does not fit the data: {kernel}x{kernel} convolutions and poolings "
                f"leave nothing of images of {in_shape[1]}x{in_shape[2]}; "
                "take fewer model.stages, a smaller model.kernel or more model.padding"
            )
    return height, width


def is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
