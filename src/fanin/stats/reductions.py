"""Sums over tensors, in float64 where the device has it; and arithmetic of what they give that never raises."""

import math

import torch
from torch import Tensor

from fanin.evaluation import wide_dtype


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation; centred first, so that equal values have exactly none."""
    wide = values.to(wide_dtype(values.device), copy=True)
    mean = wide.mean()
    return mean, rms(wide.sub_(mean))


def rms(values: Tensor) -> Tensor:
    return norm(values) / values.numel() ** 0.5


def norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dtype=wide_dtype(values.device))


def share(mask: Tensor) -> Tensor:
    """The fraction of entries that are true."""
    return mask.sum().to(wide_dtype(mask.device)) / mask.numel()


def row_spread(matrix: Tensor) -> Tensor:
    """max_i |w_i - mean row| / |mean row|; 0 where all rows are equal, zeros included."""
    mean = matrix.mean(0)
    largest = torch.linalg.vector_norm(matrix - mean, dim=1).amax()
    common = torch.linalg.vector_norm(mean)
    return torch.where(largest > 0, largest / common, 0.0).to(wide_dtype(matrix.device))


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 for 0 / 0."""
    if whole == 0:
        return part if part == 0 or math.isnan(part) else math.inf
    return part / whole


def square(value: float) -> float:
    return value * value  # infinite where value**2 would raise
