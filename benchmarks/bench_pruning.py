"""What pruning saves: the best of an unpruned sweep within 0.2 points of accuracy, for at most half of its epochs.

A space where most variants are bad: learning rates over seven decades, for weights from he_normal, constant,
or normal(0, 1). The same random variants are trained in full, under median and under hyperband, by real
training on mnist_5k; one of the two has to keep the promise, and both are shown. The best is by val/accuracy,
on 1,000 images, so a point is ten of them. One worker, so that the same is pruned every time.

    python benchmarks/bench_pruning.py [--seeds 5] [--trials 30] [--epochs 12]
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, judge, project, sweep

from fanin.sweep.folder import outcome

POINTS, SHARE = 0.2, 0.5
PRUNERS = ("median", "hyperband")
SPACE = ["optimizer.lr=tag(log,interval(1e-6,10))", "initializer=he_normal,constant,normal"]
RUN = ["model=mlp_narrow", "data.n_train=1000", "data.val=1000", "batch_size=50", "stats=off", "tracking=none"]


@dataclass(frozen=True)
class Cost:
    """Of a sweep: its best accuracy in points, and the epochs it trained."""

    best: float
    epochs: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    lost: dict[str, list[float]] = {name: [] for name in PRUNERS}
    share: dict[str, list[float]] = {name: [] for name in PRUNERS}
    with project():
        for seed in range(options.seeds):
            full = measure("none", seed, options)
            print(f"seed {seed}: none {full.best:.1f} points, {full.epochs} epochs", end="")
            for name in PRUNERS:
                pruned = measure(name, seed, options)
                lost[name].append(full.best - pruned.best)
                share[name].append(pruned.epochs / full.epochs)
                print(f"; {name} {pruned.best:.1f}, {pruned.epochs}", end="", flush=True)
            print()
    for name in PRUNERS:
        print(f"{name}: lost {told(lost[name], 2)} points, trained {told(share[name], 2)} of the epochs")
    better = min(PRUNERS, key=lambda name: (max(lost[name]) > POINTS, statistics.mean(share[name])))
    return judge(
        [
            Figure(f"accuracy lost by {better}, the worst seed", max(lost[better]), " points", most=POINTS),
            Figure(f"epochs of {better} / of no pruner, mean", statistics.mean(share[better]), "x", most=SHARE),
        ]
    )


def measure(pruner: str, seed: int, options: argparse.Namespace) -> Cost:
    name = f"{pruner}{seed}"
    sampler = ["hydra/sweeper=random", f"hydra.sweeper.max_trials={options.trials}", f"hydra/sweeper/pruner={pruner}"]
    fixed = [f"epochs={options.epochs}", f"seed={seed}", f"study.name={name}", "hardware=cpu", "hardware.workers=1"]
    sweep([*RUN, *SPACE, *sampler, *fixed])
    runs = [found for path in Path(".fanin", name, "runs").iterdir() if (found := outcome(path))]
    assert len(runs) == options.trials, runs
    best = max(run.metrics["val/accuracy"] for run in runs if run.status == "FINISHED")
    return Cost(100 * best, epochs=sum(run.epochs for run in runs))


def told(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    raise SystemExit(main())
