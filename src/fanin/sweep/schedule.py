"""The coordinator: who runs what now. It owns the study, and it is the only one who decides.

while the plan has jobs or runs are open:
    give every free worker a job                      no barrier: a slow run keeps one worker, not all
    hear the workers: a record -> judge it, show it, let it be shipped
                      an end    -> tell the plan
                      a death   -> name the cause, retry at most twice
    look for the end of the budget, for hung workers, and for Ctrl-C

A run that no worker works on has an end in its spool, whatever became of its worker: if the worker could not
write it, the coordinator does. So no run is ever left open by a session that ends.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from fanin import exits
from fanin.folders import Folder
from fanin.spool import Spool, SpoolBusy
from fanin.sweep.channel import Failure
from fanin.sweep.display import Display
from fanin.sweep.folder import Outcome, outcome
from fanin.sweep.plan import RETRIES, Job, Plan, result_of
from fanin.sweep.pool import Event, Pool, Worker
from fanin.sweep.study import Budget

TICK = 0.5  # seconds: the longest the coordinator sleeps
GRACE = 4.0  # seconds that running workers get to finish their epoch after a stop
INTERRUPTED = "interrupted"
SHOWN = ("train/loss", "val/accuracy")  # what the display says of a running run


class Ships(Protocol):
    @property
    def status(self) -> str: ...

    def nudge(self, folder: Folder, *, ended: bool = False) -> None: ...


@dataclass
class Tally:
    """What happened: how the sweep ended, and counts of this session's runs."""

    ended: str = "done"  # done | budget: ... | interrupted | who has taken the study over
    finished: int = 0
    failed: int = 0
    pruned: int = 0
    diverged: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    signalled: float | None = None  # when the first signal came, monotonic seconds


class Coordinator:
    """Runs a plan on a pool of workers. `describe(result) -> (verdict, value)` puts an outcome in words;
    `metric` is what runs are judged by; `epochs` is how many of them earlier sessions recorded; `lost()` says
    who has taken the study over, and nothing while nobody has."""

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        *,
        shipper: Ships,
        display: Display,
        budget: Budget,
        describe: Callable[[Outcome], tuple[str, float]],
        metric: str,
        sign: int,
        patience: float,
        checkpoint: float,
        epochs: int = 0,
        lost: Callable[[], str] = str,
    ) -> None:
        self.plan, self.pool, self.shipper, self.display = plan, pool, shipper, display
        self.budget, self.describe, self.sign = budget, describe, sign
        self.patience, self.checkpoint = patience, checkpoint
        self.watched = sorted({metric, *SHOWN})
        self.epochs, self.lost = epochs, lost
        self.tally = Tally()
        self._signals = 0
        self._began = time.monotonic()
        self._stopping = False
        self._deadline = math.inf  # until which what runs may finish its epoch; infinite while it may finish

    def run(self) -> Tally:
        """Until the plan is done, the budget is spent, or Ctrl-C."""
        before = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._check_budget(self.plan.best)
            while not self._over():
                self._hand_out()
                for event in self.pool.wait(TICK):
                    self._hear(event)
                self._watch()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.tally

    def _over(self) -> bool:
        return not self.pool.busy() and (self._stopping or self.plan.done)

    # ---- handing out ----

    def _hand_out(self) -> None:
        while not self._stopping:
            worker = self._free_worker()
            job = self.plan.next() if worker else None
            if worker is None or job is None:
                break
            self._begin(worker, job)
        self.display.update_total(self.plan.total)

    def _free_worker(self) -> Worker | None:
        if not self.pool.free():
            self.pool.fill(len(self.pool.workers) + 1)
        return next(iter(self.pool.free()), None)

    def _begin(self, worker: Worker, job: Job) -> None:
        payload = {
            "spec": dict(job.spec),
            "folder": str(job.folder),
            "judged": self.plan.reports,
            "watched": self.watched,
            "checkpoint": self.checkpoint,
        }
        worker.do("run", payload, task=job)
        self.display.begin(job.key, name=job.name, epochs=int(job.spec["config"].get("epochs") or 0))

    # ---- hearing ----

    def _hear(self, event: Event) -> None:
        job = event.worker.task
        if event.kind == "record":
            return self._record(event.worker, job, event.payload)
        event.worker.task = None
        if job is None:
            return  # it was idle
        if event.kind == "died":
            self._died(job, event.payload)
        elif event.kind == "failed":
            self._failed(event.worker, job, event.payload)
        else:
            result = outcome(job.folder)
            assert result is not None, f"{job.key} ended without an end record"
            self._ended(job, result)

    def _record(self, worker: Worker, job: Job, record: Mapping[str, Any]) -> None:
        self.shipper.nudge(Folder(job.folder))
        self.display.record(job.key, record)
        if self.plan.reports:
            worker.reply(self.plan.report(job, record))
        if record["new"] and record["epoch"] > 0:
            self.epochs += 1
            self._check_budget(None)

    def _ended(self, job: Job, result: Outcome) -> None:
        self.shipper.nudge(Folder(job.folder), ended=True)
        if not result.final and result.status != "FAILED":
            return self.display.drop(job.key)  # stopped: the next session goes on with it
        value = self.plan.finish(job, result)
        self._count(job, result)
        self._check_budget(value)

    def _failed(self, worker: Worker, job: Job, failure: Failure) -> None:
        known = outcome(job.folder)
        if known is None or known.status != "FAILED":  # it came to grief outside the run's own record
            known = self._close_run(job, status="FAILED", reason=failure.message)
        if failure.memory:
            self.pool.dismiss(worker)  # what fills its memory may be its own
            if self._try_again(job, failure.message):
                return
        self._ended(job, known)

    def _died(self, job: Job, cause: str) -> None:
        known = result_of(job)  # if there is one, only the word of its end is missing
        if known is None and self._try_again(job, f"worker {cause}"):
            if outcome(job.folder) is None:
                self._close_run(job, status="KILLED", reason=f"worker {cause}")
        else:
            reason = f"worker {cause}, {RETRIES + 1} times in a row"
            self._ended(job, known or self._close_run(job, status="FAILED", reason=reason))

    def _try_again(self, job: Job, cause: str) -> bool:
        """Whether the run gets another try, in this session or in the next."""
        if not self._stopping and not self.plan.retry(job):
            return False
        again = "" if self._stopping else f"; tried again ({job.deaths} of {RETRIES})"
        self.display.say(f"  {job.name}: {cause}{again}", style="yellow")
        self.display.drop(job.key)
        return True

    def _close_run(self, job: Job, *, status: str, reason: str) -> Outcome:
        """Write the end record that the worker could not write; it has ended, or has left the run."""
        try:
            with Spool(job.folder / "spool.jsonl", wait=GRACE) as log:
                log.append("end", status=status, reason=reason, metrics={}, step=None, seconds=0.0)
        except SpoolBusy as busy:  # by a stranger: it will write an end, too
            reason = f"{reason}; {busy}"
        self.shipper.nudge(Folder(job.folder), ended=True)
        return Outcome(status, reason, metrics={}, epochs=0, seconds=0.0)

    def _count(self, job: Job, result: Outcome) -> None:
        verdict, value = self.describe(result)
        style = ""
        if result.status == "FAILED":
            self.tally.failed += 1
            self.tally.failures[job.name] = result.reason or "failed"
            style = "red"
        elif result.status == "KILLED":
            self.tally.pruned += 1
        else:
            self.tally.finished += 1
            self.tally.diverged += bool(result.metrics.get("diverged"))
        self.display.end(job.key, variant=job.variant.name, name=job.name, verdict=verdict, value=value, style=style)

    # ---- watching ----

    def _watch(self) -> None:
        now = time.monotonic()
        if self._signals and self.tally.ended != INTERRUPTED:
            self.display.notice("stopping: saving what runs (once more: at once)")
            self._stop(INTERRUPTED, finish=False)
        elif not self._signals:
            self.display.tracking(self.shipper.status)
        if self.budget.seconds is not None and now - self._began > self.budget.seconds and not self._stopping:
            self._stop("budget: time is up", finish=False)
        if not self._stopping and (why := self.lost()):
            self._stop(why, finish=False)
        for worker in self.pool.busy():
            if now - worker.heard > self.patience:
                worker.kill(f"hung (no record for {self.patience:g} s)")
            elif now > self._deadline:
                worker.kill("stopped in the middle of an epoch")

    def _check_budget(self, value: float | None) -> None:
        """End the sweep if `value`, just found, reaches the target, or the epochs are spent."""
        target, epochs = self.budget.target, self.budget.epochs
        if self._stopping:
            return
        if target is not None and value is not None and self.sign * (value - target) >= 0:
            self._stop(f"budget: target reached ({value:.6g})", finish=False)
        elif epochs is not None and self.epochs >= epochs:
            self._stop(f"budget: {self.epochs} epochs are trained", finish=True)

    def _stop(self, why: str, *, finish: bool) -> None:
        """Hand out nothing more. What runs may finish, or ends with its epoch, and is gone on with next
        time."""
        self._stopping, self.tally.ended = True, why
        if not finish and self._deadline == math.inf:
            self._deadline = time.monotonic() + GRACE
            for worker in self.pool.busy():
                worker.stop(why)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first signal is only noted: the loop acts on it, because a handler may find a message half
        written."""
        self._signals += 1
        self.tally.signalled = self.tally.signalled or time.monotonic()
        if self._signals > 1:
            abandon(self.pool)


def abandon(pool: Pool) -> None:
    """End everything at once. What is not in the spools is lost; the next session takes up the rest."""
    for worker in pool.workers:
        worker.kill("abandoned")
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the live display had hidden the cursor
    os._exit(exits.INTERRUPTED)
