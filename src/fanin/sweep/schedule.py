"""The coordinator: who runs what now. It owns the study, and it is the only one who decides.

while the plan has jobs or runs are open:
    give every free worker a job                      no barrier: a slow run keeps one worker, not all
    hear the workers: a record -> judge it, show it, let it be shipped
                      an end    -> tell the plan
                      a death   -> name the cause, retry at most twice
    look for the end of the budget, for hung workers, and for Ctrl-C
"""

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from fanin.folders import Folder
from fanin.spool import Spool
from fanin.sweep.display import Display
from fanin.sweep.folder import Outcome, outcome
from fanin.sweep.plan import Job, Plan
from fanin.sweep.study import Budget
from fanin.sweep.workers import Event, Failure, Pool, Worker

TICK = 0.5  # seconds: the longest the coordinator sleeps
GRACE = 6.0  # seconds: what running workers get to end cleanly after Ctrl-C


class Ships(Protocol):
    def nudge(self, folder: Folder) -> None: ...


@dataclass
class Tally:
    """What happened: how the sweep ended, and counts of this session's runs."""

    ended: str = "done"  # done | budget: ... | interrupted | refused: ...
    finished: int = 0
    failed: int = 0
    pruned: int = 0
    diverged: int = 0
    epochs: int = 0
    failures: dict[str, str] = field(default_factory=dict)


class Coordinator:
    """Runs a plan on a pool of workers. `describe(result) -> (verdict, value)` puts an outcome in words."""

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        *,
        shipper: Ships,
        display: Display,
        budget: Budget,
        describe: Callable[[Outcome], tuple[str, float]],
        sign: int,
        patience: float,
        checkpoint: float,
    ) -> None:
        self.plan, self.pool, self.shipper, self.display = plan, pool, shipper, display
        self.budget, self.describe, self.sign = budget, describe, sign
        self.patience, self.checkpoint = patience, checkpoint
        self.tally = Tally()
        self._signals = 0
        self._began = time.monotonic()
        self._stopping: str | None = None
        self._deadline = math.inf

    def run(self) -> Tally:
        """Until the plan is done, the budget is spent, or Ctrl-C."""
        before = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
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
        return not self.pool.busy() and (self._stopping is not None or self.plan.done)

    # ---- handing out ----

    def _hand_out(self) -> None:
        while self._stopping is None:
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
            "checkpoint": self.checkpoint,
        }
        try:
            worker.do("run", payload, task=job)
        except OSError:
            pass  # died while idle: its sentinel tells, and the job is retried
        self.display.begin(job.key, name=job.name, epochs=int(job.spec["config"].get("epochs") or 0))

    # ---- hearing ----

    def _hear(self, event: Event) -> None:
        job = event.worker.task
        if event.kind == "record":
            self._record(event.worker, job, event.payload)
        elif event.kind == "died":
            if job is not None:
                self._died(job, event.payload)
        else:
            event.worker.task = None
            self._ended(job, event.payload)

    def _record(self, worker: Worker, job: Job, record: Mapping[str, Any]) -> None:
        self.tally.epochs += record["epoch"] > 0
        self.shipper.nudge(Folder(job.folder))
        self.display.record(job.key, record)
        if self.plan.reports:
            worker.reply(self.plan.report(job, record))
        if self.budget.epochs is not None and self.tally.epochs >= self.budget.epochs:
            self._stop("budget: epochs are spent", interrupt=False)

    def _ended(self, job: Job, payload: Any) -> None:
        if isinstance(payload, Failure):
            if payload.memory and self.plan.retry(job):
                self.display.say(f"  {job.name}: {payload.message}; tried again", style="yellow")
                return self.display.drop(job.key)
        result = outcome(job.folder)
        assert result is not None, f"{job.key} ended without an end record"
        self.shipper.nudge(Folder(job.folder))
        if result.status == "KILLED" and not result.final:
            return self.display.drop(job.key)  # interrupted: the next session goes on with it
        value = self.plan.finish(job, result)
        self._count(job, result)
        target = self.budget.target
        if target is not None and value is not None and self.sign * (value - target) >= 0:
            self._stop(f"budget: target reached ({value:.6g})", interrupt=True)

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
        self.display.end(
            job.key, variant=job.variant.name, name=job.name, verdict=verdict, value=value, style=style
        )

    def _died(self, job: Job, cause: str) -> None:
        if self._stopping is not None and not cause.startswith("hung"):
            self._close_run(job, status="KILLED", reason=f"interrupted; worker {cause}")
            self.shipper.nudge(Folder(job.folder))
            return self.display.drop(job.key)
        if self.plan.retry(job):
            self.display.say(f"  {job.name}: worker {cause}; tried again ({job.deaths} of 2)", style="yellow")
            return self.display.drop(job.key)
        reason = f"worker {cause}, {job.deaths + 1} times in a row"
        self._close_run(job, status="FAILED", reason=reason)
        self._ended(job, None)

    def _close_run(self, job: Job, *, status: str, reason: str) -> None:
        """Write the end record a worker could not write. The worker has ended, or has left the run."""
        with Spool(job.folder / "spool.jsonl", wait=GRACE) as log:
            log.append("end", status=status, reason=reason, metrics={}, step=0, seconds=0.0)

    # ---- watching ----

    def _watch(self) -> None:
        now = time.monotonic()
        if self._signals and self._stopping is None:
            self.display.notice("stopping: saving what runs (once more: at once)")
            self._stop("interrupted", interrupt=True)
        if self.budget.seconds is not None and now - self._began > self.budget.seconds:
            self._stop("budget: time is up", interrupt=True)
        for worker in self.pool.busy():
            if now - worker.heard > self.patience:
                worker.kill(f"hung (no record for {self.patience:g} s)")
        if now > self._deadline:
            for worker in self.pool.busy():
                worker.kill("did not stop in time")

    def _stop(self, why: str, *, interrupt: bool) -> None:
        """Hand out nothing more; with `interrupt`, also end what runs (resumable)."""
        if self._stopping is None:
            self._stopping = self.tally.ended = why
            if interrupt:
                self._deadline = time.monotonic() + GRACE
                for worker in self.pool.busy():
                    worker.stop("interrupted")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Count only: the loop acts on it, because a handler may find a message to a worker half written."""
        self._signals += 1
        if self._signals > 1:
            for worker in self.pool.workers:
                worker.process.kill()
            self.display.close()
            raise SystemExit(130)
