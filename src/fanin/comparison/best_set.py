"""Which levels may be the best one: the model confidence set."""

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]

ARRANGEMENTS = 999  # random ones, besides the observed
FLOOR = 1e-9  # of the largest deviation: below this, two columns have the same spread of differences, none


def best_set(losses: Array) -> Array:
    """For each column of `losses` (replicates, levels; less is better) its p: the set of columns with p > 1
    - c holds a best one with confidence c (the model confidence set of Hansen, Lunde and Nason, 2011).

    As long as the columns still in differ (the largest t of two of them is too large), the one that is worse
    than the others by the largest mean t is taken out; its p is the largest that any test had till then. If
    all columns in are equally good, their values could as well be swapped within a replicate: that gives the
    test's distribution, here from 999 random arrangements.

    The usual bootstrap (Python's arch) needs long series: with 9 equal columns its "95 %" set held all of
    them in 19 % of simulated studies with 5 replicates, and in 59 % with 10. This one did in 93 to 97 % with
    2 to 12 replicates, and in 90 to 95 % where the spreads differed by a factor of 8.
    """
    replicates, levels = losses.shape
    if replicates < 2 or levels < 2:
        return numpy.ones(levels)
    generator = numpy.random.default_rng(0)
    inside, found, largest = list(range(levels)), numpy.ones(levels), 0.0
    while len(inside) > 1:
        worst, p = _test(losses[:, inside], generator)
        largest = max(largest, p)
        found[inside.pop(worst)] = largest
    found[inside] = 1.0
    return found


def _test(losses: Array, generator: numpy.random.Generator) -> tuple[int, float]:
    """The column to take out, and the p of all columns being equally good."""
    deviations = losses - losses.mean(axis=1, keepdims=True)
    drawn = numpy.broadcast_to(deviations, (ARRANGEMENTS, *deviations.shape))
    arranged = numpy.concatenate([deviations[None], generator.permuted(drawn, axis=2)])
    t = _pairwise_t(arranged)
    largest = t.max(axis=(1, 2))
    return int(t[0].sum(axis=1).argmax()), float(numpy.mean(largest >= largest[0] * (1 - FLOOR)))


def _pairwise_t(arranged: Array) -> Array:
    """(arrangements, levels, levels): how much larger column i is than column j, in standard errors."""
    n = arranged.shape[1]
    products = arranged.transpose(0, 2, 1) @ arranged
    squares = numpy.diagonal(products, axis1=1, axis2=2)
    means = arranged.mean(axis=1)
    differences = means[:, :, None] - means[:, None, :]
    spread = (squares[:, :, None] + squares[:, None, :] - 2 * products) / n - differences**2
    floor = (FLOOR * numpy.abs(arranged[0]).max()) ** 2 + numpy.finfo(float).tiny
    return differences / numpy.sqrt(numpy.maximum(spread, 0.0) + floor)


def members(p_values: Sequence[float] | Array, *, confidence: float) -> NDArray[numpy.bool_]:
    """Which levels are in the set: their p-values (levels,) exceed 1 - `confidence`."""
    return numpy.asarray(p_values) > 1 - confidence
