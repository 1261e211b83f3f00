"""Reads a bare MLflow server: a request for a metric of a hundred runs, several at once, and nothing cut short.

The bulk route gives at most 25,000 rows and does not say if there were more. So runs are asked for together only
as far as their last steps promise fewer, and an answer is taken only if it has every run to its last step; what it
lacks is asked for in halves, and of a single run in pages, by the route of MLflow's client. The route that samples
is never used. Where much of a run is wanted and its points are among its artifacts as one sealed file (archive.py),
that file is fetched instead.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas

from fanin import archive
from fanin.history import LARGEST, Columns, History, gather, numbered
from fanin.points import Point
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

CONNECTIONS = 6
PATIENCE = 60  # s until an answer: with six questions at once, a busy server has taken over 15 for one
MOST_RUNS, MOST_ROWS = 100, 25_000  # that the bulk route takes and gives
DENSE = 500  # points of a run from which on its file is there sooner than they are: 20 us each
LOOKUP = 250  # points' worth, of each metric of a run: a server with accounts first looks up that run, 10 ms
PAGE = 200  # runs of a search: one with hundreds of metrics takes the server 10 ms
API = "/api/2.0/mlflow"
ARTIFACT = "/get-artifact"
BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"  # of MLflow's own pages
Row = tuple[str, str, int, float, int]  # run, key, step, value, time


@dataclass(frozen=True)
class Part:
    """Runs to ask for together, with the last step that each has of the metric."""

    key: str
    last: Mapping[str, int]

    def halves(self) -> list["Part"]:
        runs = [*self.last.items()]
        middle = len(runs) // 2
        return [Part(self.key, dict(half)) for half in (runs[:middle], runs[middle:])]


class Server:
    """The studies on an MLflow server; answers as Database does."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._parents: dict[str, Any] = {}
        self._found: dict[str, dict] = {}  # run id -> the run: one answer for all questions
        self._bulk = True  # until the server says that it has no such route, or not for us

    def studies(self) -> list[str]:
        found = self._pages(f"{API}/experiments/search", "experiments", max_results=1000)
        return [experiment["name"] for experiment in found if experiment["name"] != "Default"]

    def study_tags(self, study: str) -> dict[str, str] | None:
        parent = self._parent(study)
        return _pairs(parent, "tags") if parent else None

    def runs(self, study: str) -> pandas.DataFrame:
        info = self._parent(study)["info"]
        question = {
            "experiment_ids": [info["experiment_id"]],
            "filter": f"tags.`mlflow.parentRunId` = '{info['run_id']}'",
            "order_by": ["attributes.start_time", "attributes.run_id"],
        }
        found = self._pages(f"{API}/runs/search", "runs", max_results=PAGE, **question)
        # pages shift when runs are added meanwhile: a run may come twice
        self._found = {run["info"]["run_id"]: run for run in found}
        columns = {"run_id": "run_id", "status": "status", "start_time": "start", "end_time": "end", "run_name": "name"}
        rows = [[run["info"].get(name) for name in columns] for run in self._found.values()]
        return pandas.DataFrame(rows, columns=[*columns.values()])

    def entries(self, runs: Sequence[str], table: str, keys: Sequence[str] | None = None) -> list[tuple]:
        wanted = None if keys is None else {*keys}
        return [
            (run, key, value)
            for run in runs
            for key, value in _pairs(self._found[run], table).items()
            if wanted is None or key in wanted
        ]

    def keys(self, runs: Sequence[str]) -> list[str]:
        return sorted({key for run in runs for key in _pairs(self._found[run], "metrics")})

    def latest(self, runs: Sequence[str], keys: Sequence[str]) -> list[tuple]:
        return [(run, key, float(value)) for run, key, value in self.entries(runs, "metrics", keys)]

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> History:
        run_number = {run: number for number, run in enumerate(runs)}
        key_number = {key: number for number, key in enumerate(keys)}

        def fetch(part: Part) -> Columns:
            return numbered([*self._rows(part)], run_number, key_number)

        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            archived = dict(zip(runs, pool.map(lambda run: self._archived(run, {*keys}), runs), strict=True))
            files = [numbered(rows, run_number, key_number) for rows in archived.values() if rows is not None]
            rest = [run for run in runs if archived[run] is None]
            return gather([*files, *pool.map(fetch, self._parts(rest, keys))])
        finally:  # after an error, too: nobody waits for what was not begun
            pool.shutdown(cancel_futures=True)

    def _archived(self, run: str, keys: set[str]) -> list[Row] | None:
        """The points in the run's file, None if there is none that pays or that says what MLflow says."""
        last = {m["key"]: m for m in self._found[run].get("data", {}).get("metrics", ())}
        sealed = _pairs(self._found[run], "tags").get(archive.TAG)
        each = 1 + LOOKUP * self._tracker.signed_in
        if not sealed or sum(int(last[key].get("step", 0)) + each for key in keys & {*last}) < DENSE:
            return None
        question = {"run_uuid": run, "path": archive.FILE}
        try:
            points = archive.read(self._tracker.request("GET", ARTIFACT, params=question, timeout=PATIENCE))
        except (TrackingDown, TrackingRefused, ValueError):  # the bulk route knows the same
            return None
        ends = {point.key: point for point in points}
        agreed = ends.keys() == last.keys() and all(_equal(ends[key], last[key]) for key in ends)
        if not agreed or archive.seal(points) != sealed:
            return None
        return [(run, p.key, p.step, p.value, p.time) for p in points if p.key in keys]

    def _parts(self, runs: Sequence[str], keys: Sequence[str]) -> Iterator[Part]:
        last: dict[str, dict[str, int]] = {key: {} for key in keys}
        for run in runs:
            for metric in self._found[run].get("data", {}).get("metrics", ()):
                if metric["key"] in last:
                    last[metric["key"]][run] = int(metric.get("step", 0))
        for key in keys:
            yield from (Part(key, dict(some)) for some in _together(last[key]))

    def _rows(self, part: Part) -> Iterator[Row]:
        """All points of the part."""
        rows = self._ask_bulk(part) if self._bulk else None
        if rows is not None and _is_whole(rows, part):
            yield from rows
        elif rows is not None and len(part.last) > 1:
            for half in part.halves():
                yield from self._rows(half)
        else:
            for run in part.last:
                yield from self._paged(run, part.key)

    def _ask_bulk(self, part: Part) -> list[Row] | None:
        """Up to 25,000 points of the part; None if the server does not have the route, or not for us."""
        question = {"run_id": [*part.last], "metric_key": part.key, "max_results": MOST_ROWS}
        try:
            found = self._ask("GET", BULK, params=question)["metrics"]
        except TrackingRefused:
            self._bulk = False
            return None
        return [(m["run_id"], part.key, m["step"], float(m["value"]), m["timestamp"]) for m in found]

    def _paged(self, run: str, key: str) -> Iterator[Row]:
        question: dict[str, Any] = {"run_id": run, "metric_key": key, "max_results": MOST_ROWS}
        while True:
            answer = self._ask("GET", f"{API}/metrics/get-history", params=question)
            for metric in answer.get("metrics", ()):
                yield run, key, int(metric.get("step", 0)), float(metric["value"]), int(metric["timestamp"])
            if not answer.get("next_page_token"):
                return
            question["page_token"] = answer["next_page_token"]

    def _parent(self, study: str) -> Any:
        """The study's newest parent run, None if it has none. Asked once."""
        if study not in self._parents:
            named = self._ask("GET", f"{API}/experiments/get-by-name", params={"experiment_name": study})
            question = {
                "experiment_ids": [named["experiment"]["experiment_id"]],
                "filter": "tags.`fanin.swept` != ''",
                "order_by": ["attributes.start_time DESC"],
                "max_results": 1,
            }
            found = self._ask("POST", f"{API}/runs/search", json=question).get("runs", ())
            self._parents[study] = found[0] if found else None
        return self._parents[study]

    def _pages(self, route: str, name: str, **question: object) -> Iterator[dict]:
        """The entries under `name` on all pages of a search."""
        token = None
        while token != "":
            answer = self._ask("POST", route, json=question | ({"page_token": token} if token else {}))
            yield from answer.get(name, ())
            token = answer.get("next_page_token", "")

    def _ask(self, method: str, route: str, **arguments: object) -> dict:
        return json.loads(self._tracker.request(method, route, timeout=PATIENCE, **arguments))


def _pairs(run: Mapping, name: str) -> dict[str, Any]:
    """The params, tags or last metrics of a run in MLflow's JSON, which leaves out what is empty."""
    return {entry["key"]: entry.get("value", "") for entry in run.get("data", {}).get(name, ())}


def _equal(point: Point, metric: Mapping) -> bool:
    """A point is the last one that MLflow has."""
    value = max(-LARGEST, min(LARGEST, point.value)) if point.value == point.value else point.value
    same = value == float(metric["value"]) or value != value and math.isnan(float(metric["value"]))
    return same and (point.step, point.time) == (int(metric.get("step", 0)), int(metric["timestamp"]))


def _together(last: Mapping[str, int]) -> Iterator[list[tuple[str, int]]]:
    """The runs, with their last steps, in groups that the bulk route answers whole if no step is there twice."""
    group: list[tuple[str, int]] = []
    rows = 0
    for run, step in last.items():
        if group and (len(group) == MOST_RUNS or rows + step + 1 >= MOST_ROWS):
            yield group
            group, rows = [], 0
        group.append((run, step))
        rows += step + 1
    if group:
        yield group


def _is_whole(rows: Sequence[Row], part: Part) -> bool:
    """Nothing was cut off: every run is there, to the last step that it was known to have."""
    reached: dict[str, int] = {}
    for run, _, step, _, _ in rows:
        reached[run] = max(step, reached.get(run, step))
    return len(rows) < MOST_ROWS and all(reached.get(run, step - 1) >= step for run, step in part.last.items())
