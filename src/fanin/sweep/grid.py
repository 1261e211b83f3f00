"""The plan of a grid: all variants times all replicates, in a fixed order, each done exactly once.

Every variant's first replicate comes before any second one, so that a comparison of all variants is there early.
Optuna's GridSampler is no help here: it runs points twice and never retries a failed one. With a pruner, Optuna
judges the first replicate of each variant; a variant pruned there gets no others. With racing, replicates are
added round by round, and only to the variants that are not yet shown to be worse than the best (race.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fanin.sweep import race
from fanin.sweep.folder import Outcome, StudyFolder
from fanin.sweep.plan import Job, Planned, Queue, plan_job, result_of, value_of
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
        self._stopped: dict[str, str] = {}  # variant key -> why it gets no further replicates
        self._trials: dict[str, int] = {}
        if judge:
            self._trials = {
                _text(trial.values): trial.number for trial in judge.trials if trial.state == "running"
            }
        for replicate in range(study.racing["min_replicates"] if study.racing else study.replicates):
            for variant in self.variants:
                self._plan(variant, replicate)
        self._race()
        self.known = len(self.results)  # runs that were done before this session

    @property
    def total(self) -> int | None:
        return len(self._planned)

    @property
    def done(self) -> bool:
        return self._queue.empty

    @property
    def reports(self) -> bool:
        return self.judge is not None

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
        return (
            f"{self.study.pruner_name}: {self.study.objective.metric} {value:.4g} at epoch {record['epoch']}"
        )

    def finish(self, job: Job, result: Outcome) -> float | None:
        self._queue.settle(job)
        self._note(job, result)
        self._tell(job, result)
        self._race()
        if result.status != "FINISHED":
            return None
        return self.value(job.variant)

    def retry(self, job: Job) -> bool:
        return self._queue.retry(job)

    def value(self, variant: Variant) -> float | None:
        """The mean over replicates, once all that are planned are in."""
        keys = [job.key for job in self._planned.values() if job.variant.key == variant.key]
        results = [self.results[key] for key in keys if key in self.results]
        if len(results) < len(keys) or any(result.status != "FINISHED" for result in results):
            return None
        values = [value_of(r, self.study.objective, classes=self.study.classes) for r in results]
        return sum(values) / len(values)

    def ended(self) -> list[Planned]:
        jobs = {key: job for key, job in self._planned.items() if key in self.results}
        return [Planned(job.variant, job.replicate, self.results[key]) for key, job in jobs.items()]

    @property
    def dropped(self) -> dict[str, str]:
        """Variant key -> why it got fewer replicates than the others."""
        return dict(self._stopped)

    def _plan(self, variant: Variant, replicate: int) -> None:
        job = plan_job(self.study, variant, replicate, self.folder, number=self.variants.index(variant))
        if job.key in self._planned or variant.key in self._stopped:
            return
        self._planned[job.key] = job
        result = result_of(job)
        if result is None:
            self._queue.add(job)
        else:
            self._note(job, result)

    def _note(self, job: Job, result: Outcome) -> None:
        self.results[job.key] = result
        if result.pruned:
            self._stop(job.variant, result.reason or "pruned")

    def _stop(self, variant: Variant, reason: str) -> None:
        """No more replicates for this variant; those that run may end."""
        self._stopped[variant.key] = reason
        for job in [job for job in self._queue.waiting if job.variant.key == variant.key]:
            self._queue.waiting.remove(job)
            del self._planned[job.key]

    def _race(self) -> None:
        if not self.study.racing:
            return
        verdicts = race.decide(
            {variant.key: self._seen(variant) for variant in self.variants},
            direction=self.study.objective.direction,
            max_replicates=self.study.replicates,
            **self.study.racing,
        )
        for variant in self.variants:
            verdict = verdicts[variant.key]
            if verdict.action == "drop" and variant.key not in self._stopped:
                self._stop(variant, f"racing: {self._by_name(verdict.reason)}")
            elif verdict.action == "continue":
                for replicate in range(verdict.needed):
                    self._plan(variant, replicate)

    def _seen(self, variant: Variant) -> dict[int, float]:
        """Replicate -> value of the runs that are in; a failed run counts as worst, so that it cannot hold up the race."""
        seen = {}
        for replicate in range(self.study.replicates):
            result = self.results.get(f"{variant.key}-r{replicate}")
            if result and result.status == "FINISHED":
                seen[replicate] = value_of(result, self.study.objective, classes=self.study.classes)
            elif result:
                seen[replicate] = math.nan
        return seen

    def _by_name(self, text: str) -> str:
        for variant in self.variants:
            text = text.replace(variant.key, variant.name)
        return text

    def _trial(self, variant: Variant) -> int:
        assert self.judge
        text = _text(variant.values)
        if text not in self._trials:
            trial = self.judge.ask(variant.values)
            assert trial is not None, "a point given by name is always handed out"
            self._trials[text] = trial.number
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
