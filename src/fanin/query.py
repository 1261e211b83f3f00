"""Reads studies back from the tracking store as tidy, typed DataFrames.

A column has the name of its param or metric; numbers are numbers, choices are categoricals, and NaN and the
infinities are what was logged. If a name was used for several studies in turn, the newest one is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from fanin.database import Database
from fanin.errors import ConfigError, unknown
from fanin.server import Server
from fanin.tracking import Tracker, resolve, sqlite_file

LARGEST = 1.7976931348623157e308  # what MLflow's SQL stores keep instead of infinity
PER_LAYER = ("weight/", "grad/", "update/", "activation/", "signal/")
OF_A_RUN = ["run_id", "name", "variant", "replicate", "status", "reason", "diagnosis"]
OF_A_RUN += ["start", "seconds", "diverged"]


def runs(
    study: str,
    *,
    where: Mapping[str, object] | None = None,
    project: str | Path = ".",
    uri: str | None = None,
) -> pandas.DataFrame:
    """One row per run, by variant and replicate: identity, status, times, diverged; params; metrics.

    A metric's column has its last value ("test/accuracy"), or its best ("best val/accuracy"); per-layer
    statistics are in `layers`. `where` keeps the rows whose columns equal a value or one of several:
    where={"optimizer.lr": 0.1, "initializer": ["he_normal", "zeros"]}.
    """
    source = _open(study, project=project, uri=uri)
    latest = source.latest(study)
    latest = latest[~latest["key"].str.startswith(PER_LAYER)]
    metrics = _spread(_exact(latest))
    table = _timed(_with_identity(source, study).join(metrics, on="run_id"))
    params = _typed(_spread(source.entries(study, "params")))
    table = table.join(params.drop(columns=[*table.columns], errors="ignore"), on="run_id")
    return _keep(_ordered(table, *OF_A_RUN, *params.columns), where)


def curves(
    study: str,
    metrics: str | Sequence[str] | None = None,
    *,
    project: str | Path = ".",
    uri: str | None = None,
) -> pandas.DataFrame:
    """One row per point: run_id, variant, replicate, step, metric, value, and the params that were swept.

    `metrics` are names or glob patterns ("val/*"); all metrics if None.
    """
    source = _open(study, project=project, uri=uri)
    patterns = ["*"] if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    points = _points(source, study, patterns).rename(columns={"key": "metric"})
    points = points[~points["metric"].str.startswith("best ")] if metrics is None else points
    table = _of_runs(source, study).merge(points, on="run_id")
    table["metric"] = table["metric"].astype("category")
    return _ordered(table, "run_id", "variant", "replicate", "step", "metric", "value")


def layers(study: str, *, project: str | Path = ".", uri: str | None = None) -> pandas.DataFrame:
    """One row per run, step and layer: run_id, variant, replicate, step, layer, and a column per statistic.

    The metric weight/<layer>/std is in column weight_std. A statistic that a layer does not have is NaN.
    """
    source = _open(study, project=project, uri=uri)
    points = _points(source, study, [f"{kind}*" for kind in PER_LAYER])
    names = points["key"].str.extract(r"^(?P<kind>[^/]+)/(?P<layer>.+)/(?P<statistic>[^/]+)$")
    points["layer"] = pandas.Categorical(names["layer"], sorted(names["layer"].unique(), key=_natural))
    points["column"] = names["kind"] + "_" + names["statistic"]
    index = ["run_id", "step", "layer"]
    wide = points.set_index([*index, "column"])["value"].unstack("column").reset_index()
    wide.columns.name = None
    runs_ = _of_runs(source, study)[["run_id", "variant", "replicate"]]
    table = runs_.merge(wide, on="run_id")
    return _ordered(table, "run_id", "variant", "replicate", "step", "layer")


def studies(*, project: str | Path = ".", uri: str | None = None) -> list[str]:
    return sorted(_source(Path(project), uri).studies())


@dataclass(frozen=True)
class About:
    """What a study asked, as its parent run tells; `tags` are all of that run's."""

    question: str
    swept: tuple[str, ...]
    metric: str
    direction: str
    tags: Mapping[str, str]


def about(study: str, *, project: str | Path = ".", uri: str | None = None) -> About:
    """The study's question, swept params, metric, direction and tags."""
    tags = _open(study, project=project, uri=uri).study_tags(study) or {}
    return About(
        question=tags.get("fanin.question", ""),
        swept=tuple(json.loads(tags.get("fanin.swept", "[]"))),
        metric=tags.get("fanin.metric", "val/accuracy"),
        direction=tags.get("fanin.direction", "maximize"),
        tags=tags,
    )


def _open(study: str, *, project: str | Path, uri: str | None) -> Database | Server:
    """The source that has the study; ConfigError with the nearest names if there is none."""
    source = _source(Path(project), uri)
    names = source.studies()
    if not names:
        raise ConfigError(f"study: {study!r} is not there, nor is any other that this user may read")
    if study not in names or source.study_tags(study) is None:
        raise unknown("study", study, names)
    return source


def _source(project: Path, uri: str | None) -> Database | Server:
    uri = resolve(uri, project=project.resolve())
    file = sqlite_file(uri)
    if file is None:
        return Server(Tracker(project=project, uri=uri))
    if not file.exists():
        raise ConfigError(f"there is no tracking database {file}; `fanin sweep` makes one")
    database = Database(file)
    return database if database.supported else Server(Tracker(project=project, uri=uri))


def _with_identity(source: Database | Server, study: str) -> pandas.DataFrame:
    """run_id, status, start, end, name, and from the tags variant, replicate, reason, diagnosis."""
    names = {f"fanin.{word}": word for word in ("variant", "replicate", "reason", "diagnosis")}
    tags = source.entries(study, "tags")  # before the runs: a run that appears now is left out
    wide = _spread(tags[tags["key"].isin(list(names))]).reindex(columns=list(names)).rename(columns=names)
    table = source.runs(study).join(wide[wide["variant"].notna()], on="run_id", how="inner")
    table["replicate"] = table["replicate"].astype("int64")
    # the same order whenever and in whatever order the runs were trained
    table = table.sort_values(["variant", "replicate"], ignore_index=True)
    for column in ("variant", "status", "reason", "diagnosis"):
        table[column] = table[column].replace("", None).astype("category")
    return table


def _of_runs(source: Database | Server, study: str) -> pandas.DataFrame:
    """run_id, variant, replicate and the swept params: a row per run."""
    swept = json.loads((source.study_tags(study) or {}).get("fanin.swept", "[]"))
    params = source.entries(study, "params")
    params = _typed(_spread(params[params["key"].isin(swept)]))
    table = _with_identity(source, study)[["run_id", "variant", "replicate"]]
    return table.join(params.drop(columns=["replicate"], errors="ignore"), on="run_id")


def _points(source: Database | Server, study: str, patterns: Sequence[str]) -> pandas.DataFrame:
    """run_id, key, step, value: sorted, each point once (a later timestamp wins)."""
    points = _exact(source.points(study, patterns))
    points = points.sort_values(["run_id", "key", "step", "time"], ignore_index=True).drop(columns="time")
    return points.drop_duplicates(["run_id", "key", "step"], keep="last", ignore_index=True)


def _exact(table: pandas.DataFrame) -> pandas.DataFrame:
    """With the infinities that MLflow's SQL stores replaced by the largest number."""
    values = table["value"].to_numpy(dtype=float, na_value=numpy.nan, copy=True)
    values[values >= LARGEST] = numpy.inf
    values[values <= -LARGEST] = -numpy.inf
    return table.assign(value=values)


def _spread(tall: pandas.DataFrame) -> pandas.DataFrame:
    """run_id, key, value -> one row per run_id, one column per key."""
    wide = tall.set_index(["run_id", "key"])["value"].unstack("key")
    wide.columns.name = None
    return wide


def _typed(params: pandas.DataFrame) -> pandas.DataFrame:
    return params.apply(_typed_column) if len(params.columns) else params


def _typed_column(texts: pandas.Series) -> pandas.Series:
    """Numbers as numbers, true and false as bool, the rest as categories; null and absent as missing."""
    texts = texts.where(texts.ne("null"))
    if texts.notna().all() and texts.isin(["true", "false"]).all():
        return texts.eq("true")
    try:
        return pandas.to_numeric(texts)
    except ValueError:
        return texts.astype("category")


def _timed(table: pandas.DataFrame) -> pandas.DataFrame:
    """With start as a time, seconds (the metric, else from start to end) and diverged as a bool."""
    elapsed = (table.pop("end") - table["start"]) / 1000
    seconds = table["seconds"].fillna(elapsed) if "seconds" in table else elapsed
    diverged = table["diverged"].eq(1) if "diverged" in table else False
    start = pandas.to_datetime(table["start"], unit="ms", utc=True)
    return table.assign(start=start, seconds=seconds, diverged=diverged)


def _ordered(table: pandas.DataFrame, *first: str) -> pandas.DataFrame:
    """With these columns first."""
    there = [column for column in dict.fromkeys(first) if column in table]
    return table[there + [column for column in table.columns if column not in there]]


def _keep(table: pandas.DataFrame, where: Mapping[str, object] | None) -> pandas.DataFrame:
    for key, value in (where or {}).items():
        if key not in table:
            raise unknown("where", key, table.columns)
        table = table[table[key].isin(value if isinstance(value, list | tuple | set) else [value])]
    return table.reset_index(drop=True)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which layers.10 comes after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in text.split(".")]
