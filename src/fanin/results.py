"""`fanin results`: a study's leaderboard from the tracking store, or every run as a table."""

import json
from pathlib import Path
from typing import Any

import pandas

from fanin import noise, query
from fanin.criteria import words
from fanin.criteria.settled import verdicts
from fanin.errors import ConfigError
from fanin.leaderboard import leaderboard, render
from fanin.sweep import factors
from fanin.sweep.verdicts import judge


def show(study: str, *, project: Path) -> str:
    """The leaderboard, and which factor matters where that can be told, as text of at most 100 columns.
    Raises ConfigError for a study that does not exist."""
    table, about = query.runs(study, project=project), query.about(study, project=project)
    if table.empty:
        return f"{study}: no run is recorded yet."
    table, by = noise.pooled(table, about.swept)
    how: dict[str, Any] = {"metric": about.metric, "direction": about.direction, "classes": _classes(table)}
    head = f"{study}: {about.question}" if about.question else study
    parts = [head, render(leaderboard(table, by=by, **how))]
    swept = [key for key in about.swept if key in table]
    racing = json.loads(about.tags.get("fanin.racing", "null"))
    if decided := judge(table, swept=swept, racing=racing, **how):
        parts.append(decided[0])
    if found := factors.weigh(table, by=swept if by else by, **how):
        parts.append(factors.render(found))
    if scatter := factors.scatter(table, by=by, **how):
        parts.append(noise.render(scatter))
    if settled := verdicts(study, project=project):
        parts.append(words.render(settled))
    return "\n\n".join(parts)


def write(study: str, *, project: Path, csv: Path | None, parquet: Path | None) -> str:
    """Write every run of the study as one row; returns a line that says so."""
    table = query.runs(study, project=project)
    target = csv or parquet
    assert target
    try:
        if csv:
            table.to_csv(csv, index=False)
        else:
            table.to_parquet(target, index=False, compression="zstd")
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error
    return f"{len(table)} runs, {len(table.columns)} columns -> {target}"


def _classes(table: pandas.DataFrame) -> int:
    return int(table["data.classes"].iloc[0]) if "data.classes" in table else 2
