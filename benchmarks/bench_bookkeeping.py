"""CPU time of a sweep that is not training, per run: under 0.15 s, and the same at 20 and at 500 runs.

Real runs through the real engine and MLflow on SQLite: the default network, 10 epochs with all statistics, on
few images, so that training is short. The workers' clocks are read around `fit`; everything else counts, in the
coordinator (composing, checking, planning, coordinating, shipping) and in the workers (building, test set,
pictures, weights, spool). What a sweep costs once (composing the base, opening the store, starting workers) is
measured by a sweep of 2 runs and taken off; imports are made before, by another.

    python benchmarks/bench_bookkeeping.py [--runs 20,500] [--epochs 10]
"""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, judge, project, sweep

from fanin import run, shipper
from fanin.sweep import delivery, devices, schedule
from fanin.train import EpochRecord
from fanin.training import Training

BOUND = 0.15  # CPU seconds a run
FLAT = 1.2
CLOCKS = "clocks"  # a folder: one file a worker


class TimedTraining(Training):
    """Counts its CPU time in `fit`, of all runs of a worker."""

    seconds = 0.0

    def epochs(self) -> Iterator[EpochRecord]:
        records = super().epochs()
        while True:
            began = time.process_time()
            record = next(records, None)
            TimedTraining.seconds += time.process_time() - began
            if record is None:
                return
            yield record


class TimedTrainer(run.Trainer):
    """A worker that writes down its CPU time so far, in all and in `fit`."""

    training = TimedTraining

    def __call__(self, kind: str, payload: Any, channel: Any) -> Any:
        answer = super().__call__(kind, payload, channel)
        Path(CLOCKS, str(os.getpid())).write_text(f"{time.process_time()} {TimedTraining.seconds}")
        return answer


@dataclass
class Clock:
    """CPU seconds of one thread inside the functions it is wrapped around."""

    seconds: float = 0.0

    def around(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.thread_time() - began

        setattr(owner, name, timed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="20,500")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    few, many = map(int, options.runs.split(","))
    devices.TASK = "bench_bookkeeping:TimedTrainer"
    clocks = {"coordinating": Clock(), "shipping": Clock()}
    clocks["coordinating"].around(schedule.Coordinator, "run")
    clocks["shipping"].around(shipper.Shipper, "_work")
    with project():
        delivery.FLUSH = 600.0  # ship to the last point: it belongs to the cost
        measure("imports", 2, options.epochs, clocks)
        once = measure("once", 2, options.epochs, clocks)
        cost = {runs: (measure(f"of{runs}", runs, options.epochs, clocks) - once) / (runs - 2) for runs in (few, many)}
    print(f"a sweep of 2 runs costs {once:.2f} CPU s, taken off")
    return judge(
        [Figure(f"bookkeeping a run, {runs} runs", cost[runs], " CPU s", most=BOUND) for runs in cost]
        + [Figure(f"bookkeeping a run, {many} runs / {few} runs", cost[many] / cost[few], "x", most=FLAT)]
    )


def measure(name: str, runs: int, epochs: int, clocks: dict[str, Clock]) -> float:
    """CPU seconds that a sweep of `runs` variants spends on anything but training."""
    Path(CLOCKS).mkdir(exist_ok=True)
    for clock in clocks.values():
        clock.seconds = 0.0
    began, wall = time.process_time(), time.monotonic()
    rates = ",".join(f"{1e-4 * 1.005**number:.6g}" for number in range(runs))
    sweep([f"study.name={name}", f"optimizer.lr={rates}", f"epochs={epochs}", "data.n_train=200"])
    ours = time.process_time() - began
    assert all(thread.name != "shipper" for thread in threading.enumerate()), "the shipper is still at work"
    times = [[float(x) for x in path.read_text().split()] for path in Path(CLOCKS).iterdir()]
    for path in Path(CLOCKS).iterdir():
        path.unlink()
    training = sum(fit for _, fit in times)
    parts = {
        "planning and summary": ours - sum(clock.seconds for clock in clocks.values()),
        **{name: clock.seconds for name, clock in clocks.items()},
        "workers outside fit": sum(total for total, _ in times) - training,
    }
    told = ", ".join(f"{part} {1000 * seconds / runs:.1f}" for part, seconds in parts.items())
    print(f"{name}: {runs} runs in {time.monotonic() - wall:.0f} s: CPU ms a run: {told}", end="")
    print(f"; training {1000 * training / runs:.1f}", flush=True)
    return sum(parts.values())


if __name__ == "__main__":
    raise SystemExit(main())
