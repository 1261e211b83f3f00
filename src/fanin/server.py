"""Reads any tracking store through MLflow's client: exact, but a request for each run and metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

import pandas

from fanin.tracking import Tracker


class Server:
    """The studies in any tracking store; answers as Database does."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._children: dict[str, list] = {}  # study -> its runs: one answer for all questions

    def studies(self) -> list[str]:
        with self._tracker.translated() as client:
            return [e.name for e in _pages(client.search_experiments) if e.name != "Default"]

    def study_tags(self, study: str) -> dict[str, str] | None:
        parent = self._parent(study)
        return dict(parent.data.tags) if parent else None

    def runs(self, study: str) -> pandas.DataFrame:
        rows = [
            (r.info.run_id, r.info.status, r.info.start_time, r.info.end_time, r.info.run_name)
            for r in self._runs(study)
        ]
        return pandas.DataFrame(rows, columns=["run_id", "status", "start", "end", "name"])

    def entries(self, study: str, table: str) -> pandas.DataFrame:
        return _tall((run.info.run_id, getattr(run.data, table)) for run in self._runs(study))

    def latest(self, study: str) -> pandas.DataFrame:
        return _tall((run.info.run_id, run.data.metrics) for run in self._runs(study))

    def points(self, study: str, patterns: Sequence[str]) -> pandas.DataFrame:
        wanted = [
            (run.info.run_id, key)
            for run in self._runs(study)
            for key in run.data.metrics
            if any(fnmatchcase(key, pattern) for pattern in patterns)
        ]
        with (
            self._tracker.translated() as client,
            ThreadPoolExecutor(8) as pool,
        ):  # the server's time, not ours
            histories = list(pool.map(lambda pair: client.get_metric_history(*pair), wanted))
        rows = [
            (run, key, point.step, point.value, point.timestamp)
            for (run, key), history in zip(wanted, histories, strict=True)
            for point in history
        ]
        return pandas.DataFrame(rows, columns=["run_id", "key", "step", "value", "time"])

    def _parent(self, study: str) -> Any:
        rule, order = "tags.`fanin.swept` != ''", ["attributes.start_time DESC"]
        with self._tracker.translated() as client:
            experiment = client.get_experiment_by_name(study)
            assert experiment, f"{study} is none of studies()"
            found = client.search_runs([experiment.experiment_id], rule, order_by=order, max_results=1)
        return found[0] if found else None

    def _runs(self, study: str) -> list:
        if study not in self._children:
            parent = self._parent(study)
            rule = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
            order = ["attributes.start_time", "attributes.run_id"]
            with self._tracker.translated() as client:
                found = _pages(client.search_runs, [parent.info.experiment_id], filter_string=rule, order_by=order)
            # pages shift when runs are added meanwhile: a run may come twice
            self._children[study] = list({run.info.run_id: run for run in found}.values())
        return self._children[study]


def _tall(mappings: Iterable[tuple[str, Mapping]]) -> pandas.DataFrame:
    rows = [(run, key, value) for run, mapping in mappings for key, value in mapping.items()]
    return pandas.DataFrame(rows, columns=["run_id", "key", "value"])


def _pages(search: Callable, *arguments: object, **options: object) -> list:
    """All results of a search of MLflow's client, 1000 at a time."""
    page = search(*arguments, max_results=1000, **options)
    found = list(page)
    while page.token:
        page = search(*arguments, max_results=1000, page_token=page.token, **options)
        found += page
    return found
