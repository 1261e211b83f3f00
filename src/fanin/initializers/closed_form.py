"""Fixed initializers, whatever the layer's shape, and what all closed forms are made of.

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

from fanin.errors import require


@dataclass(frozen=True)
class Fans:
    """How many inputs a unit has, and how many units an input reaches."""

    fan_in: int
    fan_out: int


def fans(weight: Tensor) -> Fans:
    """The fans of a weight of shape (units out, units in, *kernel)."""
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


def trunc_normal(weight: Tensor, *, generator: torch.Generator, mean: float, std: float, bound: float) -> None:
    """W ~ N(mean, std^2), cut off `bound` standard deviations from the mean (of std 0.8796 `std` for a bound of 2).

    The cut is relative, as in TensorFlow and JAX; torch.nn.init.trunc_normal_ takes absolute bounds, so that its
    defaults of -2 and 2 cut nothing off a std of 0.02. By inversion: Phi^-1(Phi(-b) + (Phi(b) - Phi(-b)) Phi(Z)).
    """
    require_number("mean", mean)
    require_positive("std", std)
    require_positive("bound", bound)
    z = standard_normal(weight, generator).double()  # in float32 the tails of Phi are coarse
    low = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
    cut = torch.special.ndtri(low + (1 - 2 * low) * torch.special.ndtr(z))
    fill(weight, mean + std * cut.clamp(-bound, bound))


def standard_normal(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Z, in float32 whatever the weight's type. On the meta device there is nothing to draw."""
    device = "meta" if weight.is_meta else generator.device
    return torch.randn(weight.shape, generator=generator, device=device, dtype=torch.float32)


def symmetric_uniform(weight: Tensor, generator: torch.Generator) -> Tensor:
    """2 Phi(Z) - 1, which is U(-1, 1)."""
    return torch.erf(standard_normal(weight, generator) / sqrt(2))


@torch.no_grad()
def fill(weight: Tensor, values: Tensor) -> None:
    """Copy `values` into `weight`, whatever its type and device; autograd does not hear of it."""
    weight.copy_(values)


def require_number(option: str, value: object) -> None:
    """Raise a ConfigError for an option that is no finite number; True and False are none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    require(is_number, f"initializer.{option}", "must be a finite number", value)


def require_positive(option: str, value: float) -> None:
    """Raise a ConfigError for an option that is no finite number above 0."""
    require_number(option, value)
    require(value > 0, f"initializer.{option}", "must be above 0", value)
