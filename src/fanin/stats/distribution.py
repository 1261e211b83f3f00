"""The distribution of a layer's weights in a few numbers: counts in even bins."""

import math

import numpy as np
from torch import Tensor

BINS = 32
TINY = float(np.finfo(np.float32).tiny)
SAMPLE = 8192  # weights of a layer that are looked at: enough for a picture, in a twentieth of a millisecond


def sample(weight: Tensor) -> Tensor:
    """All of `weight` (units, ...), or of a large layer every k-th, from all over a unit's fan-in; float32, flat."""
    values = weight.detach().flatten()
    stride, fan_in = max(1, len(values) // SAMPLE), weight[0].numel()
    while math.gcd(stride, fan_in) > 1:  # else it would come back to the same columns before it saw the others
        stride += 1
    return values[::stride].float()


def histogram(values: Tensor) -> list[float]:
    """1 + BINS numbers of a `sample` on the CPU: the bound b, and how many lie in each of the bins that part [-b, b]
    evenly. b is the largest magnitude; one that is not finite comes with meaningless counts."""
    numbers = values.numpy()
    bound = float(np.abs(numbers).max())
    if not math.isfinite(bound):
        return [bound, float(len(numbers)), *[0.0] * (BINS - 1)]
    places = numbers / np.float32(max(bound, TINY))
    places += 1
    places *= BINS / 2
    index = np.minimum(places.astype(np.intp), BINS - 1)
    return [bound, *np.bincount(index, minlength=BINS).astype(float).tolist()]
