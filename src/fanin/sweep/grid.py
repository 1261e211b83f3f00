"""The plan of a grid: all variants times all replicates, in a fixed order, each done exactly once.

Every variant's first replicate comes before any second one, so that a comparison of all variants is there early.
Own it is because Optuna's GridSampler runs points twice and never retries a failed one. With a pruner, Optuna
judges the first replicate of each variant; a variant pruned there gets no others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fanin.sweep.folder import Outcome, StudyFolder
from fanin.sweep.plan import Job, Queue, plan_job, result_of, value_of
from fanin.sweep.search import Search
from fanin.sweep.study import Study, Variant


class GridPlan:
    def __init__(
        self, study: Study, variants: Sequence[Variant], folder: StudyFolder, *, judge: Search | None = None
    ) -> None:
        self.study, self.folder, self.judge = study, folder, judge
        self.variants = list({variant.key: variant for variant in variants}.values())
        self.results: dict[str, Outcome] = {}
        self._queue = Queue()
        self._planned: dict[str, Job] = {}
        self._pruned: set[str] = set()
        self._trials: dict[str, int] = {}
        if judge:
            self._trials = {_text(trial.values): trial.number for trial in judge.trials}
        for replicate in range(study.replicates):
            for variant in self.variants:
                self.plan(variant, replicate)

    @property
    def total(self) -> int | None:
        return len(self._planned)

    @property
    def known(self) -> int:
        """Runs that were done before this session."""
        return len(self.results)

    @property
    def done(self) -> bool:
        return self._queue.empty

    @property
    def reports(self) -> bool:
        return self.judge is not None

    def plan(self, variant: Variant, replicate: int) -> None:
        if variant.key in self._pruned:
            return
        job = plan_job(self.study, variant, replicate, self.folder)
        self._planned[job.key] = job
        result = result_of(job)
        if result is None:
            self._queue.add(job)
        else:
            self._note(job, result)

    def next(self) -> Job | None:
        job = self._queue.take()
        if job and self.judge and job.replicate == 0:
            job.trial = self._trial(job.variant)
        return job

    def report(self, job: Job, record: Mapping[str, Any]) -> str | None:
        if self.judge is None or job.trial is None or record["epoch"] == 0:
            return None
        value = record["metrics"].get(self.study.objective.metric)
        if value is None or not self.judge.report(job.trial, record["epoch"], value):
            return None
        return f"{self.judge.pruner_name}: {self.study.objective.metric} {value:.4g} at epoch {record['epoch']}"

    def finish(self, job: Job, result: Outcome) -> float | None:
        self._queue.settle(job)
        self._note(job, result)
        self._tell(job, result)
        if result.status != "FINISHED":
            return None
        return self.value(job.variant)

    def retry(self, job: Job) -> bool:
        return self._queue.retry(job)

    def value(self, variant: Variant) -> float | None:
        """The mean over replicates, once all are in."""
        keys = [f"{variant.key}-r{replicate}" for replicate in range(self.study.replicates)]
        results = [self.results[key] for key in keys if key in self.results]
        if len(results) < len(keys) or any(result.status != "FINISHED" for result in results):
            return None
        values = [value_of(r, self.study.objective, classes=self.study.classes) for r in results]
        return sum(values) / len(values)

    def _note(self, job: Job, result: Outcome) -> None:
        self.results[job.key] = result
        if result.pruned:
            self._pruned.add(job.variant.key)
            for other in [o for o in self._queue.waiting if o.variant.key == job.variant.key]:
                self._queue.waiting.remove(other)
                del self._planned[other.key]

    def _trial(self, variant: Variant) -> int:
        assert self.judge
        text = _text(variant.values)
        if text not in self._trials:
            self._trials[text] = self.judge.ask(variant.values).number
        return self._trials[text]

    def _tell(self, job: Job, result: Outcome) -> None:
        if self.judge is None or job.trial is None:
            return
        if result.pruned:
            self.judge.tell(job.trial, state="pruned")
        elif result.status == "FAILED":
            self.judge.tell(job.trial, state="failed")
        else:
            self.judge.tell(job.trial, value_of(result, self.study.objective, classes=self.study.classes))


def _text(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in sorted(values.items()))
