"""What to run next. A plan hands out jobs one at a time, hears how they went, and never hands out one twice.

grid.py plans what can be listed, adaptive.py what a search proposes; here is what they share.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fanin.chance import chance
from fanin.sweep.folder import Outcome, StudyFolder, outcome
from fanin.sweep.study import Objective, Study, Variant

RETRIES = 2  # of a run whose worker died


@dataclass(eq=False)
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


@dataclass(frozen=True)
class Planned:
    """A run that has ended, for the summary."""

    variant: Variant
    replicate: int
    result: Outcome


class Plan(Protocol):
    """What the coordinator asks of a plan."""

    @property
    def total(self) -> int | None: ...
    @property
    def known(self) -> int:
        """Runs that were done before this session."""
        ...

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

    def finish(self, job: Job, result: Outcome) -> float | None:
        """The run ended (finished, pruned or failed for good). Returns the variant's value if it is known
        now."""
        ...

    def retry(self, job: Job) -> bool:
        """The run's worker died: put it back, unless that happened too often."""
        ...

    @property
    def best(self) -> float | None:
        """The best value of a variant that is known, from this session or before."""
        ...

    def ended(self) -> list[Planned]:
        """Every run that has ended, in this session or before."""
        ...


def value_of(result: Outcome, objective: Objective, *, classes: int | None) -> float:
    """A run's value: the final value of the metric, or chance level when it diverged. Infinity (the worst)
    where the metric has no chance level; raises KeyError when a finished run never recorded the metric."""
    value = result.metrics.get(objective.metric, math.nan)
    if result.metrics.get("diverged") or not math.isfinite(value):
        if objective.metric not in result.metrics and not result.metrics.get("diverged"):
            raise KeyError(objective.metric)
        level = chance(objective.metric, classes=classes)
        return level if level is not None else -objective.sign * math.inf
    return value


def plan_job(
    study: Study,
    variant: Variant,
    replicate: int,
    folder: StudyFolder,
    *,
    number: int = 0,
    trial: int | None = None,
    again: str = "",
    called: str = "",
) -> Job:
    """The job of one run. `number` counts the variants; `again` tells apart trainings of the same variant and
    replicate, which are `called` so, or by the model."""
    spec = study.spec(variant, replicate, number=number)
    if again:
        spec |= {"key": f"{spec['key']}-{again}", "name": f"{called or variant.composition.choices['model']} {again}"}
    return Job(spec, folder.plan_run(spec), variant, replicate, trial=trial)


def result_of(job: Job) -> Outcome | None:
    """The run's outcome if nothing is left to do for it."""
    known = outcome(job.folder)
    return known if known and known.final else None


class Queue:
    """Jobs waiting and jobs handed out; puts a job back when its worker died, at most RETRIES times."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self._keys: set[str] = set()  # of the jobs that wait or are handed out

    def add(self, job: Job) -> None:
        assert not self.holds(job.key)
        self._keys.add(job.key)
        self.waiting.append(job)

    def holds(self, key: str) -> bool:
        return key in self._keys

    def take(self) -> Job | None:
        return self.waiting.popleft() if self.waiting else None

    def settle(self, job: Job) -> None:
        self._keys.remove(job.key)

    def withdraw(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out the waiting jobs that are not wanted any more."""
        gone = [job for job in self.waiting if unwanted(job)]
        for job in gone:
            self.waiting.remove(job)
            self._keys.remove(job.key)
        return gone

    def retry(self, job: Job) -> bool:
        if job.deaths >= RETRIES:
            return False
        job.deaths += 1
        self.waiting.appendleft(job)
        return True

    @property
    def empty(self) -> bool:
        return not self._keys
