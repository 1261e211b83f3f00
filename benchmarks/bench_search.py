"""What TPE finds against random search, with 2 workers and equal trials: medians over seeds.

On a fixed test function, Branin's (three minima of 0.398 in two dimensions), with a choice added that costs 0,
5 or 10: through the real coordinator, plan and journal, with workers that answer at once. And on the real
trainer: learning rate, weight decay, momentum and initializer of a softmax regression on 300 digits, judged by
its validation loss. A seed gives both searches the same first trial (the default configuration).

    python benchmarks/bench_search.py [--seeds 15] [--trials 40] [--real-seeds 10] [--real-trials 25]
"""

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from figures import Figure, judge, played, project, study_of, sweep

from fanin.spool import Spool
from fanin.sweep.folder import outcome
from fanin.sweep.workers import Pool

SAMPLERS = ("tpe", "random")
WORKERS = 2
BEATEN = 0.999  # of the two medians: less is better
PENALTIES = {"he_normal": 0.0, "xavier_normal": 5.0, "zeros": 10.0}
FUNCTION_SPACE = [
    "optimizer.lr=tag(log,interval(1e-5,1))",
    "regularization.dropout=interval(0,0.75)",
    f"initializer={','.join(PENALTIES)}",
]
REAL_SPACE = [
    "optimizer.lr=tag(log,interval(1e-5,10))",
    "optimizer.momentum=interval(0,0.99)",
    "regularization.weight_decay=tag(log,interval(1e-6,1))",
    "initializer=zeros,he_normal,normal",
]
REAL = ["model=softmax", "optimizer=momentum", "data.n_train=300", "epochs=3", "batch_size=20", "stats=off"]


class Branin:
    """A worker whose runs come out as Branin's function says."""

    def __call__(self, kind: str, payload: Any, channel: Any) -> None:
        metrics = {"val/loss": branin(payload["spec"]["config"])}
        with Spool(Path(payload["folder"]) / "spool.jsonl") as log:
            log.append("start")
            log.append("epoch", epoch=1, metrics=metrics)
            channel.send("record", {"epoch": 1, "metrics": metrics, "new": True})
            log.append("end", status="FINISHED", reason=None, metrics={}, step=1, seconds=0.0)


def branin(config: Any) -> float:
    """Of the learning rate (on a log scale) and dropout, each stretched to Branin's domain, [-5, 10] x [0, 15]."""
    x = 10 + 3 * math.log10(config["optimizer"]["lr"])
    y = 20 * config["regularization"]["dropout"]
    base = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return (
        base**2
        + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x)
        + 10
        + PENALTIES[config["initializer"]["_target_"].rpartition(".")[2]]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--real-seeds", type=int, default=10)
    parser.add_argument("--real-trials", type=int, default=25)
    options = parser.parse_args()
    with project():
        pool = Pool("bench_search:Branin", arguments={}, size=WORKERS, threads=1)
        function = partial(search_function, pool)
        try:
            figures = [
                compare("Branin's function", function, seeds=options.seeds, trials=options.trials),
                compare("the trainer", search_real, seeds=options.real_seeds, trials=options.real_trials),
            ]
        finally:
            pool.close()
    return judge(figures)


def compare(name: str, search: Callable[..., float], *, seeds: int, trials: int) -> Figure:
    found = {sampler: [search(sampler, seed, trials) for seed in range(seeds)] for sampler in SAMPLERS}
    tpe, random = (found[sampler] for sampler in SAMPLERS)
    better = sum(mine < his for mine, his in zip(tpe, random, strict=True))
    medians = [statistics.median(values) for values in (tpe, random)]
    print(
        f"{name}, {trials} trials: the median loss of the best is {medians[0]:.4f} by TPE, {medians[1]:.4f} at random"
    )
    print(f"  TPE's is lower in {better} of {seeds} seeds", flush=True)
    return Figure(f"median loss found by TPE / at random, {name}", medians[0] / medians[1], "x", most=BEATEN)


def search_function(pool: Pool, sampler: str, seed: int, trials: int) -> float:
    fixed = [f"study.name=f{sampler}{seed}", f"seed={seed}", "epochs=1", "study.metric=val/loss"]
    with study_of([*FUNCTION_SPACE, *fixed], sampler=sampler, trials=trials) as (study, folder):
        return float(played(study, folder, pool).best)


def search_real(sampler: str, seed: int, trials: int) -> float:
    name = f"r{sampler}{seed}"
    chosen = [f"hydra/sweeper={sampler}", f"hydra.sweeper.max_trials={trials}", f"hardware.workers={WORKERS}"]
    fixed = [f"study.name={name}", f"seed={seed}", "study.metric=val/loss", "hardware=cpu", "tracking=none"]
    sweep([*REAL, *REAL_SPACE, *chosen, *fixed])
    runs = [found for path in Path(".fanin", name, "runs").iterdir() if (found := outcome(path))]
    assert len(runs) == trials, runs
    return min(run.metrics["val/loss"] for run in runs if not run.metrics["diverged"])


if __name__ == "__main__":
    raise SystemExit(main())
