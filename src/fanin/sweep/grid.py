"""The plan of a grid: all variants times all replicates, in a fixed order, each done exactly once.

Every variant's first replicate comes before any second one, so that a comparison of all variants is there
early. Optuna's GridSampler is no help here: it runs points twice and never retries a failed one.

Where one replicate decides whether there is a next, a variant's replicates go one after the other: with a
pruner, by which Optuna judges the first replicate of each variant, with study.prune_on and with
study.on_divergence=stop. With racing, replicates are added round by round, and only to the variants that are
not yet shown to be worse than the best (race.py). So which runs there are never depends on how many workers
there were.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fanin.sweep import race
from fanin.sweep.folder import Outcome, StudyFolder
from fanin.sweep.plan import Job, Planned, Queue, plan_job, result_of, value_of
from fanin.sweep.study import Study, Variant

if TYPE_CHECKING:
    from fanin.sweep.search import Search


class GridPlan:
    search = None  # a grid's points are listed
    refused: Mapping[str, str] = {}  # its configurations were checked before

    def __init__(
        self, study: Study, variants: Sequence[Variant], folder: StudyFolder, *, judge: "Search | None" = None
    ) -> None:
        self.study, self.folder, self.judge = study, folder, judge
        distinct = {variant.key: variant for variant in variants}.values()
        self.variants = list(distinct)[: study.budget.trials]
        self.results: dict[str, Outcome] = {}
        self._queue = Queue()
        self._numbers = {variant.key: number for number, variant in enumerate(self.variants)}
        self._jobs: dict[str, list[Job]] = {key: [] for key in self._numbers}  # by variant and replicate
        self._stopped: dict[str, str] = {}  # variant key -> why it gets no further replicates
        self._wanted = dict.fromkeys(
            self._numbers, study.racing["min_replicates"] if study.racing else study.replicates
        )
        self._one_by_one = judge is not None or study.one_by_one
        self._trials: dict[str, int] = {}
        if judge:
            self._trials = {_text(t.values): t.number for t in judge.trials if t.state == "running"}
        for replicate in range(max(self._wanted.values(), default=0)):
            for variant in self.variants:
                self._plan(variant, replicate)
        self._race()
        self.known = len(self.results)  # runs that were done before this session

    @property
    def total(self) -> int | None:
        return sum(len(jobs) if key in self._stopped else self._wanted[key] for key, jobs in self._jobs.items())

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
        return f"{self.study.pruner_name}: {self.study.objective.metric} {value:.4g} at epoch {record['epoch']}"

    def finish(self, job: Job, result: Outcome) -> float | None:
        self._queue.settle(job)
        self._note(job, result)
        self._grow(job.variant)
        self._race()
        return self.value(job.variant)

    def retry(self, job: Job) -> bool:
        return self._queue.retry(job)

    def value(self, variant: Variant) -> float | None:
        """The mean over replicates, once all that are wanted are in."""
        jobs = self._jobs[variant.key]
        results = [self.results[job.key] for job in jobs if job.key in self.results]
        wanted = len(jobs) if variant.key in self._stopped else self._wanted[variant.key]
        if len(results) < wanted or any(result.status != "FINISHED" for result in results):
            return None
        values = [value_of(r, self.study.objective, classes=self.study.classes) for r in results]
        return sum(values) / len(values)

    @property
    def best(self) -> float | None:
        values = [value for variant in self.variants if (value := self.value(variant)) is not None]
        return max(values, key=lambda value: self.study.objective.sign * value, default=None)

    def ended(self) -> list[Planned]:
        jobs = [job for jobs in self._jobs.values() for job in jobs if job.key in self.results]
        return [Planned(job.variant, job.replicate, self.results[job.key]) for job in jobs]

    @property
    def dropped(self) -> dict[str, str]:
        """Variant key -> why it got fewer replicates than the others."""
        return dict(self._stopped)

    def _grow(self, variant: Variant) -> None:
        """Plan the variant's replicates that are wanted and whose turn has come."""
        for replicate in range(self._wanted[variant.key]):
            self._plan(variant, replicate)

    def _plan(self, variant: Variant, replicate: int) -> None:
        jobs = self._jobs[variant.key]
        if replicate < len(jobs) or variant.key in self._stopped:
            return
        if self._one_by_one and jobs and jobs[-1].key not in self.results:
            return
        assert replicate == len(jobs)
        number = self._numbers[variant.key]
        job = plan_job(self.study, variant, replicate, self.folder, number=number)
        jobs.append(job)
        result = result_of(job)
        if result is None:
            self._queue.add(job)
        else:
            self._note(job, result)

    def _note(self, job: Job, result: Outcome) -> None:
        self.results[job.key] = result
        if (
            self.judge
            and job.replicate == 0
            and (number := self._trials.pop(_text(job.variant.values), None)) is not None
        ):
            self._tell(number, result)
        if result.pruned:
            self._stop(job.variant, result.reason or "pruned")
        elif self.study.stops_diverging and result.metrics.get("diverged"):
            self._stop(job.variant, "diverged")

    def _stop(self, variant: Variant, reason: str) -> None:
        """No more replicates for this variant; those that run may end."""
        self._stopped[variant.key] = reason
        for job in self._queue.withdraw(lambda job: job.variant.key == variant.key):
            self._jobs[variant.key].remove(job)

    def _race(self) -> None:
        """Decide on further replicates, again while results from before are all that it takes."""
        known = -1
        while self.study.racing and known < len(self.results):
            known = len(self.results)
            verdicts = race.decide(
                {variant.key: self._seen(variant) for variant in self.variants},
                direction=self.study.objective.direction,
                max_replicates=self.study.replicates,
                **self.study.racing,
            )
            for variant in self.variants:
                self._follow(variant, verdicts[variant.key])

    def _follow(self, variant: Variant, verdict: race.Verdict) -> None:
        if verdict.action == "drop" and variant.key not in self._stopped:
            self._stop(variant, f"racing: {self._by_name(verdict.reason)}")
        elif verdict.action == "continue":
            self._wanted[variant.key] = max(self._wanted[variant.key], verdict.needed)
            self._grow(variant)

    def _seen(self, variant: Variant) -> dict[int, float]:
        """Replicate -> value of the runs that are in. A failed run, and those that a pruned or diverged
        variant does not get, count as worst: they cannot hold up the race."""
        seen = {}
        for replicate in range(self.study.replicates):
            result = self.results.get(f"{variant.key}-r{replicate}")
            if result and result.status == "FINISHED":
                seen[replicate] = value_of(result, self.study.objective, classes=self.study.classes)
            elif result or variant.key in self._stopped:
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

    def _tell(self, number: int, result: Outcome) -> None:
        assert self.judge
        if result.pruned:
            self.judge.tell(number, state="pruned")
        elif result.status == "FAILED":
            self.judge.tell(number, state="failed")
        else:
            self.judge.tell(number, value_of(result, self.study.objective, classes=self.study.classes))


def _text(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in sorted(values.items()))
