"""Reads any tracking store through MLflow's client: exact, but a request for each run and metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas

from fanin.history import History, gather, numbered
from fanin.tracking import Tracker

CONNECTIONS = 8


class Client:
    """The studies in any tracking store; answers as Database does."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._found: dict[str, Any] = {}  # run id -> the run: one answer for all questions

    def studies(self) -> list[str]:
        with self._tracker.translated() as client:
            return [e.name for e in _pages(client.search_experiments) if e.name != "Default"]

    def study_tags(self, study: str) -> dict[str, str] | None:
        parent = self._parent(study)
        return dict(parent.data.tags) if parent else None

    def runs(self, study: str) -> pandas.DataFrame:
        parent = self._parent(study)
        rule = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        order = ["attributes.start_time", "attributes.run_id"]
        with self._tracker.translated() as client:
            found = _pages(client.search_runs, [parent.info.experiment_id], filter_string=rule, order_by=order)
        # pages shift when runs are added meanwhile: a run may come twice
        self._found = {run.info.run_id: run for run in found}
        infos = [run.info for run in self._found.values()]
        rows = [(info.run_id, info.status, info.start_time, info.end_time, info.run_name) for info in infos]
        return pandas.DataFrame(rows, columns=["run_id", "status", "start", "end", "name"])

    def entries(self, runs: Sequence[str], table: str, keys: Sequence[str] | None = None) -> list[tuple]:
        return _tall(((run, getattr(self._found[run].data, table)) for run in runs), keys)

    def keys(self, runs: Sequence[str]) -> list[str]:
        return sorted({key for run in runs for key in self._found[run].data.metrics})

    def latest(self, runs: Sequence[str], keys: Sequence[str]) -> list[tuple]:
        return _tall(((run, self._found[run].data.metrics) for run in runs), keys)

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> History:
        pairs = [(run, key) for run, key, _ in self.latest(runs, keys)]
        with self._tracker.translated() as client, ThreadPoolExecutor(CONNECTIONS) as pool:
            histories = list(pool.map(lambda pair: client.get_metric_history(*pair), pairs))
        rows = [
            (run, key, point.step, point.value, point.timestamp)
            for (run, key), history in zip(pairs, histories, strict=True)
            for point in history
        ]
        numbers = ({name: number for number, name in enumerate(names)} for names in (runs, keys))
        return gather([numbered(rows, *numbers)])

    def _parent(self, study: str) -> Any:
        rule, order = "tags.`fanin.swept` != ''", ["attributes.start_time DESC"]
        with self._tracker.translated() as client:
            experiment = client.get_experiment_by_name(study)
            assert experiment, f"{study} is none of studies()"
            found = client.search_runs([experiment.experiment_id], rule, order_by=order, max_results=1)
        return found[0] if found else None


def _tall(mappings: Iterable[tuple[str, Mapping]], keys: Sequence[str] | None) -> list[tuple]:
    wanted = None if keys is None else {*keys}
    return [
        (run, key, value)
        for run, mapping in mappings
        for key, value in mapping.items()
        if wanted is None or key in wanted
    ]


def _pages(search: Callable, *arguments: object, **options: object) -> list:
    """All results of a search of MLflow's client, 1000 at a time."""
    page = search(*arguments, max_results=1000, **options)
    found = list(page)
    while page.token:
        page = search(*arguments, max_results=1000, page_token=page.token, **options)
        found += page
    return found
