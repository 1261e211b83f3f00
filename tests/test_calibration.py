"""Whether the statistics keep their promises: simulated studies of which the truth is known."""

import math

import numpy
import pandas
import pytest

from fanin.comparison import intervals
from fanin.comparison.best_set import best_set
from fanin.comparison.contrasts import Rules, contrasts, ranked_pairs
from fanin.comparison.intervals import mean_intervals
from fanin.comparison.pairing import Scores, in_common


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The intervals do not decide; those that are tested are drawn anew below."""
    monkeypatch.setattr(intervals, "RESAMPLES", 99)


def study(values):
    """Scores of a study whose `values` are (levels, replicates)."""
    levels, replicates = values.shape
    return Scores(
        by="initializer",
        within=(),
        levels=tuple("abcdefghi"[:levels]),
        blocks=pandas.DataFrame(),
        replicates=tuple(range(replicates)),
        values=values[:, None, :],
    )


def accuracies(rng, *, levels, replicates, rho=0.5, sd=0.006, images=1000):
    """Equally good levels that share a part of their noise, counted in images."""
    noise = math.sqrt(rho) * rng.normal(size=replicates) + math.sqrt(1 - rho) * rng.normal(size=(levels, replicates))
    return numpy.round((0.94 + sd * noise) * images) / images


def judged(values, *, test="permutation"):
    rules = Rules(sign=1, test=test, confidence=0.95, margin=None)
    scores = study(values)
    return contrasts(scores, ranked_pairs(scores, rules), rules)


def false_positives(*, studies, levels, replicates, test="permutation"):
    """Studies of equally good levels in which some level is called better or worse; and in which the set that
    should hold the best leaves one out."""
    rng = numpy.random.default_rng(levels)
    verdicts = left_out = 0
    for _ in range(studies):
        values = accuracies(rng, levels=levels, replicates=replicates)
        verdicts += bool((judged(values, test=test)["verdict"] != "undecided").any())
        left_out += bool((best_set(-in_common(study(values))) <= 0.05).any())
    return verdicts / studies, left_out / studies


def at_most(rate, *, studies, deviations=3.0):
    """`rate` and what chance adds to it."""
    return rate + deviations * math.sqrt(rate * (1 - rate) / studies)


def test_equal_levels_are_seldom_told_apart():
    for rate in false_positives(studies=200, levels=3, replicates=8):
        assert rate <= at_most(0.05, studies=200)


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "replicates"), [(2, 10), (3, 10), (5, 12)])
@pytest.mark.parametrize("test", ["permutation", "wilcoxon", "t"])
def test_equal_levels_are_told_apart_in_at_most_5_percent_of_2000_studies(levels, replicates, test):
    for rate in false_positives(studies=2000, levels=levels, replicates=replicates, test=test):
        assert rate <= at_most(0.05, studies=2000, deviations=2.5)


def drawn(shape, kind, rng):
    """Differences of mean 0."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "coarse":
        return numpy.round(rng.normal(0, 0.004, shape), 3)
    return numpy.euler_gamma - rng.gumbel(size=shape) + rng.normal(size=shape)  # skewed


@pytest.mark.parametrize("kind", ["normal", "coarse", "skewed"])
@pytest.mark.parametrize("n", [5, 8, 10, 20])
def test_95_percent_intervals_cover_the_truth_in_92_to_98_percent(kind, n, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rows = drawn((2000, n), kind, numpy.random.default_rng(n))
    found = mean_intervals(rows, confidence=0.95)
    assert 0.92 <= numpy.mean((found.low <= 0) & (found.high >= 0)) <= 0.98


def power(*, replicates, effect, studies, test="permutation"):
    """How often two levels are told apart whose difference is `effect` times the sd of their differences."""
    rng = numpy.random.default_rng(replicates)
    found = 0
    for _ in range(studies):
        common = rng.normal(size=replicates)
        better = common + effect + rng.normal(size=replicates)
        found += judged(numpy.stack([common, better]), test=test)["verdict"][0] == "worse"
    return found / studies


# Detectable with a power of .8 at the 5 % level by the paired t test, in units of the sd of the differences.
DETECTABLE = {8: 1.16, 10: 1.00, 15: 0.78, 20: 0.66}


def test_a_difference_of_one_sd_is_found_with_10_replicates_in_four_of_five_studies():
    assert abs(power(replicates=10, effect=1.0, studies=200) - 0.8) < 0.05 + 3 * math.sqrt(0.16 / 200)


@pytest.mark.slow
@pytest.mark.parametrize(("replicates", "effect"), DETECTABLE.items())
@pytest.mark.parametrize("test", ["permutation", "wilcoxon", "t"])
def test_planted_differences_are_found_as_often_as_theory_says(replicates, effect, test):
    assert abs(power(replicates=replicates, effect=effect, studies=1000, test=test) - 0.8) < 0.05
