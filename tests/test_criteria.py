"""Criteria against cases worked out by hand: what is read, what a number is, and when it is enough."""

import math
from itertools import product

import pandas
import pytest

from fanin.criteria import words
from fanin.criteria.bounds import parse_bound
from fanin.criteria.grammar import parse
from fanin.criteria.judge import judge, overall
from fanin.criteria.records import Records
from fanin.errors import ConfigError

GIVEN = {"id": "one", "says": "It trains", "metric": "test/accuracy", "bound": ">= 0.8"}


def criterion(replicates=3, profile=None, **fields):
    (found,) = parse([GIVEN | fields], profile=profile, replicates=replicates)
    return found


def recorded(values, *, metric="test/accuracy", diverged=(), unfinished=()):
    """Records of one metric: (params, replicate) -> the last value, or all of them by step."""
    runs, points = [], []
    for number, ((params, replicate), series) in enumerate(values.items()):
        run = f"run{number}"
        about = {"run_id": run, "variant": str(params), "replicate": replicate, "diverged": number in diverged}
        runs.append(dict(params) | about | {"complete": number not in unfinished})
        series = series if isinstance(series, dict) else {(metric, 1): series}
        points += [{"run_id": run, "metric": m, "step": step, "value": v} for (m, step), v in series.items()]
    return Records(pandas.DataFrame(runs), pandas.DataFrame(points))


def pairs(first, second, **more):
    """Replicates of init=a and init=b."""
    cells = {(("init", "a"),): first, (("init", "b"),): second}
    return recorded({(key, r): v for key, series in cells.items() for r, v in enumerate(series)}, **more)


def verdict(one, records, replicates=3):
    (found,) = judge([one], records, replicates=replicates, classes=10)
    return found


A, B = {"where": {"init": "a"}}, {"versus": {"init": "b"}}


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">= 0.8", 0.8, 0.79),
        ("> 0", 0.1, 0.0),
        ("<= 1e-3", 0.001, 0.002),
        ("< -1", -1.1, -1.0),
        ("== 0", 0.0, 1e-9),
        ("0.2 .. 0.3", 0.3, 0.31),
        ("1.467 +- 5%", 1.54, 1.55),
        ("0 +- 0.002", -0.002, 0.0021),
    ],
)
def test_a_bound_holds_inside_and_not_outside_nor_for_nan(text, inside, outside):
    bound = parse_bound(text, key="bound")
    assert bound.holds(inside) and not bound.holds(outside) and not bound.holds(math.nan)


@pytest.mark.parametrize("text", ["0.8", "=> 1", "3 .. 2", "1 +- 0", "", None, "high"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ConfigError, match="study.criteria.one.bound"):
        criterion(bound=text) if text is not None else parse_bound(text, key="study.criteria.one.bound")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrik": "x"}, "did you mean 'metric'"),
        ({"at": "lsat"}, "did you mean 'last'"),
        ({"over": "most"}, "study.criteria.one.over: 'most' is not one of"),
        ({"over": "3/2"}, "must be a share of the replicates"),
        ({"metric": "grad/*/norm"}, "such a metric needs it"),
        ({"layers": "max"}, "goes with a metric that is a pattern"),
        ({"runs": "spread"}, "must name the key that is swept"),
        ({"runs": {"best": "init"}}, "takes no key"),
        ({"as": "ratio"}, "goes with `versus`"),
        ({"at": 1, "reaches": "<= 1"}, "excludes `at`"),
        ({"against": {"depth": "deep"}}, "must map swept keys"),
        ({"against": {"depth": "value"}, "over": "all"}, "excludes `against`"),
        ({"where": "init=a"}, "must be a mapping such as"),
        ({"bound": {"smoke": "> 0"}}, "has no bound for the profile 'full', only for smoke"),
        ({"says": None}, "says: is needed"),
    ],
)
def test_a_wrong_criterion_is_refused_with_its_key_and_the_rule(fields, said):
    with pytest.raises(ConfigError) as refused:
        criterion(**fields)
    assert "study.criteria.one" in str(refused.value) and said in str(refused.value)


def test_a_mean_of_one_replicate_is_refused_since_it_has_no_interval():
    with pytest.raises(ConfigError, match="needs study.replicates >= 2"):
        criterion(replicates=1, over="mean")


def test_two_criteria_of_one_profile_cannot_share_an_id_and_of_two_profiles_can():
    smoke, full = (GIVEN | {"profile": name, "bound": bound} for name, bound in (("smoke", "> 1"), ("full", "> 2")))
    assert [one.bound.low for one in parse([smoke, full], profile="smoke", replicates=1)] == [1]
    assert [one.bound.low for one in parse([smoke, full], profile=None, replicates=1)] == [2]
    with pytest.raises(ConfigError, match="each id is used once"):
        parse([smoke, smoke], profile="smoke", replicates=1)


@pytest.mark.parametrize(
    ("values", "status", "worst"),
    [([0.8, 0.9, 0.95], "pass", 0.8), ([0.7, 0.9, 0.95], "fail", 0.7), ([0.9, 0.95], "inconclusive", 0.9)],
)
def test_all_replicates_must_satisfy_the_bound_and_the_worst_is_shown(values, status, worst):
    found = verdict(criterion(**A), pairs(values, [0.1] * 3))
    assert (found.status, found.value) == (status, worst)


@pytest.mark.parametrize(("good", "there", "status"), [(9, 10, "pass"), (8, 10, "fail"), (8, 9, "inconclusive")])
def test_nine_of_ten_replicates(good, there, status):
    first = [1.0] * good + [0.0] * (there - good)
    found = verdict(criterion(**A, **B, over="9/10", bound="> 0"), pairs(first, [0.5] * there), replicates=10)
    assert (found.status, found.holding) == (status, good)


def test_differences_are_paired_by_replicate_not_by_their_order():
    records = pairs([0.9, 0.5, 0.7], [0.8, 0.4, 0.6])
    found = verdict(criterion(**A, **B, bound="0.1 +- 1e-9"), records)
    assert found.status == "pass"
    mean = verdict(criterion(**A, **B, over="mean", bound="0.1 +- 1e-6"), records)
    assert mean.status == "pass", "all three differences are 0.1, though the accuracies vary by 0.2"


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        (">= 1.3", "pass"),
        (">= 1.32", "inconclusive"),
        (">= 2.68", "inconclusive"),
        (">= 2.7", "fail"),
        ("2 +- 0.7", "pass"),
        ("2 +- 0.6", "inconclusive"),
    ],
)
def test_a_mean_is_judged_by_its_90_percent_interval(bound, status):
    """Of 1, 2, 3 about 2: t(0.95, 2) = 2.91999 and s / sqrt(3) = 0.57735, so that it is 2 +- 1.6859; scaled by 0.41."""
    values = [2 - 0.41, 2.0, 2 + 0.41]
    found = verdict(criterion(**A, over="mean", bound=bound), pairs(values, [0.0] * 3))
    assert found.low == pytest.approx(2 - 0.41 * 1.68585, abs=1e-4)
    assert found.status == status


def test_a_mean_within_a_margin_is_two_one_sided_tests():
    ttost = pytest.importorskip("statsmodels.stats.weightstats").ttost_paired
    first, second = [0.951, 0.953, 0.949, 0.952, 0.950], [0.950, 0.954, 0.9485, 0.951, 0.951]
    for margin in (0.0005, 0.001, 0.0012, 0.002):
        found = verdict(criterion(5, **A, **B, over="mean", bound=f"0 +- {margin}"), pairs(first, second), replicates=5)
        p = ttost(pandas.Series(first).to_numpy(), pandas.Series(second).to_numpy(), -margin, margin)[0]
        assert (found.status == "pass") == (p < 0.05), margin


def test_a_ratio_is_a_geometric_mean_and_never_reached_is_infinite():
    ratio = criterion(**A, **B, **{"as": "ratio"}, over="mean", bound="<= 3")
    assert verdict(ratio, pairs([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])).value == pytest.approx(2)
    each = criterion(**A, **B, **{"as": "ratio"}, bound="<= 0.5")
    assert verdict(each, pairs([1.0, 1.0, 1.0], [math.inf] * 3)).status == "pass"
    assert verdict(each, pairs([math.inf] * 3, [1.0] * 3)).status == "fail"
    assert verdict(each, pairs([math.inf] * 3, [math.inf] * 3)).status == "inconclusive"


def curve(*values, metric="train/loss"):
    return {(metric, step): value for step, value in enumerate(values)}


@pytest.mark.parametrize(
    ("at", "number"), [("last", 1.0), ("first", 4.0), ("min", 0.5), ("max", 4.0), ("mean", 2.0), (1, 2.5)]
)
def test_the_epoch_that_counts(at, number):
    records = recorded({((("init", "a"),), 0): curve(4.0, 2.5, 0.5, 1.0)})
    found = verdict(criterion(1, metric="train/loss", at=at, **A), records, replicates=1)
    assert found.value == number


def test_the_epoch_at_which_a_target_is_reached_lies_between_two_records():
    records = recorded({((("init", "a"),), 0): curve(4.0, 2.0, 0.5), ((("init", "b"),), 0): curve(4.0, 3.0, 2.0)})
    reach = {"metric": "train/loss", "reaches": "<= 1.0"}
    assert verdict(criterion(1, **reach, **A), records, 1).value == pytest.approx(1 + 2 / 3)
    assert verdict(criterion(1, **reach, where={"init": "b"}), records, 1).value == math.inf


def test_layers_are_reduced_epoch_by_epoch_in_their_order():
    points = {(f"grad/layers.{layer}/norm", step): layer + 10.0 * step for layer in (0, 2, 10) for step in (0, 1)}
    records = recorded({((("init", "a"),), 0): points})
    numbers = {
        how: verdict(criterion(1, metric="grad/*/norm", layers=how, at=0, **A), records, 1).value
        for how in ("mean", "median", "min", "max", "first", "last")
    }
    assert numbers == {"mean": 4, "median": 2, "min": 0, "max": 10, "first": 0, "last": 10}
    gains = criterion(1, metric="grad/layers.[12]*/norm", layers="geometric", at=0, **A)
    assert verdict(gains, records, 1).value == pytest.approx(math.sqrt(20))


LRS = {(init, lr): value for (init, lr), value in zip(product("ab", (0.1, 0.2, 0.4)), (5, 9, 7, 8, 3, 2), strict=True)}


def over_lr():
    return recorded({((("init", i), ("lr", lr)), 0): value / 10 for (i, lr), value in LRS.items()})


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"runs": "mean", **A}, 0.7),
        ({"runs": "best", **A}, 0.9),
        ({"runs": "worst", **A}, 0.5),
        ({"runs": {"argbest": "lr"}, **A}, 0.2),
        ({"runs": {"argbest": "lr"}, **A, **B, "as": "octaves"}, 1.0),
        ({"runs": {"spread": "lr"}, **A}, 0.4),
        ({"runs": {"spread": "lr"}, **A, **B}, -0.2),
        ({"where": {"init": ["a", "b"]}, "runs": {"spread": "init"}}, 0.7 - 13 / 30),
        ({"where": {"lr": "0.1"}, "runs": {"share": "init"}}, 1.0),
    ],
)
def test_the_number_of_several_runs_of_a_replicate(fields, number):
    assert verdict(criterion(1, **fields), over_lr(), 1).value == pytest.approx(number)


def test_the_share_of_the_variance_is_that_of_the_exact_analysis():
    """Means of a and b: 0.7 and 13/30, of all 17/30, so that (4/30)^2 of the variance is between them."""
    values = [value / 10 for value in LRS.values()]
    variance = sum((value - 17 / 30) ** 2 for value in values) / 6
    found = verdict(criterion(1, runs={"share": "init"}), over_lr(), 1)
    assert found.value == pytest.approx((4 / 30) ** 2 / variance)


def test_of_losses_the_least_is_the_best():
    records = recorded({((("lr", lr),), 0): lr for lr in (1.0, 2.0)}, metric="train/loss")
    assert verdict(criterion(1, metric="train/loss", runs="best"), records, 1).value == 1


@pytest.mark.parametrize(("sign", "status"), [(1, "fail"), (-1, "pass")])
def test_a_rank_correlation_with_a_predicted_number(sign, status):
    """Depth over the scale of each sigma: 1, 2, 4, 8 against an accuracy that falls, or rises, with it."""
    cells = {(sigma, depth): depth / scale for (sigma, scale), depth in product(((1, 8), (2, 2)), (8, 16))}
    records = recorded({((("sigma", s), ("depth", d)), 0): sign * math.atan(x) for (s, d), x in cells.items()})
    against = {"depth": "value", "sigma": {1: 1 / 8, 2: 1 / 2}}
    found = verdict(criterion(1, against=against, bound="<= -0.7"), records, 1)
    assert (found.value, found.status) == (pytest.approx(sign), status)


def test_numbers_are_the_same_however_they_are_written():
    records = recorded({((("lr", "1e-3"), ("flag", "true")), 0): 0.9})
    assert verdict(criterion(1, where={"lr": 0.001, "flag": True}), records, 1).status == "pass"


def test_a_selection_by_several_keys_of_which_no_run_is_there_yet_is_inconclusive():
    one = criterion(where={"init": "c", "model.depth": 10, "model.width": 3})
    found = verdict(one, recorded({((("init", "a"), ("model.depth", 10)), 0): 0.9}))
    assert found.status == "inconclusive"


def test_a_diverged_run_counts_as_a_guess_and_one_that_is_missing_as_neither():
    records = pairs([0.9, math.nan, 0.9], [0.1] * 3, diverged=[1])
    assert verdict(criterion(**A), records).value == 0.1
    records = pairs([0.9, 0.9, 0.9], [0.1] * 3, unfinished=[1])
    assert verdict(criterion(**A), records).status == "inconclusive"


def test_a_replicate_counts_when_all_planned_variants_are_there():
    records = recorded({((("init", "a"), ("lr", lr)), 0): 0.9 for lr in (1, 2)})
    assert verdict(criterion(1, **A).expecting(2, 0), records, 1).status == "pass"
    assert verdict(criterion(1, **A).expecting(3, 0), records, 1).status == "inconclusive"


def test_a_study_fails_with_one_criterion_and_passes_with_all():
    good, bad = criterion(**A), criterion(where={"init": "b"})
    records = pairs([0.9] * 3, [0.1] * 3)
    found = judge([good, bad], records, replicates=3, classes=10)
    assert overall(found) == "fail" and overall(found[:1]) == "pass"
    assert overall(judge([good], records, replicates=4, classes=10)) == "inconclusive"


def test_verdicts_are_said_with_number_range_and_bound_in_100_columns():
    found = judge([criterion(**A)], pairs([0.91, 0.95, 0.7], [0.1] * 3), replicates=3, classes=10)
    text = words.render(found)
    assert "fail: 0 of 1 criteria pass, 1 fail" in text
    assert "test/accuracy 0.7 (0.7 to 0.95 in 3 replicates); must be >= 0.8 in each" in text
    assert max(map(len, text.splitlines())) <= 100
    assert words.render_markdown(found).count("\n| fail ") == 1
