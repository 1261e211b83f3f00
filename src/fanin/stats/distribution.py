"""The distribution of a layer's weights in a few numbers: counts in even bins."""

import torch
from torch import Tensor

BINS = 32
SAMPLE = 8192  # weights of a layer that are looked at: enough for a picture, in a tenth of a millisecond


def histogram(weight: Tensor) -> Tensor:
    """(1 + BINS,): the bound b, and how many weights lie in each of the bins that part [-b, b] evenly.

    b is the largest magnitude; of large layers every k-th weight is looked at. A b that is not finite comes
    with meaningless counts.
    """
    values = weight.detach().flatten()
    values = values[:: max(1, len(values) // SAMPLE) | 1].float()  # an odd stride walks through all columns
    bound = values.abs().amax()
    shares = (values / bound.clamp(min=torch.finfo(torch.float32).tiny)).nan_to_num()
    index = ((shares + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    counts = torch.zeros(BINS, device=values.device).scatter_add_(0, index, torch.ones_like(values))
    return torch.cat([bound.view(1), counts])
