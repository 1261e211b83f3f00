"""The numbers of a comparison, against scipy, statsmodels, enumeration and definitions written out."""

import itertools
import math

import numpy
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from fanin.comparison.aggregates import expected_best, improvement, iqm
from fanin.comparison.best_set import best_set
from fanin.comparison.evidence import equivalence, fewest, holm, paired_t, sign_flip, signed_rank
from fanin.comparison.intervals import expanded, mean_intervals


def random_differences(n, *, seed=0, shift=0.7):
    return numpy.random.default_rng(seed).normal(shift, 1, n)


def lattice_differences(n, *, seed=0):
    """Like those of accuracies of few images: with ties, and with zeros."""
    return numpy.random.default_rng(seed).integers(-2, 5, n) / 100


@pytest.mark.parametrize("draw", [random_differences, lattice_differences])
@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_the_sign_flip_test_is_scipys_exact_permutation_test(draw, n):
    for seed in range(5):
        d = draw(n, seed=seed)
        found = stats.permutation_test(
            (d,), numpy.mean, permutation_type="samples", vectorized=True, n_resamples=numpy.inf
        )
        assert sign_flip(d) == pytest.approx(found.pvalue)


def test_one_pair_says_nothing():
    one = numpy.array([0.3])
    assert sign_flip(one) == signed_rank(one) == paired_t(one) == equivalence(one, margin=1.0) == 1.0


def test_the_sign_flip_test_counts_all_ways_to_set_the_signs():
    d = numpy.array([0.3, -0.1, 0.2, 0.25])
    sums = [abs(numpy.dot(signs, d)) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip(d) == sum(s >= abs(d.sum()) - 1e-12 for s in sums) / 16 == 4 / 16


def test_beyond_16_pairs_random_signs_estimate_the_exact_p():
    d = numpy.arange(1, 21) * numpy.where(numpy.arange(20) % 3 == 0, -1.0, 1.0)  # so flips are ranks
    exact = stats.wilcoxon(d, method="exact").pvalue
    assert sign_flip(d) == pytest.approx(exact, abs=4 * math.sqrt(exact / 2**15))
    assert sign_flip(numpy.full(40, 0.1)) > 0, "the observed pattern is one of those counted"


@pytest.mark.parametrize("n", [1, 5, 9, 30])
def test_the_signed_rank_test_is_scipys_exact_wilcoxon(n):
    for seed in range(5):
        d = random_differences(n, seed=seed)
        assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)


def test_with_ties_and_zeros_it_stays_exact():
    every = stats.PermutationMethod(n_resamples=numpy.inf)
    for seed in range(8):
        d = lattice_differences(9, seed=seed)
        assert signed_rank(d) == pytest.approx(stats.wilcoxon(d, zero_method="pratt", method=every).pvalue)


def test_differences_that_are_all_zero_are_no_evidence():
    nothing = numpy.zeros(10)
    assert sign_flip(nothing) == signed_rank(nothing) == paired_t(nothing) == 1.0


def test_the_t_test_is_scipys():
    d = random_differences(7)
    assert paired_t(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


@pytest.mark.parametrize("margin", [0.05, 0.5, 2.0])
def test_equivalence_is_statsmodels_tost(margin):
    first, second = random_differences(12, seed=1), random_differences(12, seed=2)
    assert equivalence(first - second, margin=margin) == pytest.approx(ttost_paired(first, second, -margin, margin)[0])


def test_few_equal_differences_are_no_certainty_on_a_coarse_scale():
    d = numpy.array([0.001, 0.001])  # one image of a thousand, twice
    assert paired_t(d) == equivalence(d, margin=0.002) == 0.0  # as if the spread were known to be 0
    assert paired_t(d, resolution=0.001) > 0.05 and equivalence(d, margin=0.002, resolution=0.001) > 0.05
    assert equivalence(numpy.zeros(5), margin=0.002, resolution=0.001) < 0.001


@pytest.mark.parametrize("size", [1, 2, 7])
def test_holms_correction_is_statsmodels(size):
    p = numpy.random.default_rng(size).uniform(0, 0.2, size)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_the_fewest_replicates_are_those_of_the_largest_family_that_can_reach_the_level():
    largest = {
        6: 1,
        7: 3,
        8: 6,
        9: 12,
        10: 25,
    }  # by n: the most comparisons with 2 / 2^n * comparisons <= .05
    for n, comparisons in largest.items():
        assert fewest(comparisons, alpha=0.05) == n and fewest(comparisons + 1, alpha=0.05) == n + 1
        d = random_differences(n, shift=100)
        assert max(sign_flip(d), signed_rank(d)) * comparisons <= 0.05


def test_the_interval_of_few_values_is_students():
    d = random_differences(7)
    found, expected = mean_intervals(d[None], confidence=0.95), stats.ttest_1samp(d, 0).confidence_interval()
    assert found.method == "t" and (found.low[0], found.high[0]) == pytest.approx(tuple(expected))


def test_the_interval_of_eight_and_more_is_scipys_bca_at_the_expanded_level():
    rows = numpy.stack([random_differences(10, seed=seed) ** 3 for seed in range(3)])
    found = mean_intervals(rows, confidence=0.95)
    for i, d in enumerate(rows):
        level = 1 - 2 * stats.norm.cdf(-math.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
        rng = numpy.random.default_rng(0)
        expected = stats.bootstrap((d,), numpy.mean, confidence_level=level, method="BCa", rng=rng)
        assert found.method == "BCa"
        # the few resamples that are the sample in another order are put to either side by rounding in scipy
        assert (found.low[i], found.high[i]) == pytest.approx(tuple(expected.confidence_interval), rel=2e-3)


def test_expanding_makes_up_for_what_the_bootstrap_of_few_normal_values_lacks():
    """A percentile interval is mean +- z s sqrt((n - 1) / n) / sqrt(n); it should be +- t s / sqrt(n)."""
    z = stats.norm.ppf((1 + expanded(0.95, n=10)) / 2)
    assert z * math.sqrt(9 / 10) == pytest.approx(stats.t.ppf(0.975, 9))
    assert expanded(0.95, n=10**6) == pytest.approx(0.95, abs=1e-5)


def test_equal_differences_have_an_interval_without_width():
    rows = numpy.stack([numpy.full(10, 0.1), random_differences(10)])
    found = mean_intervals(rows, confidence=0.95)
    assert found.low[0] == found.high[0] == pytest.approx(0.1) and found.low[1] < found.high[1]


@pytest.mark.parametrize(("n", "method"), [(7, "t"), (8, "BCa")])
def test_the_bootstrap_takes_over_at_eight_values(n, method):
    assert mean_intervals(random_differences(n)[None], confidence=0.95).method == method


def test_one_value_has_no_interval():
    assert numpy.isnan(mean_intervals(numpy.ones((1, 1)), confidence=0.95).low[0])


def test_the_iqm_is_the_mean_of_the_middle_half():
    """rliable: of all runs and tasks together, a quarter (rounded down) cut off at each end."""
    assert iqm(numpy.array([8.0, 1, 2, 100, 3, 4, 7, -50])) == (2 + 3 + 4 + 7) / 4
    assert iqm(numpy.array([1.0, 2, 9])) == 4.0
    rows = numpy.random.default_rng(0).normal(size=(4, 11))
    assert iqm(rows) == pytest.approx(stats.trim_mean(rows, proportiontocut=0.25, axis=1))


def test_the_probability_of_improvement_counts_all_pairs_of_runs_and_averages_over_tasks():
    rng = numpy.random.default_rng(0)
    first, second = rng.integers(0, 5, (3, 4)).astype(float), rng.integers(0, 5, (3, 6)).astype(float)
    tasks = [sum((x > y) + (x == y) / 2 for x in xs for y in ys) / 24 for xs, ys in zip(first, second, strict=True)]
    assert improvement(first, second) == pytest.approx(sum(tasks) / 3)
    u = stats.mannwhitneyu(first[0], second[0]).statistic
    assert improvement(first[:1], second[:1]) == pytest.approx(u / 24)


@pytest.mark.parametrize(("runs", "tasks"), [(5, 1), (7, 3), (10, 6)])
def test_iqm_and_probability_of_improvement_are_rliables(runs, tasks):
    """By its definitions, written down here: its requirements clash with ours. rliable 1.2.0 itself gave the same to
    2e-16 on 1,000 draws like these."""
    rng = numpy.random.default_rng(0)
    for _ in range(20):
        x, y = rng.normal(size=(runs, tasks)).round(1), rng.normal(size=(runs + 2, tasks)).round(1)
        assert iqm(x.ravel()) == pytest.approx(stats.trim_mean(x, proportiontocut=0.25, axis=None))
        pairs = zip(x.T, y.T, strict=True)
        chances = [stats.mannwhitneyu(a, b, alternative="greater").statistic / (runs * (runs + 2)) for a, b in pairs]
        assert improvement(x.T, y.T) == pytest.approx(numpy.mean(chances))


def test_the_expected_best_of_n_is_the_mean_over_all_subsets():
    values = numpy.random.default_rng(0).normal(size=7)
    for n, found in enumerate(expected_best(values), 1):
        subsets = list(itertools.combinations(values, n))
        assert found == pytest.approx(sum(map(max, subsets)) / len(subsets))


def test_the_expected_best_of_n_is_unbiased():
    """The largest of 3 uniform numbers is 3/4 on average; drawing from 8 with replacement says too little."""
    samples = numpy.random.default_rng(0).uniform(size=(4000, 8))
    unbiased = [expected_best(sample)[2] for sample in samples]
    assert abs(numpy.mean(unbiased) - 0.75) < 3 * numpy.std(unbiased) / math.sqrt(4000)
    ranks = numpy.arange(9) / 8
    dodge = numpy.sort(samples, axis=1) @ numpy.diff(ranks**3)
    assert dodge.mean() < 0.72


def test_thousands_of_tries_do_not_overflow():
    assert numpy.isfinite(expected_best(numpy.arange(2000.0))).all()
    assert expected_best(numpy.arange(2000.0))[-1] == pytest.approx(1999)


def test_of_two_levels_the_best_set_decides_as_the_sign_flip_test():
    for shift in (0.2, 0.5, 0.8):
        d = random_differences(9, shift=shift)
        common = random_differences(9, seed=3)
        p = best_set(numpy.stack([common + d, common], axis=1))
        exact = sign_flip(d)
        assert p.argmax() == (1 if d.sum() > 0 else 0) and p.max() == 1.0
        assert p.min() == pytest.approx(exact, abs=0.002 + 4 * math.sqrt(exact * (1 - exact) / 1000))


def test_the_best_set_leaves_out_what_is_clearly_worse_and_says_nothing_of_equals():
    rng = numpy.random.default_rng(0)
    losses = rng.normal(0, 0.01, (5, 6))
    losses[:, 0] += 1.0
    losses[:, 1] = 0.9  # as one that diverges each time
    p = best_set(losses)
    assert (p[:2] < 0.05).all() and (p[2:] > 0.05).all() and p.max() == 1.0


def test_a_wild_bad_level_does_not_make_equal_ones_look_different():
    wrong = 0
    for seed in range(60):
        rng = numpy.random.default_rng(seed)
        losses = rng.normal(0, 0.01, (5, 7))
        losses[:, 0] = 50 + 30 * rng.normal(size=5)
        wrong += bool((best_set(losses)[1:] <= 0.05).any())
    assert wrong <= 8  # 3 expected; the binomial chance of more than 8 is 1 %


def test_what_is_taken_out_later_is_no_less_likely_to_be_the_best(monkeypatch):
    steps = iter([(2, 0.4), (0, 0.1)])  # the column to take out, and the test's p
    monkeypatch.setattr("fanin.comparison.best_set._test", lambda *_: next(steps))
    assert best_set(numpy.zeros((5, 3))).tolist() == [0.4, 1.0, 0.4]


def test_identical_levels_and_single_replicates_stay_in_the_best_set():
    assert (best_set(numpy.tile([[0.1], [0.3], [0.2]], 4)) == 1.0).all()
    assert (best_set(numpy.array([[0.1, 0.5]])) == 1.0).all()
