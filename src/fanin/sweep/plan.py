"""What to run next. A plan hands out jobs one at a time, hears how they went, and never hands out one twice.

A grid has its own plan (Optuna's GridSampler repeats points and never retries failures): every variant's first
replicate comes before any second one, so that a comparison of all variants is there early. With racing, further
replicates are added only for variants whose paired interval against the best is still undecided.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fanin.sweep import race
from fanin.sweep.folder import Outcome, StudyFolder, attempts, outcome
from fanin.sweep.study import Objective, Study, Variant

RETRIES = 2  # of a run whose worker died


@dataclass
class Job:
    """One run to do: its specification, its folder, and the trial it belongs to (in a search)."""

    spec: Mapping[str, Any]
    folder: Path
    variant: Variant
    replicate: int
    trial: int | None = None
    deaths: int = 0

    @property
    def key(self) -> str:
        return str(self.spec["key"])

    @property
    def name(self) -> str:
        return str(self.spec["name"])


class Plan(Protocol):
    """What the coordinator asks of a plan."""

    @property
    def total(self) -> int | None: ...
    @property
    def done(self) -> bool: ...
    @property
    def reports(self) -> bool:
        """Whether every epoch is judged (a pruner is at work)."""
        ...

    def next(self) -> Job | None:
        """A job to start now, or None when there is none (now, or at all: see `done`)."""
        ...

    def report(self, job: Job, record: Mapping[str, Any]) -> str | None:
        """Judge an epoch's record; the reason to prune the run, or None."""
        ...

    def finish(self, job: Job, result: Outcome) -> None:
        """The run ended (finished, pruned or failed for good)."""
        ...

    def retry(self, job: Job) -> bool:
        """The run's worker died: put it back, unless that happened too often."""
        ...


def chance(metric: str, *, classes: int) -> float | None:
    """The value of a network that knows nothing: what a diverged run counts as. None where there is none."""
    import math

    return {"accuracy": 1.0 / classes, "loss": math.log(classes)}.get(metric.rpartition("/")[2])


def value_of(result: Outcome, objective: Objective, *, classes: int) -> float:
    """A run's value: the final value of the metric, or chance level when it diverged. Infinity (the worst) where
    the metric has no chance level; raises KeyError when a finished run never recorded the metric."""
    import math

    value = result.metrics.get(objective.metric, math.nan)
    if result.metrics.get("diverged") or not math.isfinite(value):
        if objective.metric not in result.metrics and not result.metrics.get("diverged"):
            raise KeyError(objective.metric)
        level = chance(objective.metric, classes=classes)
        return level if level is not None else -objective.sign * math.inf
    return value


class GridPlan:
    """All variants times all replicates, in a fixed order."""

    reports = False

    def __init__(self, study: Study, variants: Sequence[Variant], folder: StudyFolder) -> None:
        self.study, self.variants, self.folder = study, list(variants), folder
        self.results: dict[str, Outcome] = {}
        self.dropped: dict[str, str] = {}  # variant key -> why racing gave it no more replicates
        self._queue: deque[Job] = deque()
        self._open: dict[str, Job] = {}
        self._planned: set[str] = set()
        rounds = study.racing["min_replicates"] if study.racing else study.replicates
        for replicate in range(rounds):
            self._plan_round(self.variants, replicate)

    @property
    def total(self) -> int | None:
        return len(self._planned)

    @property
    def done(self) -> bool:
        return not self._queue and not self._open

    def next(self) -> Job | None:
        if not self._queue:
            return None
        job = self._queue.popleft()
        self._open[job.key] = job
        return job

    def report(self, job: Job, record: Mapping[str, Any]) -> str | None:
        return None

    def finish(self, job: Job, result: Outcome) -> None:
        self.results[job.key] = result
        self._open.pop(job.key, None)
        if self.study.racing and self.done:
            self._race()

    def retry(self, job: Job) -> bool:
        self._open.pop(job.key, None)
        if job.deaths >= RETRIES:
            return False
        job.deaths += 1
        self._queue.appendleft(job)
        return True

    def _plan_round(self, variants: Sequence[Variant], replicate: int) -> None:
        for variant in variants:
            job = plan_job(self.study, variant, replicate, self.folder)
            if job.key in self._planned:
                continue  # two points that resolve to the same configuration are one variant
            self._planned.add(job.key)
            known = outcome(job.folder)
            if known and known.final:
                self.results[job.key] = known
            else:
                self._queue.append(job)

    def _race(self) -> None:
        """All planned runs are in: give the undecided variants one more replicate."""
        raise AssertionError("wired below, once race.decide is known")


def plan_job(study: Study, variant: Variant, replicate: int, folder: StudyFolder, trial: int | None = None) -> Job:
    spec = variant.spec(study.name, replicate)
    return Job(spec, folder.plan_run(spec), variant, replicate, trial=trial)
