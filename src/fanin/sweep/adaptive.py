"""The plan of a search: a sampler proposes variants, each trained under every replicate; their mean is its
value.

A variant's runs go out as workers become free: nobody waits for the slowest. A pruner that judges epochs
looks at the first replicate, and the others follow if it survives; one that judges replicates (wilcoxon) sees
each as it ends. With study.on_divergence=stop, a trial ends with the first replicate that diverges. What a
killed coordinator left open is taken up again, and a run that was finished then is not repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fanin.errors import ConfigError
from fanin.sweep.checks import check_held
from fanin.sweep.folder import Outcome, StudyFolder
from fanin.sweep.plan import Job, Planned, Queue, plan_job, result_of, value_of
from fanin.sweep.search import Search, Trial
from fanin.sweep.study import Study, Variant


@dataclass
class OpenTrial:
    """A trial whose runs are not all in."""

    variant: Variant
    results: dict[int, Outcome] = field(default_factory=dict)


class SearchPlan:
    def __init__(
        self,
        study: Study,
        search: Search,
        folder: StudyFolder,
        *,
        compose: Callable[[Mapping[str, str]], Variant],
    ) -> None:
        self.study, self.search, self.folder = study, search, folder
        self.compose = compose
        self._ended: dict[str, Planned] = {}
        self.refused: dict[str, str] = {}  # variant name -> why its configuration could not be run
        self._queue = Queue()
        self._trials: dict[int, OpenTrial] = {}
        self._exhausted = False
        self._twins: dict[str, list[Job]] = {}  # run key -> the same run, wanted by further trials
        self._by_replicates = study.pruner_name == "wilcoxon"
        self._one_by_one = self._by_replicates or study.one_by_one
        self._sequential = study.pruner is not None or self._one_by_one
        self._skipped = 0  # runs that an early end of their trial made needless
        left = search.reap()
        known = [(trial, compose(trial.values)) for trial in search.trials if trial.state in ("complete", "pruned")]
        check_held(study, [variant for _, variant in known], folder.path / "runs")
        for trial, variant in known:
            self._recall(trial, variant)
        self.known = len(self._ended)
        for trial in [*left, *self._to_retry()]:
            self._adopt(trial)

    @property
    def total(self) -> int | None:
        trials = self.study.budget.trials
        return None if trials is None else trials * self.study.replicates - self._skipped

    @property
    def done(self) -> bool:
        return self._exhausted and self._queue.empty

    @property
    def judge(self) -> Search:
        return self.search

    @property
    def reports(self) -> bool:
        return self.study.pruner is not None and not self._by_replicates

    def next(self) -> Job | None:
        while not self._queue.waiting and not self._exhausted:
            limit = self.study.budget.trials
            trial = None if limit is not None and self.search.points >= limit else self.search.ask()
            if trial is None:
                self._exhausted = True
            else:
                self._adopt(trial)
        return self._queue.take()

    def report(self, job: Job, record: Mapping[str, Any]) -> str | None:
        if job.replicate > 0 or record["epoch"] == 0 or job.trial not in self._trials:
            return None  # a trial that has ended is done again when its run was lost with another machine
        metric = self.study.objective.metric
        value = record["metrics"].get(metric)
        if value is None or not self.search.report(job.trial, record["epoch"], value):
            return None
        return f"{self.study.pruner_name}: {metric} {value:.4g} at epoch {record['epoch']}"

    def finish(self, job: Job, result: Outcome) -> float | None:
        self._queue.settle(job)
        value = self._take_in(job, result)
        for twin in self._twins.pop(job.key, []):
            self._take_in(twin, result)
        return value

    def retry(self, job: Job) -> bool:
        return self._queue.retry(job)

    @property
    def best(self) -> float | None:
        """A target is for the first objective, which alone has an order when there are several."""
        sign = self.study.objective.sign
        scores = [trial.scores[0] for trial in self.search.trials if trial.state == "complete" and trial.scores]
        return max(scores, key=lambda score: sign * score, default=None)

    def _to_retry(self) -> list[Trial]:
        """Points that failed in an earlier session and were not tried since, as new trials."""
        done = {_identity(trial) for trial in self.search.trials if trial.state != "failed"}
        failed = {_identity(t): t for t in self.search.trials if t.state == "failed" and _identity(t) not in done}
        return [trial for t in failed.values() if (trial := self.search.ask(t.values)) is not None]

    def _recall(self, trial: Trial, variant: Variant) -> None:
        """Take in the runs of a trial that an earlier session ended. Replicates that were added since are
        trained, too; what the search was told of the trial stays."""
        diverged = False
        for replicate in range(self.study.replicates):
            job = plan_job(self.study, variant, replicate, self.folder, number=trial.number, trial=trial.number)
            result = result_of(job)
            if result is not None:
                self._ended[job.key] = Planned(variant, replicate, result)
                diverged |= self._ends(result)
            elif trial.state == "complete" and not diverged and not self._queue.holds(job.key):
                self._queue.add(job)
            else:
                self._skipped += 1

    def ended(self) -> list[Planned]:
        return list(self._ended.values())

    def _adopt(self, trial: Trial) -> None:
        try:
            variant = self.compose(trial.values)
        except ConfigError as error:
            self.refused[" ".join(f"{k}={v}" for k, v in trial.values.items())] = str(error)
            return self.search.tell(trial.number, state="failed")
        self._trials[trial.number] = OpenTrial(variant)
        self._plan(trial.number, 0)
        if not self._sequential:
            for replicate in range(1, self.study.replicates):
                self._plan(trial.number, replicate)

    def _plan(self, number: int, replicate: int) -> None:
        if number not in self._trials:
            return  # ended meanwhile: a run known from before decided it
        job = plan_job(self.study, self._trials[number].variant, replicate, self.folder, number=number, trial=number)
        result = result_of(job)
        if result is not None:
            self._take_in(job, result)
        elif self._queue.holds(job.key):
            self._twins.setdefault(job.key, []).append(job)
        else:
            self._queue.add(job)

    def _take_in(self, job: Job, result: Outcome) -> float | None:
        assert job.trial is not None
        self._ended[job.key] = Planned(job.variant, job.replicate, result)
        if job.trial not in self._trials:
            return None  # another replicate has decided the trial meanwhile
        trial = self._trials[job.trial]
        trial.results[job.replicate] = result
        if result.status == "FAILED":
            return self._close(job.trial, state="failed")
        if result.pruned:
            return self._close(job.trial, state="pruned")
        if len(trial.results) == self.study.replicates or self._ends(result):
            return self._close(job.trial, state="complete")
        if self._by_replicates and self.search.report(job.trial, job.replicate, self._values(result)[0]):
            return self._close(job.trial, state="pruned")
        for replicate in self._next_replicates(job.replicate):
            self._plan(job.trial, replicate)
        return None

    def _ends(self, result: Outcome) -> bool:
        """Whether its trial gets no further replicates."""
        return self.study.stops_diverging and bool(result.metrics.get("diverged"))

    def _next_replicates(self, ended: int) -> Sequence[int]:
        """Those that waited for replicate `ended`."""
        if self._one_by_one:
            return [ended + 1]
        return range(1, self.study.replicates) if self._sequential and ended == 0 else []

    def _values(self, result: Outcome) -> list[float]:
        return [value_of(result, objective, classes=self.study.classes) for objective in self.study.objectives]

    def _close(self, number: int, *, state: str) -> float | None:
        trial = self._trials.pop(number)
        self._skipped += self.study.replicates - len(trial.results)
        for job in self._queue.withdraw(lambda job: job.trial == number):
            if twins := self._twins.get(job.key):
                self._queue.add(twins.pop(0))
        rows = [self._values(result) for result in trial.results.values() if result.status == "FINISHED"]
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        if state == "complete" or (state == "pruned" and self._by_replicates):
            self.search.tell(number, means, state=state)
        else:
            self.search.tell(number, state=state)
        return means[0] if state == "complete" else None


def _identity(trial: Trial) -> frozenset[tuple[str, str]]:
    return frozenset(trial.values.items())
