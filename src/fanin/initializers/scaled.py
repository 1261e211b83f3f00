"""Initializers whose scale follows from the layer's fans, so that signals keep their size from layer to layer."""

from math import sqrt

import torch
from torch import Tensor

from fanin.errors import unknown
from fanin.initializers.closed_form import fans, fill, require_positive, standard_normal, symmetric_uniform


def xavier_uniform(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W ~ U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fill(weight, sqrt(3) * xavier_std(weight, gain) * symmetric_uniform(weight, generator))


def xavier_normal(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W ~ N(0, gain^2 2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fill(weight, xavier_std(weight, gain) * standard_normal(weight, generator))


def he_uniform(weight: Tensor, *, generator: torch.Generator, gain: float, mode: str) -> None:
    """W ~ U(-a, a) with a = gain sqrt(3 / fan), `mode` says which fan (He et al. 2015)."""
    fill(weight, sqrt(3) * he_std(weight, gain, mode) * symmetric_uniform(weight, generator))


def he_normal(weight: Tensor, *, generator: torch.Generator, gain: float, mode: str) -> None:
    """W ~ N(0, gain^2 / fan), `mode` says which fan (He et al. 2015)."""
    fill(weight, he_std(weight, gain, mode) * standard_normal(weight, generator))


def lecun_normal(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ N(0, 1 / fan_in) (LeCun et al. 1998); what SELU's fixed point requires (Klambauer et al. 2017)."""
    fill(weight, standard_normal(weight, generator) / sqrt(fans(weight).fan_in))


def torch_default(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ U(-a, a) with a = 1 / sqrt(fan_in): what torch.nn.Linear and Conv2d do when left alone.

    Its variance, 1 / (3 fan_in), is the "standard" heuristic that Glorot and Bengio (2010) argue against.
    """
    fill(weight, symmetric_uniform(weight, generator) / sqrt(fans(weight).fan_in))


def xavier_std(weight: Tensor, gain: float) -> float:
    require_positive("gain", gain)
    fan = fans(weight)
    return gain * sqrt(2 / (fan.fan_in + fan.fan_out))


def he_std(weight: Tensor, gain: float, mode: str) -> float:
    require_positive("gain", gain)
    if mode not in ("fan_in", "fan_out"):
        raise unknown("initializer.mode", mode, ["fan_in", "fan_out"])
    return gain / sqrt(getattr(fans(weight), mode))
