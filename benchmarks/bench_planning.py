"""Planning and scheduling (ask, compose, dispatch, collect, tell): under 50 ms a trial, flat to 2,000 trials.

The real coordinator, plan, journal and pool, with a worker that answers at once; no training and no MLflow.
CPU time of the coordinator, Optuna's sampler included; how much of it is the sampler's is printed, too. (The first
ten trials of TPE are drawn at random, which costs almost nothing: its models have to fit in what "flat" allows.)

    python benchmarks/bench_planning.py [--trials 10,2000]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import Figure, judge, played, project, study_of

from fanin.spool import Spool
from fanin.sweep.workers import Pool

BOUND = 0.05  # CPU seconds a trial
FLAT = 1.5
ROUNDS = 2
TPE = (
    "infer_relative_search_space",
    "sample_relative",
    "sample_independent",
    "before_trial",
    "after_trial",
)


class Instant:
    """A worker that records one epoch of a made-up run."""

    def __call__(self, kind: str, payload: Any, channel: Any) -> None:
        config = payload["spec"]["config"]
        metrics = {"val/accuracy": 1.0 / (1.0 + config["optimizer"]["lr"]), "val/loss": 1.0}
        with Spool(Path(payload["folder"]) / "spool.jsonl") as log:
            log.append("start")
            log.append("epoch", epoch=1, metrics=metrics)
            channel.send("record", {"epoch": 1, "metrics": metrics, "new": True})
            log.append("end", status="FINISHED", reason=None, metrics={}, step=1, seconds=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="10,2000")
    few, many = map(int, parser.parse_args().trials.split(","))
    sampling = time_sampler()
    figures = []
    with project():
        measure("grid", few, sampling)  # imports
        measure("tpe", few, sampling)
        for sampler in ("grid", "tpe"):
            # each is run several times, in turns, and the best is taken: what is slower was disturbed
            rounds = [
                (min((measure(sampler, few, sampling) for _ in range(5)), key=sum), measure(sampler, many, sampling))
                for _ in range(ROUNDS)
            ]
            short, long = (min(found, key=sum) for found in zip(*rounds, strict=True))
            for trials, (ours, optunas) in ((few, short), (many, long)):
                print(f"{sampler}, {trials} trials: {1000 * ours:.1f} CPU ms a trial", end="")
                print(f" + {1000 * optunas:.1f} in Optuna's sampler", flush=True)
            print(f"{sampler}, {many} / {few} trials without Optuna's sampler: {long[0] / short[0]:.2f}x", flush=True)
            figures += [
                Figure(f"planning a trial, {sampler}, {many} trials", sum(long), " CPU s", most=BOUND),
                Figure(f"planning, {sampler}, {many} / {few} trials", sum(long) / sum(short), "x", most=FLAT),
            ]
    return judge(figures)


def measure(sampler: str, trials: int, sampling: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds a trial: ours, and Optuna's sampler's."""
    measure.number += 1
    arguments = [f"study.name=n{measure.number}", "epochs=1", *space_of(sampler, trials)]
    with study_of(arguments, sampler=sampler, trials=None if sampler == "grid" else trials) as (study, folder):
        pool = Pool("bench_planning:Instant", arguments={}, size=1, threads=1)
        try:
            pool.fill(1)
            sampling()
            began = time.process_time()
            played(study, folder, pool)
            spent, optunas = time.process_time() - began, sampling()
        finally:
            pool.close()
    return (spent - optunas) / trials, optunas / trials


measure.number = 0


def space_of(sampler: str, trials: int) -> list[str]:
    if sampler == "grid":
        return ["optimizer.lr=" + ",".join(f"{1e-4 * 1.001**number:.8g}" for number in range(trials))]
    return ["optimizer.lr=tag(log,interval(1e-5,1))", "regularization.dropout=interval(0,0.8)"]


def time_sampler() -> Callable[[], float]:
    """Count the CPU time spent in TPE from now on; the function returned reads the clock and resets it."""
    from optuna.samplers import TPESampler

    clock = {"seconds": 0.0, "depth": 0}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            clock["depth"] += 1
            began = time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                clock["depth"] -= 1
                if not clock["depth"]:
                    clock["seconds"] += time.process_time() - began

        return call

    for name in TPE:
        setattr(TPESampler, name, timed(getattr(TPESampler, name)))

    def read() -> float:
        seconds, clock["seconds"] = clock["seconds"], 0.0
        return seconds

    return read


if __name__ == "__main__":
    raise SystemExit(main())
