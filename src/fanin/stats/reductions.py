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
    """The root mean square of all entries, a scalar on their device."""
    return norm(values) / values.numel() ** 0.5


def norm(values: Tensor) -> Tensor:
    """The Euclidean norm of all entries, a scalar on their device."""
    return torch.linalg.vector_norm(values, dtype=wide_dtype(values.device))


def share(mask: Tensor) -> Tensor:
    """The fraction of entries that are true."""
    return mask.sum().to(wide_dtype(mask.device)) / mask.numel()


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 for 0 / 0."""
    if whole == 0:
        return part if part == 0 or math.isnan(part) else math.inf
    return part / whole


def square(value: float) -> float:
    """value^2, infinite where `**` would raise."""
    return value * value
