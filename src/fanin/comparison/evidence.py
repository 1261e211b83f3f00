"""How surprising the differences of pairs would be if there were nothing: p values, exact for few pairs.

All tests are two-sided and take one array of differences, one number per pair. The exact ones assume no
distribution: if both members of a pair are equally good, each difference could as well have had the other
sign, and so all 2^n ways to set the signs are equally likely. That is also their limit: no p is below
2 / 2^n, and five pairs can never reach .05.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy
from numpy.typing import NDArray
from scipy import special

Array = NDArray[numpy.float64]

ENUMERATED = 16  # pairs up to which all signs are tried, 2^15 up to symmetry; beyond, so many random ones
DRAWS = 2 ** (ENUMERATED - 1)
EQUAL = 1e-12  # relative difference below which two sums are the same number, rounded differently


def sign_flip(differences: Array) -> float:
    """The share of sign patterns whose sum is at least as large as the observed one (Fisher 1935).

    Beyond 16 pairs an estimate from 32,767 random patterns and the observed one, which keeps it valid
    (Phipson and Smyth 2010).
    """
    if not differences.any():
        return 1.0
    sums = numpy.abs(_signs(len(differences)) @ differences)
    observed = abs(differences.sum())
    return float(numpy.mean(sums >= observed - EQUAL * numpy.abs(differences).sum()))


@lru_cache(maxsize=8)
def _signs(n: int) -> Array:
    """Rows of +-1: all patterns that start with +1 (the others mirror them), or the observed and random
    ones."""
    if n <= ENUMERATED:
        bits = (numpy.arange(2 ** (n - 1))[:, None] >> numpy.arange(n)) & 1
    else:
        bits = numpy.random.default_rng(0).integers(0, 2, (DRAWS, n))
        bits[0] = 0
    return 1.0 - 2.0 * bits.astype(numpy.float64)


def signed_rank(differences: Array) -> float:
    """Wilcoxon's signed-rank test, exact with ties too; zeros are ranked, then left out (Pratt 1959).

    The distribution of the sum of positive ranks is built up rank by rank. Ranks are doubled: ties have
    halves.
    """
    _, place, sizes = numpy.unique(numpy.abs(differences), return_inverse=True, return_counts=True)
    ranks = (2 * sizes.cumsum() - sizes + 1)[place]
    ranks, positive = ranks[differences != 0], differences[differences != 0] > 0
    chances = numpy.zeros(ranks.sum() + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    observed = ranks[positive].sum()
    return float(min(1.0, 2 * min(chances[: observed + 1].sum(), chances[observed:].sum())))


def paired_t(differences: Array, *, resolution: float = 0.0) -> float:
    """Student's t test; it takes the differences for normal, and has no smallest p."""
    t = _t(differences, 0.0, resolution)
    return 1.0 if math.isnan(t) else float(2 * special.stdtr(len(differences) - 1, -abs(t)))


EXACT: Mapping[str, Callable[[Array], float]] = {"permutation": sign_flip, "wilcoxon": signed_rank}
TESTS = (*EXACT, "t")


def equivalence(differences: Array, *, margin: float, resolution: float = 0.0) -> float:
    """The p of `the mean difference is outside +-margin`: two one-sided t tests (Schuirmann 1987)."""
    above, below = _t(differences, -margin, resolution), _t(differences, margin, resolution)
    if math.isnan(above) or math.isnan(below):
        return 1.0
    return float(special.stdtr(len(differences) - 1, max(-above, below)))


def _t(differences: Array, mean: float, resolution: float) -> float:
    """(mean(d) - mean) / (s / sqrt(n)); NaN where differences say nothing.

    s is at least that of rounding two values to steps of `resolution`: accuracies of few images are coarse,
    and two or three equal differences would look like certainty.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    distance, spread = differences.mean() - mean, max(differences.std(ddof=1), resolution / math.sqrt(6))
    if spread <= EQUAL * numpy.abs(differences).max():
        return math.copysign(math.inf, distance) if distance else math.nan
    return float(distance / (spread / math.sqrt(n)))


def holm(p_values: Sequence[float] | Array) -> Array:
    """p values that hold for the whole family of comparisons at once (Holm 1979)."""
    values = numpy.asarray(p_values, dtype=float)
    order = numpy.argsort(values, kind="stable")
    adjusted = values.copy()
    steps = values[order] * numpy.arange(len(values), 0, -1)
    adjusted[order] = numpy.minimum(1.0, numpy.maximum.accumulate(steps))
    return adjusted


def fewest(comparisons: int, *, alpha: float) -> int:
    """Replicates from which an exact test can reach `alpha` at all, Holm over so many comparisons."""
    return math.floor(1 + math.log2(comparisons / alpha) - EQUAL) + 1
