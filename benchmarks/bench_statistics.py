"""CPU time that per-layer statistics (stats=standard) add to training: epochs with them and without, in turns.

One process trains two copies of a run, one with statistics and one with stats=off, epoch by epoch in turns, from the
untrained network on: validation, histograms and predicted gains included, MLflow not. Their weights must be bitwise
equal at the end. A neighbour on the machine can make an epoch dearer and never cheaper: the cheapest epoch counts, and
the cheapest epoch 0. The ratio is that of a run of ten epochs, the default. All of MNIST is read from --root or
$FANIN_DATA; without it, left out.

    python benchmarks/bench_statistics.py [--root DIR] [--rounds 3]
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from figures import Figure, judge, project

from fanin.build import build
from fanin.checkpoint import Progress
from fanin.run import Trainer
from fanin.sweep.compose import Composer
from fanin.sweep.launch import OWN_CONFIG, project_loader

LEVELS = ("off", "standard")
EPOCHS = 10  # of conf/config.yaml


@dataclass(frozen=True)
class Case:
    """`epochs` that are measured in a round; `times`: rounds, as a multiple of what was asked for; `most`: what
    training may cost with statistics."""

    data: str
    model: str
    epochs: int
    times: int
    most: float


# mnist_5k has 3,500 images to train on, 35 steps of about 2 ms: an MLP's statistics cost as much as two or three.
CASES = (
    Case("mnist_5k", "mlp", epochs=10, times=2, most=1.08),
    Case("mnist_5k", "mlp_deep", epochs=3, times=1, most=1.08),
    Case("mnist_5k", "cnn_small", epochs=3, times=1, most=1.04),
    Case("mnist", "mlp", epochs=2, times=1, most=1.03),
    Case("mnist", "cnn_small", epochs=1, times=1, most=1.03),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("FANIN_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["FANIN_DATA"] = str(options.root.absolute())
    whole = (options.root / "MNIST" / "raw").is_dir()
    trainer, figures = Trainer(threads=1), []
    with project():
        for case in CASES if whole else [case for case in CASES if case.data != "mnist"]:
            off, standard = measure(trainer, case, rounds=options.rounds * case.times)
            name = f"training with statistics / without: {case.model} on {case.data}"
            print(f"{name}: {standard:.3f} / {off:.3f} CPU s", flush=True)
            figures.append(Figure(name, standard / off, "x", most=case.most))
    return judge(figures)


def measure(trainer: Trainer, case: Case, *, rounds: int) -> tuple[float, float]:
    """CPU seconds of a run of EPOCHS without and with statistics."""
    spent: dict[str, list[list[float]]] = {level: [[], []] for level in LEVELS}  # of epoch 0, and of the others
    for number in range(rounds):
        runs = {level: Run(trainer, compose(case, level)) for level in LEVELS}
        for epoch in range(case.epochs + 1):
            for level in LEVELS if (epoch + number) % 2 else LEVELS[::-1]:
                spent[level][epoch > 0].append(runs[level].advance())
        off, standard = (runs[level].weights for level in LEVELS)
        assert all(torch.equal(off[key], standard[key]) for key in off), "statistics moved the weights"
    off_seconds, standard_seconds = (min(spent[level][0]) + EPOCHS * min(spent[level][1]) for level in LEVELS)
    return off_seconds, standard_seconds


class Run:
    """A run that is trained an epoch at a time."""

    def __init__(self, trainer: Trainer, config: dict[str, Any]):
        split = trainer._split(config)
        parts = build(config, shape=split.images.shape[1:], device=split.images.device, train_size=len(split.train))
        self.model = parts.model
        self.records: Iterator[Any] = trainer._fit(config, parts, split, progress=Progress(), epochs=config["epochs"])

    def advance(self) -> float:
        """CPU seconds of the next epoch."""
        began = time.process_time()
        next(self.records)
        return time.process_time() - began

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()


def compose(case: Case, level: str) -> dict[str, Any]:
    with project_loader() as (loader, found):
        arguments = [f"data={case.data}", f"model={case.model}", f"epochs={case.epochs}", f"stats={level}"]
        config: dict[str, Any] = Composer(loader, config_name=OWN_CONFIG, fixed=found).compose(arguments).config
        return config


if __name__ == "__main__":
    raise SystemExit(main())
