"""Reads studies back from the tracking store as tidy, typed DataFrames.

A column has the name of its param or metric; numbers are numbers, choices are categoricals, and NaN and the
infinities are what was logged. If a name was used for several studies in turn, the newest one is read.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy
import pandas

from fanin.errors import ConfigError, unknown
from fanin.history import LARGEST, History
from fanin.server import Server
from fanin.source import Source, opened

LAYERED = re.compile(r"(weight|grad|update|activation|signal)/(.+)/([^/]+)")  # kind, layer, statistic
OF_A_RUN = ["run_id", "name", "variant", "replicate", "status", "reason", "diagnosis"]
OF_A_RUN += ["start", "seconds", "diverged"]
Patterns = str | Sequence[str] | None
Where = Mapping[str, object] | None


def runs(
    study: str,
    metrics: Patterns = None,
    *,
    where: Where = None,
    project: str | Path = ".",
    uri: str | None = None,
) -> pandas.DataFrame:
    """One row per run, by variant and replicate: identity, status, times, diverged; params; metrics.

    A metric's column has its last value ("test/accuracy"), or its best ("best val/accuracy"); per-layer
    statistics are in `layers`. `metrics` are names or glob patterns ("test/*"); all metrics if None. `where` keeps
    the rows whose columns equal a value or one of several:
    where={"optimizer.lr": 0.1, "initializer": ["he_normal", "zeros"]}.
    """
    with _open(study, project=project, uri=uri) as source:
        found = _read(source, study)
        chosen = _chosen(metrics, found.keys, lambda key: not _is_per_layer(key))
        table = _keep(_table(source, found, chosen), where, found)
    return _ordered(table, *OF_A_RUN, *found.params)


def curves(
    study: str,
    metrics: Patterns = None,
    *,
    where: Where = None,
    project: str | Path = ".",
    uri: str | None = None,
) -> pandas.DataFrame:
    """One row per point: run_id, variant, replicate, step, metric, value, and the params that were swept.

    `metrics` are names or glob patterns ("val/*"); all metrics if None. `where` is that of `runs`.
    """
    with _open(study, project=project, uri=uri) as source:
        found = _read(source, study, everything=bool(where))
        keys = _chosen(metrics, found.keys, lambda key: not key.startswith("best "))
        selected = _selected(source, found, where)
        history = source.points(selected["run_id"].tolist(), keys)
    table = _of_points(selected, history.run)
    metric = pandas.Categorical.from_codes(history.key, pandas.Index(keys, dtype="str"))
    table = table.assign(step=history.step, metric=metric, value=history.value)
    return _ordered(table, "run_id", "variant", "replicate", "step", "metric", "value")


def layers(
    study: str,
    metrics: Patterns = None,
    *,
    where: Where = None,
    project: str | Path = ".",
    uri: str | None = None,
) -> pandas.DataFrame:
    """One row per run, step and layer: run_id, variant, replicate, step, layer, and a column per statistic.

    The metric weight/<layer>/std is in column weight_std. A statistic that a layer does not have is NaN.
    `metrics` are names or glob patterns ("signal/*"); all if None. `where` is that of `runs`.
    """
    with _open(study, project=project, uri=uri) as source:
        found = _read(source, study, everything=bool(where))
        keys = _chosen(metrics, [key for key in found.keys if _is_per_layer(key)])
        selected = _selected(source, found, where)
        history = source.points(selected["run_id"].tolist(), keys)
    return _per_layer(selected[["run_id", "variant", "replicate"]], keys, history)


def metrics(study: str, *, project: str | Path = ".", uri: str | None = None) -> list[str]:
    """The names of all metrics that any run of the study has, sorted."""
    with _open(study, project=project, uri=uri) as source:
        return source.keys(source.runs(study)["run_id"].tolist())


def studies(*, project: str | Path = ".", uri: str | None = None) -> list[str]:
    with opened(project=Path(project), uri=uri) as source:
        return sorted(source.studies())


@dataclass(frozen=True)
class About:
    """What a study asked, as its parent run tells; `tags` are all of that run's."""

    question: str
    swept: tuple[str, ...]
    metric: str
    direction: str
    criteria: Mapping[str, Any] | None  # what the study claims; see docs/studies.md
    tags: Mapping[str, str]


def about(study: str, *, project: str | Path = ".", uri: str | None = None) -> About:
    """The study's question, swept params, metric, direction and tags."""
    with _open(study, project=project, uri=uri) as source:
        tags = source.study_tags(study) or {}
    return About(
        question=tags.get("fanin.question", ""),
        swept=tuple(json.loads(tags.get("fanin.swept", "[]"))),
        metric=tags.get("fanin.metric", "val/accuracy"),
        direction=tags.get("fanin.direction", "maximize"),
        criteria=json.loads(tags["fanin.criteria"]) if "fanin.criteria" in tags else None,
        tags=tags,
    )


@contextmanager
def _open(study: str, *, project: str | Path, uri: str | None) -> Iterator[Source]:
    """The source that has the study; ConfigError with the nearest names if there is none."""
    with opened(project=Path(project), uri=uri) as source:
        names = source.studies()
        if not names:
            _refuse_unrun(study, Path(project), source)
            raise ConfigError(f"study: {study!r} is not there, nor is any other that this user may read")
        if study not in names:
            _refuse_unrun(study, Path(project), source)
            raise unknown("study", study, names)
        if source.study_tags(study) is None:
            raise ConfigError(f"study: the experiment {study!r} has no run of a study, so it is none of fanin's")
        yield source


def _refuse_unrun(study: str, project: Path, source: Source) -> None:
    """Raise ConfigError if the study is a file that nobody has run, as far as the source shows it."""
    if (project / "sweeps" / f"{study}.yaml").exists():
        hidden = ", or this user may not read it" if isinstance(source, Server) else ""
        raise ConfigError(f"study: {study!r} has not been run yet{hidden}: fanin sweep {study}")


@dataclass(frozen=True)
class _Study:
    """What there is to know about the runs of a study before any metric is read."""

    swept: list[str]
    runs: pandas.DataFrame  # run_id, name, status, start, end, variant, replicate, reason, diagnosis
    params: pandas.DataFrame  # a row for each of the runs
    keys: list[str]  # the metrics that any run has


def _read(source: Source, study: str, *, everything: bool = True) -> _Study:
    """With all params, or the swept ones only."""
    swept = json.loads((source.study_tags(study) or {}).get("fanin.swept", "[]"))
    table = _identified(source, study)
    ids = table["run_id"].tolist()
    params = _spread(source.entries(ids, "params", None if everything else swept), ids)
    return _Study(swept, table, params.apply(_typed) if len(params.columns) else params, source.keys(ids))


def _identified(source: Source, study: str) -> pandas.DataFrame:
    """run_id, status, start, end, name, and from the tags variant, replicate, reason, diagnosis."""
    names = {f"fanin.{word}": word for word in ("variant", "replicate", "reason", "diagnosis")}
    table = source.runs(study)
    tags = _spread(source.entries([*table["run_id"]], "tags", [*names]), [*table["run_id"]])
    tags = tags.reindex(columns=[*names]).rename(columns=names)
    table = table.join(tags[tags["variant"].notna()], on="run_id", how="inner")
    table["replicate"] = table["replicate"].astype("int64")
    # the same order whenever and in whatever order the runs were trained
    table = table.sort_values(["variant", "replicate"], ignore_index=True)
    for column in ("variant", "status", "reason", "diagnosis"):
        table[column] = table[column].replace("", None).astype("category")
    return table


def _table(source: Source, study: _Study, keys: Sequence[str]) -> pandas.DataFrame:
    """A row per run with the last values of these metrics, times, diverged, and params; a metric's column hides a
    param's of the same name."""
    needed = [key for key in study.keys if key in {*keys, "seconds", "diverged"}]
    ids = study.runs["run_id"].tolist()
    latest = _exact(_spread(source.latest(ids, needed), ids, columns=needed))
    table = _timed(study.runs.join(latest, on="run_id"))
    return table.join(study.params.drop(columns=[*study.keys, *table.columns], errors="ignore"), on="run_id")


def _selected(source: Source, study: _Study, where: Where) -> pandas.DataFrame:
    """run_id, variant, replicate and the swept params of the runs that match."""
    table = study.runs.join(study.params.drop(columns=[*study.runs.columns], errors="ignore"), on="run_id")
    if where:
        table = _keep(_table(source, study, [*where]), where, study)
    return table[[column for column in ("run_id", "variant", "replicate", *study.swept) if column in table]]


def _chosen(patterns: Patterns, keys: Sequence[str], default: Callable[[str], bool] = bool) -> list[str]:
    """The keys that match one of the patterns, or for None the default ones. Raises ConfigError for a pattern that
    matches nothing."""
    if patterns is None:
        return [key for key in keys if default(key)]
    wanted = [patterns] if isinstance(patterns, str) else [*patterns]
    for pattern in wanted:
        if keys and not any(fnmatchcase(key, pattern) for key in keys):
            raise unknown("metrics", pattern, keys)
    return [key for key in keys if any(fnmatchcase(key, pattern) for pattern in wanted)]


def _keep(table: pandas.DataFrame, where: Where, study: _Study) -> pandas.DataFrame:
    """The rows whose columns equal a value or one of several."""
    for key, value in (where or {}).items():
        if key not in table:
            raise unknown("where", key, {*table.columns, *study.keys})
        table = table[table[key].isin(value if isinstance(value, list | tuple | set) else [value])]
    return table.reset_index(drop=True)


def _of_points(selected: pandas.DataFrame, run: numpy.ndarray) -> pandas.DataFrame:
    """The rows of the runs that the points are of. What is text is in categories: a million points take few bytes."""
    ids = pandas.Categorical.from_codes(run, pandas.Index(selected["run_id"], dtype="str"))
    return selected.iloc[run].reset_index(drop=True).assign(run_id=ids)


def _per_layer(selected: pandas.DataFrame, keys: Sequence[str], history: History) -> pandas.DataFrame:
    """A row per run, step and layer; a column per statistic."""
    parts = [match.groups() for match in map(LAYERED.fullmatch, keys) if match]
    layers_ = sorted({layer for _, layer, _ in parts}, key=_natural)
    names = sorted({f"{kind}_{statistic}" for kind, _, statistic in parts})
    layer = numpy.array([layers_.index(layer) for _, layer, _ in parts], dtype=int)[history.key]
    name = numpy.array([names.index(f"{kind}_{statistic}") for kind, _, statistic in parts], dtype=int)[history.key]
    steps, step = numpy.unique(history.step, return_inverse=True)
    place = (history.run.astype(int) * len(steps) + step) * len(layers_) + layer
    _, first, row = numpy.unique(place, return_index=True, return_inverse=True)
    columns = {column: numpy.full(len(first), numpy.nan) for column in names}
    for number, values in enumerate(columns.values()):
        here = name == number
        values[row[here]] = history.value[here]
    found = pandas.Categorical.from_codes(layer[first], pandas.Index(layers_, dtype="str"))
    return _of_points(selected, history.run[first]).assign(step=history.step[first], layer=found, **columns)


def _is_per_layer(key: str) -> bool:
    return LAYERED.fullmatch(key) is not None


def _exact(table: pandas.DataFrame) -> pandas.DataFrame:
    """As numbers, with the infinities that MLflow's SQL stores replaced by the largest number."""
    numbers = table.astype(float)
    return numbers.mask(numbers >= LARGEST, numpy.inf).mask(numbers <= -LARGEST, -numpy.inf)


def _spread(entries: Sequence[tuple], runs: Sequence[str], columns: Sequence[str] | None = None) -> pandas.DataFrame:
    """(run, key, value) -> one row for each of the runs, one column per key."""
    keys = sorted({key for _, key, _ in entries}) if columns is None else columns
    number = {run: number for number, run in enumerate(runs)}
    values: dict[str, list] = {key: [None] * len(number) for key in keys}
    for run, key, value in entries:
        values[key][number[run]] = value
    return pandas.DataFrame(values, index=pandas.Index([*number], dtype="str"), columns=[*keys])


def _typed(texts: pandas.Series) -> pandas.Series:
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


def _natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which layers.10 comes after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in text.split(".")]
