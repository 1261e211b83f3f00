"""The comparison of a study's levels, from the table of its runs alone."""

from collections.abc import Hashable, Sequence

import pandas

from fanin import noise
from fanin.comparison.contrasts import Rules, against, contrasts, ranked_pairs
from fanin.comparison.evidence import TESTS
from fanin.comparison.levels import best_of, describe
from fanin.comparison.notes import remark
from fanin.comparison.pairing import Scores, arrange
from fanin.comparison.result import Comparison
from fanin.errors import ConfigError, require, unknown
from fanin.leaderboard import CONFIDENCE, counted
from fanin.variance import anova

MARGINS = {"accuracy": 0.002}  # by the last part of a metric's key: differences nobody would act on
SIGNS = {"maximize": 1, "minimize": -1}


def compare_runs(
    runs: pandas.DataFrame,
    *,
    by: str,
    metric: str,
    direction: str,
    within: Sequence[str] = (),
    classes: int = 2,
    baseline: Hashable | None = None,
    test: str = "permutation",
    confidence: float = CONFIDENCE,
    margin: float | None = None,
    title: str = "",
) -> Comparison:
    """Compare the levels of the column `by` of a table of runs, such as `fanin.runs` returns.

    It needs the columns replicate, status, diverged, seconds, `by` and `metric`; `within` are the other keys
    that vary. `fanin.compare` documents the rest. Raises ConfigError for what cannot be compared.
    """
    rules = _rules(metric, direction=direction, test=test, confidence=confidence, margin=margin)
    for column in (by, metric, *within):
        if column not in runs:
            raise unknown("column", column, runs.columns)
    if noise.independent(runs):
        runs, within = noise.repetitions(runs), noise.factors_of(within)
    runs = counted(runs, metric=metric, direction=direction, classes=classes)
    if not runs.loc[runs["complete"], metric].notna().any():
        raise ConfigError(f"{metric}: no finished run has recorded it")
    scores = arrange(runs, by=by, within=within, metric=metric)
    pairs = contrasts(scores, ranked_pairs(scores, rules), rules)
    levels = describe(runs, scores, rules)
    if baseline is None:
        reference = levels["level"].iloc[0]
        differences = pairs[pairs["reference"] == reference].reset_index(drop=True)
    else:
        reference = _find(baseline, scores)
        differences = contrasts(scores, against(scores, reference, rules), rules)
    notes = remark(runs, scores, differences, within=within)
    return Comparison(
        title=title,
        by=by,
        metric=metric,
        direction=direction,
        within=scores.within,
        reference=reference,
        baseline=baseline is not None,
        rules=rules,
        levels=levels,
        differences=differences,
        pairs=pairs,
        blocks=scores.per_block,
        shares=_shares(runs, scores, metric),
        best_of=best_of(runs, scores, rules),
        notes=tuple(notes),
    )


def _rules(metric: str, *, direction: str, test: str, confidence: float, margin: float | None) -> Rules:
    if direction not in SIGNS:
        raise unknown("direction", direction, SIGNS)
    if test not in TESTS:
        raise unknown("test", test, TESTS)
    require(0.5 < confidence < 1, "confidence", "must be between 0.5 and 1", confidence)
    require(margin is None or margin > 0, "margin", "must be positive, in units of the metric", margin)
    usual = MARGINS.get(metric.rpartition("/")[2])
    return Rules(SIGNS[direction], test, confidence, margin if margin is not None else usual)


def _find(baseline: Hashable, scores: Scores) -> Hashable:
    """The level that is meant: equal, or written the same."""
    for level in scores.levels:
        if level == baseline or str(level) == str(baseline):
            return level
    raise unknown("baseline", baseline, scores.levels)


def _shares(runs: pandas.DataFrame, scores: Scores, metric: str) -> pandas.DataFrame | None:
    try:
        return anova(runs[runs["complete"]], by=[scores.by, *scores.within], metric=metric)
    except ConfigError:  # a grid with gaps, or no grid
        return None
