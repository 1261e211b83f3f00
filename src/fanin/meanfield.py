"""What theory says of wide random networks, without drawing one: lengths, correlations, gradients over depth.

Layer l computes z_l = W_l phi(z_{l-1}) + b_l with independent weights of variance sigma_w^2 / fan_in and biases of
variance sigma_b^2. In the limit of many units, z is Gaussian, and depth is an iterated map (Poole et al. 2016,
Schoenholz et al. 2017):

    length       q_l = sigma_w^2 E[phi(sqrt(q_{l-1}) z)^2] / keep + sigma_b^2                     z ~ N(0, 1)
    gradient     |dL/dz_l|^2 = chi |dL/dz_{l+1}|^2,  chi = sigma_w^2 E[phi'(sqrt(q_l) z)^2] / keep
    correlation  c_l = (sigma_w^2 E[phi(u_1) phi(u_2)] + sigma_b^2) / q*       (u_1, u_2) Gaussian, length q*, cos c

`keep` is the probability with which inverted dropout keeps a unit (Pretorius et al. 2018: a ReLU network is then
critical at sigma_w^2 = 2 keep). Two inputs have independent masks, so their correlation gains nothing by it.

An activation is any elementwise function of torch, such as `torch.tanh` or `nn.GELU()`; expectations are sums over
fixed nodes in float64 (Gauss and Legendre's, in panels that meet at 0, where activations have their kinks).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy
import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

EDGES = (0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 3.5, 6.0, 10.0)  # of panels: fine at 0, where large q puts all
NODES = 12  # a panel
ANGLES = 40  # a sector
VAST, TINY = 1e12, 1e-12  # lengths that count as infinite, and as zero
STEPS = 60  # of bisection


@dataclass(frozen=True)
class Moments:
    """E[phi], E[phi^2] and E[phi'^2] of a Gaussian z: tensors of the shape of its mean and length."""

    mean: Tensor
    square: Tensor
    slope: Tensor


def moments(phi: Activation, length: Tensor, *, mean: Tensor | float = 0.0) -> Moments:
    """For z ~ N(mean, length - mean^2), one expectation for each entry; `length` is E[z^2]."""
    z, weight = _gaussian()
    mean = torch.as_tensor(mean, dtype=torch.float64).expand(length.shape)
    spread = (length.double() - mean.square()).clamp(min=0).sqrt()
    x = mean[..., None] + spread[..., None] * z
    value, slope = _with_slope(phi, x)
    return Moments(value @ weight, value.square() @ weight, slope.square() @ weight)


def unit_gain(phi: Activation) -> float:
    """The sigma_w that keeps length 1: 1 / sqrt(E[phi(z)^2]); sqrt(2) for ReLU, 1.5925 for tanh."""
    return 1 / math.sqrt(_at(phi, 1.0).square)


def length_map(phi: Activation, q: float, *, sigma_w2: float, sigma_b2: float = 0.0, keep: float = 1.0) -> float:
    """q_l from q_{l-1} = `q`: mean squares of a layer's z, as the module's table defines them."""
    return sigma_w2 * float(_at(phi, q).square) / keep + sigma_b2


def gradient_gain(phi: Activation, q: float, *, sigma_w2: float, keep: float = 1.0) -> float:
    """chi at length q. Equal to chi_1, by which nearby inputs part, where there is no dropout."""
    return sigma_w2 * float(_at(phi, q).slope) / keep


def correlation_map(phi: Activation, c: float, *, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """c_l from c_{l-1}, for two inputs of length q, which is q*."""
    return (sigma_w2 * _product(phi, c, q).value + sigma_b2) / q


def batch_norm_gain(phi: Activation) -> float:
    """Growth of the squared gradient a layer of depth of a network with batch norm: E[phi'^2] / Var[phi].

    Batch norm divides by the spread over the batch, where inputs are uncorrelated in the limit of depth. For ReLU
    it is pi / (pi - 1) = 1.467 (Yang et al. 2019): these networks explode, whatever their initializer.
    """
    found = _at(phi, 1.0)
    return float(found.slope / (found.square - found.mean.square()))


def relu_shift(*, depth: int, width: int) -> float:
    """The median of log(q_L / q_0) of a ReLU network under He's initializer, -5 L / (2 n): its mean length stays,
    but few narrow networks have it (Hanin and Rolnick 2018)."""
    return -2.5 * depth / width


@dataclass(frozen=True)
class FixedPoint:
    """Where depth leads: length q (0 and infinity included), correlation c, and how fast.

    chi_1: gradient gain a layer (> 1: chaos, gradients explode; < 1: order, they vanish). xi_c and xi_q: the
    number of layers in which correlation and length come closer to their limits by a factor e; infinite at
    criticality. Networks train up to a depth of about 6 xi_c (Schoenholz et al. 2017).
    """

    q: float
    chi_1: float
    c: float
    xi_c: float
    xi_q: float


def fixed_point(phi: Activation, *, sigma_w2: float, sigma_b2: float = 0.0, keep: float = 1.0) -> FixedPoint:
    """The limit of depth from length 1. Where the length vanishes or explodes there is no correlation: NaN."""
    q = _fixed_length(phi, sigma_w2=sigma_w2, sigma_b2=sigma_b2, keep=keep)
    if q in (0.0, math.inf):
        edge = TINY if q == 0 else VAST
        return FixedPoint(q, gradient_gain(phi, edge, sigma_w2=sigma_w2), math.nan, math.nan, math.nan)
    chi_1 = gradient_gain(phi, q, sigma_w2=sigma_w2)
    c = _fixed_correlation(phi, q, chi_1=chi_1, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    chi_c = chi_1 if c == 1 else sigma_w2 * _product(phi, c, q).slope
    return FixedPoint(q, chi_1, c, depth_scale(chi_c), depth_scale(sigma_w2 * _growth(phi, q) / keep))


def depth_scale(chi: float) -> float:
    """Layers for a factor e, of what a layer multiplies by chi: 1 / |ln chi|."""
    return math.inf if abs(chi - 1) < 1e-9 else 0.0 if chi <= 0 else 1 / abs(math.log(chi))


def critical_sigma_w2(phi: Activation, *, sigma_b2: float = 0.0) -> float:
    """The sigma_w^2 at which chi_1 = 1: the edge of chaos. 1.761 for tanh at sigma_b^2 = 0.05, 2 for ReLU.

    On the edge a length q belongs to sigma_w^2 = 1 / E[phi'^2] and sigma_b^2 = q - E[phi^2] / E[phi'^2]; q is
    found by bisection (Hayou et al. 2019, algorithm 1). From other lengths depth may lead elsewhere: under GELU and
    SiLU long signals grow there. Raises ValueError where no q gives this sigma_b^2: a
    ReLU's edge is the single point (2, 0).
    """

    def bias(q: float) -> float:
        found = _at(phi, q)
        return q - float(found.square / found.slope)

    low, high = 1e-6, 1e4
    if abs(bias(1.0)) < 1e-9 and sigma_b2 == 0:  # every length is kept there
        return 1 / float(_at(phi, 1.0).slope)
    if not bias(low) <= sigma_b2 <= bias(high):
        if sigma_b2 == 0:
            return 1 / float(_at(phi, low**2).slope)  # the edge begins at q = 0
        raise ValueError(f"no sigma_w is critical at sigma_b^2 = {sigma_b2:g}")
    return 1 / float(_at(phi, _bisect(lambda q: bias(q) - sigma_b2, low, high)).slope)


def _fixed_length(phi: Activation, **scales: float) -> float:
    """The stable fixed point of the length map that length 1 flows to."""

    def excess(q: float) -> float:
        return length_map(phi, q, **scales) / q - 1

    first = excess(1.0)
    if abs(first) < TINY:
        return 1.0
    q = 1.0
    while excess(q) * first > 0:  # go the way it flows until it flows back
        q *= 4.0 if first > 0 else 0.25
        if not TINY < q < VAST:
            return math.inf if first > 0 else 0.0
    return _bisect(lambda value: -excess(value), *sorted([1.0, q]))


def _fixed_correlation(phi: Activation, q: float, *, chi_1: float, sigma_w2: float, sigma_b2: float) -> float:
    """Where the correlation map crosses the diagonal from above: at 1 in the ordered phase, below it in chaos."""

    def excess(c: float) -> float:
        return correlation_map(phi, c, q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2) - c

    if chi_1 <= 1 and abs(excess(1.0)) < 1e-9:
        return 1.0
    return 0.0 if excess(0.0) <= TINY else _bisect(lambda c: -excess(c), 0.0, 1 - 1e-6)


def _growth(phi: Activation, q: float) -> float:
    """d E[phi^2] / dq = E[phi phi' z] / sqrt(q), which is E[phi'' phi + phi'^2] where phi'' exists."""
    z, weight = _gaussian()
    value, slope = _with_slope(phi, math.sqrt(q) * z)
    return float((value * slope * z) @ weight) / math.sqrt(q)


@dataclass(frozen=True)
class _Product:
    value: float  # E[phi(u_1) phi(u_2)]
    slope: float  # E[phi'(u_1) phi'(u_2)]


def _product(phi: Activation, c: float, q: float) -> _Product:
    """In polar coordinates, where u_1 = sqrt(q) r cos(t) and u_2 = sqrt(q) r cos(t - acos c): both have their kinks
    on rays, between which everything is smooth."""
    angle = math.acos(max(-1.0, min(1.0, c)))
    half = math.pi / 2
    rays = [angle - half, half, angle + half, 3 * half, angle + 3 * half]
    sectors = [_legendre((a, b), ANGLES) for a, b in zip(rays[:-1], rays[1:], strict=True)]
    t, share = (torch.cat(parts) for parts in zip(*sectors, strict=True))
    r, weight = _legendre(EDGES, NODES)
    weight = weight * r * torch.exp(-r.square() / 2)
    radius = math.sqrt(q) * r[:, None]
    first, slope_first = _with_slope(phi, radius * t.cos())
    second, slope_second = _with_slope(phi, radius * (t - angle).cos())
    value, slope = (float(weight @ (one * two) @ share) / (2 * math.pi)
                    for one, two in ((first, second), (slope_first, slope_second)))  # fmt: skip
    return _Product(value, slope)


def _at(phi: Activation, q: float) -> Moments:
    return moments(phi, torch.tensor(q, dtype=torch.float64))


def _with_slope(phi: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = phi(x)
        slope = torch.autograd.grad(value.sum(), x)[0] if value.requires_grad else torch.zeros_like(x)
    return value.detach(), slope


@cache
def _gaussian() -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(z)] for z ~ N(0, 1)."""
    z, weight = _legendre(EDGES, NODES)
    weight = weight * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.cat([-z.flip(0), z]), torch.cat([weight.flip(0), weight])


@cache
def _unit(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = numpy.polynomial.legendre.leggauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _legendre(edges: tuple[float, ...], count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of an integral over panels with these edges, `count` nodes in each."""
    node, weight = _unit(count)
    low, high = (torch.tensor(ends, dtype=torch.float64)[:, None] for ends in (edges[:-1], edges[1:]))
    return ((low + high) / 2 + (high - low) / 2 * node).flatten(), ((high - low) / 2 * weight).flatten()


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function is 0."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2
