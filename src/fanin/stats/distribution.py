"""The distribution of a layer's weights in a few numbers: counts in even bins."""

import math

import numpy as np
import torch
from torch import Tensor

BINS = 32
SAMPLE = 8192  # weights of a layer that are looked at: enough for a picture, in a twentieth of a millisecond


def sample(weight: Tensor) -> Tensor:
    """All weights, or of a large layer every k-th; float32, flat."""
    values = weight.detach().flatten()
    return values[:: max(1, len(values) // SAMPLE) | 1].float()  # an odd stride walks through all columns


def histogram(values: Tensor) -> list[float]:
    """1 + BINS numbers of a `sample` on the CPU: the bound b, and how many lie in each of the bins that part [-b, b]
    evenly. b is the largest magnitude; one that is not finite comes with meaningless counts."""
    bound = float(values.abs().amax())
    shares = values / max(bound, torch.finfo(torch.float32).tiny)
    if not math.isfinite(bound):
        shares = torch.zeros_like(values)
    index = ((shares + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    return [bound, *np.bincount(index.numpy(), minlength=BINS).astype(float).tolist()]
