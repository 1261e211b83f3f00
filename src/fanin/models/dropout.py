"""Dropout of units, and of whole residual branches."""

import torch
from torch import Tensor

from fanin.errors import require
from fanin.models.noise import Noise


class Dropout(Noise):
    """Zeroes each unit with probability `p` while training and scales the others by 1 / (1 - p).

    The expected output thus is the input, which is the output of evaluation (Srivastava et al. 2014).
    """

    purpose = "dropout"

    def __init__(self, p: float):
        super().__init__()
        check_probability("dropout", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x, shape=x.shape)

    def drop(self, x: Tensor, *, shape: torch.Size) -> Tensor:
        """Multiply by a mask of `shape`, which x broadcasts with."""
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        # Comparing uniform numbers is four times as fast on a CPU as torch's own Bernoulli draw. They are
        # float32 under autocast, too: the 8 bits of a bfloat16 would round the probability.
        mask = torch.rand(shape, generator=self.generator, device=x.device, dtype=torch.float32)
        return x * mask.lt_(keep).mul_(1 / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class StochasticDepth(Dropout):
    """At the end of a residual branch: zeroes all of it with probability `p`, for each image on its own.

    Huang et al. 2016, who drop a branch for the whole batch and scale in evaluation what we scale in training.
    """

    purpose = "stochastic_depth"

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x, shape=torch.Size([len(x), *[1] * (x.dim() - 1)]))


def check_probability(key: str, p: float) -> None:
    is_number = isinstance(p, int | float) and not isinstance(p, bool)
    require(is_number and 0 <= p < 1, f"regularization.{key}", "must be a number in [0, 1)", p)
