"""Which level is better, and how sure that is: `fanin.compare`.

pairing.py finds what belongs together, contrasts.py judges two levels by evidence.py and intervals.py,
levels.py describes each one; core.py puts them together. None of it knows where the runs come from.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path

import pandas

from fanin import query
from fanin.comparison.core import compare_runs
from fanin.comparison.result import Comparison
from fanin.errors import ConfigError, unknown
from fanin.leaderboard import CONFIDENCE
from fanin.noise import factors_of

__all__ = ["Comparison", "compare", "compare_runs"]

DIRECTIONS = {"accuracy": "maximize", "loss": "minimize", "seconds": "minimize"}


def compare(
    study: str,
    *,
    by: str | None = None,
    metric: str | None = None,
    where: Mapping[str, object] | None = None,
    baseline: Hashable | None = None,
    test: str = "permutation",
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    direction: str | None = None,
    project: str | Path = ".",
    uri: str | None = None,
) -> Comparison:
    """Compare the values of the key `by` in a study, by the runs' final `metric`.

    by: the key that was swept, if it is one; metric and direction: the study's own; where: see fanin.runs;
    baseline: the level to compare the others with, named beforehand (else the best one, which takes more
    replicates); test: permutation (signs flipped) or wilcoxon, which are exact, or t; margin: the difference
    nobody would act on, for claims of equivalence (accuracy: 0.002).

    Levels are paired by replicate, within equal values of the other swept keys. Seeds that were varied count as
    replicates if they walk in step, and are averaged over if they cross. Diverged runs count as a
    guess; unfinished ones are left out. Raises ConfigError for an unknown study, column or level.
    """
    about = query.about(study, project=project, uri=uri)
    runs = query.runs(study, where=where, project=project, uri=uri)
    if runs.empty:
        raise ConfigError(f"{study}: no run " + (f"has {dict(where)}" if where else "is recorded yet"))
    by = by or _only(factors_of(about.swept))
    metric = metric or about.metric
    if by not in runs:
        raise unknown("by", by, {*about.swept, *_varying(runs)})
    if metric not in runs:
        raise unknown("metric", metric, _metrics(runs))
    return compare_runs(
        runs,
        by=by,
        metric=metric,
        direction=direction or (about.direction if metric == about.metric else _direction(metric)),
        within=[key for key in about.swept if key in runs and key != by],
        classes=int(runs["data.classes"].iloc[0]) if "data.classes" in runs else 2,
        baseline=baseline,
        test=test,
        confidence=confidence,
        margin=margin,
        title=f"{study}: {about.question}" if about.question else study,
    )


def _only(swept: list[str]) -> str:
    if len(swept) != 1:
        raise ConfigError(f"by: name one of the keys that were swept: {', '.join(swept) or 'none was'}")
    return swept[0]


def _metrics(runs: pandas.DataFrame) -> list[str]:
    return [column for column in map(str, runs.columns) if "/" in column or column == "seconds"]


def _varying(runs: pandas.DataFrame) -> list[str]:
    """The params of which there are several values."""
    params = runs.select_dtypes(exclude="datetime").columns.difference([*query.OF_A_RUN, "replicate"])
    return [key for key in params if "/" not in key and runs[key].nunique() > 1]


def _direction(metric: str) -> str:
    kind = metric.rpartition("/")[2]
    if kind not in DIRECTIONS:
        raise ConfigError(f"direction: is more {metric} better (maximize) or less of it (minimize)?")
    return DIRECTIONS[kind]
