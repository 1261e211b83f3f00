"""What a report is made of: a study's tables, and which run belongs to which variant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from fanin import query
from fanin.criteria.judge import Verdict
from fanin.criteria.settled import verdicts
from fanin.leaderboard import counted, leaderboard
from fanin.noise import Noise, pooled
from fanin.query import About
from fanin.report import files
from fanin.sweep.factors import Factors, scatter, weigh


@dataclass(frozen=True)
class Material:
    """A study as it is now. `board` has the variants, best first; a run's `place` is its variant's row there.

    `weights`: the histograms of some variants, by place (see fanin.report.files).
    `runs` has the metric as it counts, `complete` and `place`; `curves` and `layers` have `place`, too.
    All of them are empty before the first run is recorded.
    """

    study: str
    about: About
    by: tuple[str, ...]
    classes: int
    runs: pandas.DataFrame
    board: pandas.DataFrame
    curves: pandas.DataFrame
    layers: pandas.DataFrame
    factors: Factors | None
    noise: Noise | None = None
    weights: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()


def gather(study: str, *, project: Path) -> Material:
    """Read a study in a few queries. Raises ConfigError with the nearest names for one that does not exist."""
    about, runs = query.about(study, project=project), query.runs(study, project=project)
    runs, factors = pooled(runs, about.swept)
    by = tuple(factors) or ("variant",)
    classes = _classes(runs)
    if runs.empty:
        return Material(study, about, by, classes, runs, runs, runs, runs, None)
    how: Mapping[str, Any] = {"metric": about.metric, "direction": about.direction, "classes": classes}
    board = leaderboard(runs, by=by, **how)
    if about.metric not in runs:
        runs = runs.assign(**{about.metric: float("nan")})
    swept = [key for key in about.swept if key in runs]
    shares = weigh(runs, by=swept, **how) if factors else None
    spread = scatter(runs, by=factors, **how)
    runs = counted(runs, **how).assign(place=_places(runs, board, by))
    places = runs.set_index("run_id")["place"]
    shapes = files.histograms(runs, project=project)
    curves = query.curves(study, _measured(study, runs, project), project=project)
    layers = query.layers(study, project=project)
    # runs that were recorded since the first query are left out
    curves, layers = (table[table["run_id"].isin(places.index)] for table in (curves, layers))
    curves, layers = (table.assign(place=places.loc[table["run_id"]].array) for table in (curves, layers))
    settled = verdicts(study, project=project)
    return Material(study, about, by, classes, runs, board, curves, layers, shares, spread, shapes, settled)


def _classes(runs: pandas.DataFrame) -> int:
    known = runs["data.classes"].dropna() if "data.classes" in runs else pandas.Series()
    return int(known.iloc[0]) if len(known) else 2


def _places(runs: pandas.DataFrame, board: pandas.DataFrame, by: Sequence[str]) -> list[int]:
    """The row of the leaderboard that each run is in."""
    rows = {key: row for row, key in enumerate(_keys(board, by))}
    return [rows[key] for key in _keys(runs, by)]


def _keys(table: pandas.DataFrame, by: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(table[key].astype(object).map(str) for key in by), strict=True))


def _measured(study: str, runs: pandas.DataFrame, project: Path) -> list[str]:
    """The metrics of whole runs: the many per-layer ones are read as a table of their own."""
    return [key for key in query.metrics(study, project=project) if key in runs and not key.startswith("best ")]
