"""Closed-form initializers: weights whose scale follows from the layer's shape alone.

Each function fills `weight`, of shape (units out, units in, *kernel), in place and returns nothing. `fan_in`
is the number of inputs of one unit (units in times the kernel's size), `fan_out` the number of units that
one input reaches (units out times the kernel's size).

Every random initializer is a function of one standard-normal draw Z from `generator`: a uniform one is
a (2 Phi(Z) - 1), an orthogonal one the Q of Z = QR. Started from equal generators, two initializers differ by
nothing but what distinguishes them (Xavier and He only by their scale), and comparing them is paired.
`generator` is one of the CPU, wherever the weight lies, so that a GPU starts from the same weights.

Options out of range raise a ConfigError with the key `initializer.<option>`.
"""

from dataclasses import dataclass
from math import isfinite, prod, sqrt

import torch
from torch import Tensor

from fanin.errors import require, unknown


@dataclass(frozen=True)
class Fans:
    fan_in: int
    fan_out: int


def fans(weight: Tensor) -> Fans:
    units_out, units_in, *kernel = weight.shape
    return Fans(fan_in=units_in * prod(kernel), fan_out=units_out * prod(kernel))


def zeros(weight: Tensor, *, generator: torch.Generator) -> None:
    """W = 0: in a ReLU or tanh network without biases, every gradient but that of the output bias is 0."""
    fill(weight, torch.zeros_like(weight))


def ones(weight: Tensor, *, generator: torch.Generator) -> None:
    """W = 1: all units of a layer stay identical."""
    fill(weight, torch.ones_like(weight))


def constant(weight: Tensor, *, generator: torch.Generator, value: float) -> None:
    """W = value: all units of a layer stay identical, an effective width of 1."""
    require_number("value", value)
    fill(weight, torch.full_like(weight, value))


def uniform(weight: Tensor, *, generator: torch.Generator, low: float, high: float) -> None:
    """W ~ U(low, high)."""
    require_number("low", low)
    require_number("high", high)
    require(low < high, "initializer.low", f"must be below initializer.high ({high})", low)
    fill(weight, (low + high) / 2 + (high - low) / 2 * symmetric_uniform(weight, generator))


def normal(weight: Tensor, *, generator: torch.Generator, mean: float, std: float) -> None:
    """W ~ N(mean, std^2), whatever the layer's shape."""
    require_number("mean", mean)
    require_positive("std", std)
    fill(weight, mean + std * standard_normal(weight, generator))


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


def orthogonal(weight: Tensor, *, generator: torch.Generator, gain: float) -> None:
    """W as a matrix (units out, fan_in) is gain times one with orthonormal rows, or columns where it is tall.

    Signs that make R's diagonal positive make the Q of Z = QR uniform over all of these (Mezzadri 2007; as an
    initializer Saxe et al. 2013).
    """
    require_positive("gain", gain)
    # In float64, because the last bits of a float32 factorisation depend on the number of threads.
    z = standard_normal(weight, generator).double().flatten(1)
    wide = z.shape[0] < z.shape[1]
    q, r = torch.linalg.qr(z.T if wide else z)
    q = q * r.diagonal().sign()
    fill(weight, gain * (q.T if wide else q).reshape(weight.shape))


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


def standard_normal(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Z, in float32 whatever the weight's type. On the meta device there is nothing to draw."""
    device = "meta" if weight.is_meta else generator.device
    return torch.randn(weight.shape, generator=generator, device=device, dtype=torch.float32)


def symmetric_uniform(weight: Tensor, generator: torch.Generator) -> Tensor:
    """2 Phi(Z) - 1, which is U(-1, 1)."""
    return torch.erf(standard_normal(weight, generator) / sqrt(2))


@torch.no_grad()
def fill(weight: Tensor, values: Tensor) -> None:
    weight.copy_(values)


def require_number(option: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    require(is_number, f"initializer.{option}", "must be a finite number", value)


def require_positive(option: str, value: float) -> None:
    require_number(option, value)
    require(value > 0, f"initializer.{option}", "must be above 0", value)
