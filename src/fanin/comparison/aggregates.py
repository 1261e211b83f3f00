"""Numbers that sum up levels, defined as in rliable (Agarwal et al. 2021), and what a budget buys."""

import numpy
from numpy.typing import NDArray
from scipy import special

Array = NDArray[numpy.float64]


def iqm(values: Array) -> Array:
    """The interquartile mean: of the middle half of the values along the last axis."""
    cut = values.shape[-1] // 4
    return numpy.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def improvement(first: Array, second: Array) -> float:
    """The probability that a run of `first` has a larger value than a run of `second`, ties counting half
    (Mann and Whitney's U / (n m)); each of (blocks, replicates), and the mean over blocks."""
    difference = first[:, :, None] - second[:, None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def expected_best(values: Array) -> Array:
    """For n = 1, 2, ..., N of the N `values`: the mean of the largest of n drawn without replacement,

        sum over i of v_(i) C(i - 1, n - 1) / C(N, n)      with v_(1) <= ... <= v_(N),

    which is the unbiased estimate of the largest of n new values. The usual one (Dodge et al. 2019) draws
    with replacement, and so is too low.
    """
    ordered = numpy.sort(values)
    size = len(ordered)
    i, n = numpy.arange(1, size + 1)[None, :], numpy.arange(1, size + 1)[:, None]
    with numpy.errstate(divide="ignore"):
        logarithms = _log_choose(i - 1, n - 1) - _log_choose(size, n)
    return numpy.exp(logarithms) @ ordered


def _log_choose(n: NDArray[numpy.int64] | int, k: NDArray[numpy.int64]) -> Array:
    """-infinity where k > n."""
    within = numpy.maximum(n - k, -1)  # gammaln has its pole where k > n
    return special.gammaln(numpy.add(n, 1)) - special.gammaln(k + 1) - special.gammaln(within + 1.0)
