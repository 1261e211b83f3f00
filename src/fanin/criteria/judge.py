"""Criteria and records in, verdicts out.

Each end of the interval of a mean is a one-sided test at 5 % (the interval is one of 90 %), so a mean within a
range passes exactly when two one-sided tests call it equivalent (TOST, Schuirmann 1987).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from fanin.chance import chance
from fanin.comparison.intervals import mean_intervals
from fanin.criteria.grammar import Criterion
from fanin.criteria.records import Records
from fanin.criteria.values import same

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
CONFIDENCE = 0.90
Array = NDArray[numpy.float64]


@dataclass(frozen=True)
class Verdict:
    """`value` is the mean, or of several that must all satisfy the bound the worst; `low` and `high` its interval,
    or their range; `count` the replicates it is of; `why` what keeps it from being decided."""

    criterion: Criterion
    status: str
    value: float
    low: float
    high: float
    count: int
    holding: int
    why: str = ""


def judge(
    criteria: Sequence[Criterion], records: Records, *, replicates: int, classes: int | None
) -> tuple[Verdict, ...]:
    """A verdict on every criterion. `classes` decides what a diverged run counts as, as in the leaderboard."""
    return tuple(_judge(one, records, replicates=replicates, classes=classes) for one in criteria)


def overall(verdicts: Sequence[Verdict]) -> str:
    """fail if one fails, pass if all pass, else inconclusive."""
    statuses = {one.status for one in verdicts}
    return FAIL if FAIL in statuses else INCONCLUSIVE if INCONCLUSIVE in statuses else PASS


def _judge(criterion: Criterion, records: Records, *, replicates: int, classes: int | None) -> Verdict:
    if criterion.against:
        return _correlate(criterion, records, replicates=replicates, classes=classes)
    first = per_replicate(criterion, records, criterion.where, classes=classes)
    values = first
    if criterion.versus:
        second = per_replicate(criterion, records, criterion.other, classes=classes, side=1)
        contrast = CONTRASTS[criterion.contrast or "difference"]
        values = {r: contrast(first[r], second[r]) for r in sorted(first.keys() & second.keys())}
    known = numpy.array([value for value in values.values() if not math.isnan(value)])
    decide = _by_mean if criterion.over is None else _by_count
    return decide(criterion, known, missing=max(0, replicates - len(known)))


def _by_count(criterion: Criterion, values: Array, *, missing: int) -> Verdict:
    """So many replicates must satisfy the bound; those that are missing might, or not."""
    assert criterion.over is not None
    holding = sum(map(criterion.bound.holds, values.tolist()))
    needed = math.ceil(criterion.over * (len(values) + missing))
    status = PASS if holding >= needed else FAIL if holding + missing < needed else INCONCLUSIVE
    worst = min(values.tolist(), key=criterion.bound.apart, default=math.nan)
    low, high = (values.min(), values.max()) if len(values) else (math.nan, math.nan)
    why = _missing(missing) if status == INCONCLUSIVE else ""
    return Verdict(criterion, status, worst, float(low), float(high), len(values), holding, why)


def _by_mean(criterion: Criterion, values: Array, *, missing: int) -> Verdict:
    """The mean, with its interval; of ratios the geometric one."""
    holding = sum(map(criterion.bound.holds, values.tolist()))
    ratio = criterion.contrast == "ratio"
    with numpy.errstate(divide="ignore", invalid="ignore"):
        shown = numpy.log(values) if ratio else values
    if len(values) < 2 or not numpy.isfinite(shown).all():
        why = _missing(missing) if missing or len(values) < 2 else "some values are infinite, zero or negative"
        return Verdict(criterion, INCONCLUSIVE, math.nan, math.nan, math.nan, len(values), holding, why)
    found = mean_intervals(shown[None, :], confidence=CONFIDENCE)
    numbers = numpy.array([shown.mean(), found.low[0], found.high[0]])
    mean, low, high = (numpy.exp(numbers) if ratio else numbers).tolist()
    status, why = _place(criterion, low, high)
    if missing:
        status, why = INCONCLUSIVE, _missing(missing)
    return Verdict(criterion, status, mean, low, high, len(values), holding, why)


def _place(criterion: Criterion, low: float, high: float) -> tuple[str, str]:
    bound = criterion.bound
    if bound.holds(low) and bound.holds(high):
        return PASS, ""
    outside = high < bound.low or low > bound.high or (bound.strict and (high <= bound.low or low >= bound.high))
    return (FAIL, "") if outside else (INCONCLUSIVE, "the interval straddles the bound")


def _missing(count: int) -> str:
    return f"{count} replicate{'s are' if count > 1 else ' is'} missing" if count else "one replicate has no interval"


def _ratio(one: float, other: float) -> float:
    if other == 0 or (math.isinf(one) and math.isinf(other)):
        return math.inf if other == 0 and one > 0 else math.nan
    return one / other


def _octaves(one: float, other: float) -> float:
    ratio = _ratio(one, other)
    return math.log2(ratio) if ratio > 0 else math.nan


CONTRASTS: Mapping[str, Callable[[float, float], float]] = {
    "difference": lambda one, other: one - other,
    "ratio": _ratio,
    "octaves": _octaves,
}


def per_replicate(
    criterion: Criterion, records: Records, where: Mapping[str, Any], *, classes: int | None, side: int = 0
) -> dict[int, float]:
    """The selection's number in each replicate of which all its runs are complete."""
    chosen = records.select(where)
    variants = criterion.expects[side] if criterion.expects else chosen["variant"].nunique()
    chosen = chosen[chosen["complete"]]
    chosen = chosen.assign(value=chosen["run_id"].map(per_run(criterion, records, chosen, classes=classes)))
    groups = [group for _, group in chosen.groupby("replicate") if len(group) >= max(1, variants)]
    return {int(group["replicate"].iloc[0]): _reduced(criterion, group) for group in groups}


def _reduced(criterion: Criterion, runs: pandas.DataFrame) -> float:
    """One number of the runs of one replicate."""
    values, key = runs["value"].astype(float), criterion.key
    if values.isna().any():
        return math.nan
    best = "max" if criterion.metric.endswith("accuracy") and not criterion.reaches else "min"
    if key is None:
        worst = {"max": "min", "min": "max"}[best]
        return float(values.agg({"mean": "mean", "best": best, "worst": worst}[criterion.runs]))
    means = values.groupby(runs[key].astype(str)).mean()
    if criterion.runs == "argbest":
        return float(str(means.idxmax() if best == "max" else means.idxmin()))
    if criterion.runs == "spread":
        return float(means.max() - means.min())
    total = float(values.var(ddof=0))  # share: what the key's means alone explain
    explained = float(means[runs[key].astype(str)].var(ddof=0))
    return explained / total if total > 0 else math.nan


def per_run(criterion: Criterion, records: Records, runs: pandas.DataFrame, *, classes: int | None) -> dict[str, float]:
    """Each run's number, NaN where it has not recorded the metric."""
    points = records.points
    names = [name for name in points["metric"].unique() if fnmatchcase(name, criterion.metric)]
    points = points[points["metric"].isin(names) & points["run_id"].isin(runs["run_id"])]
    guess = chance(criterion.metric, classes=classes or 2)
    diverged = set(runs.loc[runs["diverged"], "run_id"])
    found = dict.fromkeys(runs["run_id"], math.nan)
    for run, group in points.groupby("run_id", observed=True):
        by_step = _over_layers(group, criterion.layers)
        lost = run in diverged and guess is not None and not criterion.reaches
        found[run] = _lost(by_step, criterion, guess) if lost else _number(by_step, criterion)  # type: ignore[arg-type]
    return found


def _lost(values: pandas.Series, criterion: Criterion, guess: float) -> float:
    """A diverged run's: a guess at its end, before that what it recorded."""
    finite = values[numpy.isfinite(values)]
    if criterion.at in ("last", "mean") or (isinstance(criterion.at, int) and criterion.at not in finite.index):
        return guess
    return _number(finite, criterion) if len(finite) else guess


def _over_layers(points: pandas.DataFrame, how: str | None) -> pandas.Series:
    """step -> value, one number for all layers, which follow one another by their numbers."""
    if how is None:
        return points.sort_values("step").set_index("step")["value"]
    order = sorted(points["metric"].unique(), key=_natural)
    points = points.assign(place=[order.index(name) for name in points["metric"]]).sort_values(["step", "place"])
    steps = points.groupby("step")["value"]
    return steps.agg(_geometric if how == "geometric" else how)


def _geometric(values: pandas.Series) -> float:
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return float(numpy.exp(numpy.log(values).mean()))


def _natural(text: str) -> list[tuple[int, str]]:
    parts = text.replace("/", ".").split(".")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _number(values: pandas.Series, criterion: Criterion) -> float:
    if criterion.reaches:
        return _arrival(values, criterion)
    if isinstance(criterion.at, int):
        return float(values.get(criterion.at, math.nan))
    if criterion.at in ("first", "last"):
        return float(values.iloc[0 if criterion.at == "first" else -1])
    return float(values.agg(criterion.at))


def _arrival(values: pandas.Series, criterion: Criterion) -> float:
    """The epoch at which the bound is first satisfied, between two records on the line through both; else inf."""
    assert criterion.reaches
    bound, before = criterion.reaches, None
    for step, value in values.items():
        if bound.holds(value):
            edge = bound.low if before is not None and before[1] < bound.low else bound.high
            if before is None or not math.isfinite(before[1]) or not math.isfinite(edge) or value == before[1]:
                return float(step)  # type: ignore[arg-type]
            return float(before[0] + (step - before[0]) * (edge - before[1]) / (value - before[1]))  # type: ignore[operator]
        before = step, value
    return math.inf


def _correlate(criterion: Criterion, records: Records, *, replicates: int, classes: int | None) -> Verdict:
    """Spearman's rho over variants, between the mean over replicates and what was predicted."""
    assert criterion.against
    chosen = records.select(criterion.where)
    variants = criterion.expects[0] if criterion.expects else chosen["variant"].nunique()
    chosen = chosen[chosen["complete"]]
    chosen = chosen.assign(value=chosen["run_id"].map(per_run(criterion, records, chosen, classes=classes)))
    missing = variants * replicates - int(chosen["value"].notna().sum())
    predicted = [_predicted(row, criterion.against) for row in chosen.to_dict("records")]
    means = chosen.assign(predicted=predicted).groupby("variant", observed=True)[["predicted", "value"]].mean().dropna()
    if missing > 0 or len(means) < 3:
        why = f"{missing} runs are missing" if missing > 0 else "a correlation takes three variants"
        return Verdict(criterion, INCONCLUSIVE, math.nan, math.nan, math.nan, len(means), 0, why)
    ranks = means.rank()
    rho = float(ranks["predicted"].corr(ranks["value"])) if (ranks.nunique() > 1).all() else math.nan
    if math.isnan(rho):
        return Verdict(criterion, INCONCLUSIVE, rho, rho, rho, len(means), 0, "all values are equal")
    holds = criterion.bound.holds(rho)
    return Verdict(criterion, PASS if holds else FAIL, rho, rho, rho, len(means), int(holds))


def _predicted(row: Mapping[Any, Any], against: Mapping[str, Any]) -> float:
    """The product of the keys' numbers."""
    product = 1.0
    for key, numbers in against.items():
        if numbers == "value":
            product *= float(row[key])
        else:
            product *= next((float(n) for level, n in numbers.items() if same(row[key], level)), math.nan)
    return product
