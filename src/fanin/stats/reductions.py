"""Sums over tensors, in float64 where the device has it."""

import torch
from torch import Tensor

from fanin.evaluation import wide_dtype


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation; centred first, so that equal values have exactly none."""
    wide = values.to(wide_dtype(values.device))
    mean = wide.mean()
    return mean, rms(wide - mean)


def rms(values: Tensor) -> Tensor:
    return norm(values) / values.numel() ** 0.5


def norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dtype=wide_dtype(values.device))


def share(mask: Tensor) -> Tensor:
    """The fraction of entries that are true."""
    return mask.sum().to(wide_dtype(mask.device)) / mask.numel()
