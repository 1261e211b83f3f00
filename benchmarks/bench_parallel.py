"""Runs an hour: 2 workers against 1, and no barrier against a batch barrier; both by the wall clock.

Equal runs, as long as a default one, real training with MLflow on SQLite: 2 workers of 1 thread on 2 cores finish
at least 1.8 times the runs of 1 worker. Other load on the machine spoils that, so what it would be without is
estimated beside it: workers x share of the time they were at work x CPU time of a run with 1 worker / with 2.

Unequal runs, one in four five times as long: at least 1.4 times those of a schedule that waits for the slowest
of each batch, as batched launchers do, on the same pool (with 2 workers there is 1.5 to gain). These runs only
wait, so that their lengths are what they should be on a busy machine, too.

    python benchmarks/bench_parallel.py [--rounds 3] [--images 3500]
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, judge, project, study_of

from fanin.run import Trainer
from fanin.spool import Spool
from fanin.sweep import devices
from fanin.sweep.checks import grid_of
from fanin.sweep.delivery import shipping
from fanin.sweep.engine import coordinate, declare
from fanin.sweep.folder import Outcome
from fanin.sweep.grid import GridPlan
from fanin.sweep.plan import Job
from fanin.sweep.workers import Pool

WORKERS = 2
EQUAL = [10] * 12  # epochs of each run
UNEQUAL = [1, 1, 1, 5] * 12
EPOCH = 0.15  # seconds, of a run that only waits


class Clocked(Trainer):
    """A worker that writes down the CPU and the wall seconds of each run."""

    def run(self, payload: Mapping[str, Any], channel: Any) -> None:
        cpu, wall = time.process_time(), time.monotonic()
        super().run(payload, channel)
        times = f"{time.process_time() - cpu} {time.monotonic() - wall}"
        Path(payload["folder"], "clock").write_text(times)


class Waiting:
    """A worker whose runs take a known time and nothing else."""

    def __call__(self, kind: str, payload: Any, channel: Any) -> None:
        epochs = payload["spec"]["config"]["epochs"]
        with Spool(Path(payload["folder"]) / "spool.jsonl") as log:
            log.append("start")
            time.sleep(EPOCH * epochs)
            metrics = {"val/accuracy": 0.5}
            log.append("end", status="FINISHED", reason=None, metrics=metrics, step=epochs, seconds=0.0)


@dataclass(frozen=True)
class Timing:
    """Of a sweep: its wall seconds, the share of them its workers were at work, and the CPU seconds of a run."""

    wall: float
    busy: float
    cpu: float


class Barrier(GridPlan):
    """Hands out a batch of as many jobs as there are workers, and no more before all of them have ended."""

    left, running = WORKERS, 0

    def next(self) -> Job | None:
        if not self.left and self.running:
            return None
        self.left = self.left or WORKERS
        if job := super().next():
            self.left, self.running = self.left - 1, self.running + 1
        return job

    def finish(self, job: Job, result: Outcome) -> float | None:
        self.running -= 1
        return super().finish(job, result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3500)
    options = parser.parse_args()
    if devices.core_count() < WORKERS:
        print(f"skipped: this machine lets us use {devices.core_count()} core")
        return 0
    with project(), contextlib.ExitStack() as stack:
        figures = [
            Figure("2 workers / 1 worker, equal runs", compare_workers(options, stack), "x", least=1.8),
            Figure("no barrier / barrier, unequal runs", compare_schedules(options, stack), "x", least=1.4),
        ]
    return judge(figures)


def compare_workers(options: argparse.Namespace, stack: contextlib.ExitStack) -> float:
    given = [f"data.n_train={options.images}", "hardware=cpu"]
    one, two = (open_pool("Clocked", {"threads": 1}, size, stack) for size in (1, WORKERS))
    for pool in (one, two):
        measure(pool, [1] * 4, given)  # imports, data, MLflow's database
    ratios = []
    for _ in range(options.rounds):
        alone, together = measure(one, EQUAL, given), measure(two, EQUAL, given)
        ratios.append(alone.wall / together.wall)
        unloaded = WORKERS * together.busy * alone.cpu / together.cpu
        print(f"equal runs: {ratios[-1]:.2f}x, without other load {unloaded:.2f}x", end="")
        print(f" (at work {together.busy:.0%}, CPU s a run {alone.cpu:.2f} and {together.cpu:.2f})", flush=True)
    return statistics.median(ratios)


def compare_schedules(options: argparse.Namespace, stack: contextlib.ExitStack) -> float:
    pool = open_pool("Waiting", {}, WORKERS, stack)
    measure(pool, [1] * 4, ["tracking=none"])
    ratios = []
    for _ in range(options.rounds):
        barrier = measure(pool, UNEQUAL, ["tracking=none"], plan=Barrier)
        ratios.append(barrier.wall / measure(pool, UNEQUAL, ["tracking=none"]).wall)
        print(f"unequal runs: {ratios[-1]:.2f}x", flush=True)
    return statistics.median(ratios)


def open_pool(task: str, arguments: dict[str, Any], size: int, stack: contextlib.ExitStack) -> Pool:
    pool = Pool(f"bench_parallel:{task}", arguments=arguments, size=size, threads=1)
    return stack.enter_context(contextlib.closing(pool))


def measure(pool: Pool, epochs: Sequence[int], given: Sequence[str], *, plan: type[GridPlan] = GridPlan) -> Timing:
    """From the first run's start to the last one's end, for runs of so many epochs."""
    points = ",".join(f"{{optimizer.lr:{1e-3 + 1e-6 * i},epochs:{n}}}" for i, n in enumerate(epochs))
    name = f"n{time.monotonic_ns()}"
    with study_of([f"study.name={name}", f"study.points=[{points}]", *given]) as (study, folder):
        declare(study, folder, Path.cwd(), command="")
        with contextlib.redirect_stdout(io.StringIO()), shipping(study, Path.cwd()) as shipper:
            folder.spool.append("start")
            jobs = plan(study, grid_of(study), folder)
            began = time.monotonic()
            tally = coordinate(study, jobs, pool, shipper)
            wall = time.monotonic() - began
            shipper.close(60.0)  # in peace, before the next is timed
    assert tally.finished == len(epochs), tally
    clocks = [file.read_text().split() for file in folder.path.glob("runs/*/clock")]
    cpu, busy = (sum(float(clock[i]) for clock in clocks) for i in (0, 1))
    return Timing(wall, busy=busy / (pool.size * wall), cpu=cpu / len(epochs))


if __name__ == "__main__":
    raise SystemExit(main())
