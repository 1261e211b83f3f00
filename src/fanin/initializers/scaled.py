"""Initializers whose scale follows from the layer's fans, so that signals keep their size from layer to layer."""

from math import sqrt

import torch
from torch import Tensor

from fanin.errors import require, unknown
from fanin.initializers.closed_form import (
    fans,
    fill,
    require_number,
    require_positive,
    standard_normal,
    symmetric_uniform,
)
from fanin.initializers.roles import Layer
from fanin.initializers.structured import orthogonal


def xavier_uniform(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W ~ U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fill(weight, sqrt(3) * xavier_std(weight, gain) * symmetric_uniform(weight, generator))


def xavier_normal(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W ~ N(0, gain^2 2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fill(weight, xavier_std(weight, gain) * standard_normal(weight, generator))


def he_uniform(weight: Tensor, *, generator: torch.Generator, gain: float, mode: str, slope: float = 0.0) -> None:
    """W ~ U(-a, a) with a = gain sqrt(3 / ((1 + slope^2) fan)); `mode` says which fan (He et al. 2015)."""
    fill(weight, sqrt(3) * he_std(weight, gain, mode, slope) * symmetric_uniform(weight, generator))


def he_normal(weight: Tensor, *, generator: torch.Generator, gain: float, mode: str, slope: float = 0.0) -> None:
    """W ~ N(0, gain^2 / ((1 + slope^2) fan)); `mode` says which fan (He et al. 2015).

    With a gain of sqrt(2) it is the paper's equation 15: a rectifier that leaks with `slope` passes
    (1 + slope^2) / 2 of the second moment.
    """
    fill(weight, he_std(weight, gain, mode, slope) * standard_normal(weight, generator))


def he_dropout(weight: Tensor, *, generator: torch.Generator, layer: Layer, gain: float) -> None:
    """W ~ N(0, gain^2 (1 - p) / fan_in), where dropout of probability p feeds the layer.

    Inverted dropout multiplies the second moment by 1 / (1 - p), which would blow the signal up layer by layer;
    sqrt(2 (1 - p) / fan_in) is the critical scale of a noisy ReLU network (Pretorius et al. 2018).
    """
    require_positive("gain", gain)
    std = gain * sqrt((1 - layer.dropout) / fans(weight).fan_in)
    fill(weight, std * standard_normal(weight, generator))


def lecun_normal(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ N(0, 1 / fan_in) (LeCun et al. 1998); what SELU's fixed point requires (Klambauer et al. 2017)."""
    fill(weight, standard_normal(weight, generator) / sqrt(fans(weight).fan_in))


def lecun_uniform(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ U(-a, a) with a = sqrt(3 / fan_in), of the variance 1 / fan_in (LeCun et al. 1998)."""
    fill(weight, sqrt(3 / fans(weight).fan_in) * symmetric_uniform(weight, generator))


def kumar_sigmoid(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ N(0, 12.8 / fan_in), a std of 3.58 / sqrt(fan_in): keeps the variance through sigmoids (Kumar 2017).

    An activation g, linearised at 0, keeps it if Var(W) = 1 / (fan_in g'(0)^2 (1 + g(0)^2)); a sigmoid has
    g(0) = 1/2 and g'(0) = 1/4.
    """
    fill(weight, sqrt(12.8 / fans(weight).fan_in) * standard_normal(weight, generator))


def torch_default(weight: Tensor, *, generator: torch.Generator) -> None:
    """W ~ U(-a, a) with a = 1 / sqrt(fan_in): what torch.nn.Linear and Conv2d do when left alone.

    Its variance, 1 / (3 fan_in), is the "standard" heuristic that Glorot and Bengio (2010) argue against.
    """
    fill(weight, symmetric_uniform(weight, generator) / sqrt(fans(weight).fan_in))


def edge_of_chaos(
    weight: Tensor, *, bias: Tensor | None, generator: torch.Generator, sigma_w: float, sigma_b: float, weights: str
) -> None:
    """W of variance sigma_w^2 / fan_in and b ~ N(0, sigma_b^2): the plane of mean field theory.

    Signals reach any depth where sigma_w^2 E[phi'^2] = 1, on the line between order, where all inputs become
    alike, and chaos (Poole et al. 2016, Schoenholz et al. 2017). `weights` are normal, or orthogonal, which on
    that line lets tanh networks learn in a time independent of depth (Pennington et al. 2017).
    """
    require_positive("sigma_w", sigma_w)
    require_number("sigma_b", sigma_b)
    require(sigma_b >= 0, "initializer.sigma_b", "must be at least 0", sigma_b)
    if weights not in ("normal", "orthogonal"):
        raise unknown("initializer.weights", weights, ["normal", "orthogonal"])
    fan_in = fans(weight).fan_in
    if weights == "orthogonal":  # of variance gain^2 / max(units out, fan_in)
        orthogonal(weight, generator=generator, gain=sigma_w * sqrt(max(1.0, len(weight) / fan_in)))
    else:
        fill(weight, sigma_w / sqrt(fan_in) * standard_normal(weight, generator))
    if bias is not None:
        fill(bias, sigma_b * standard_normal(bias, generator))


def xavier_std(weight: Tensor, gain: float) -> float:
    """gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010). Raises ConfigError for a gain of 0 or less."""
    require_positive("gain", gain)
    fan = fans(weight)
    return gain * sqrt(2 / (fan.fan_in + fan.fan_out))


def he_std(weight: Tensor, gain: float, mode: str, slope: float) -> float:
    """gain / sqrt((1 + slope^2) fan), of the fan that `mode` names (He et al. 2015); a ConfigError for another."""
    require_positive("gain", gain)
    require_number("slope", slope)
    if mode not in ("fan_in", "fan_out"):
        raise unknown("initializer.mode", mode, ["fan_in", "fan_out"])
    return gain / sqrt((1 + slope**2) * getattr(fans(weight), mode))
