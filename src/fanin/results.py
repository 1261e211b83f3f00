"""`fanin results`: a study's leaderboard from the tracking store, or every run as a table."""

from pathlib import Path

import pandas

from fanin import query
from fanin.errors import ConfigError
from fanin.leaderboard import leaderboard, render


def show(study: str, *, project: Path) -> str:
    """The leaderboard as text of at most 100 columns. Raises ConfigError for a study that does not exist."""
    table, about = query.runs(study, project=project), query.about(study, project=project)
    if table.empty:
        return f"{study}: no run is recorded yet."
    by = [key for key in about.swept if key in table]
    board = leaderboard(
        table, metric=about.metric, direction=about.direction, by=by, classes=_classes(table)
    )
    return f"{study}: {about.question}\n\n{render(board)}"


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
