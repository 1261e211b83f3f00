"""CPU time that per-layer statistics (stats=standard) add to a run of ten epochs, the default.

A clock runs inside the epochs, in every call of the statistics: predictions at epoch 0, keeping the weights before a
step, measuring. What is left of the epoch (training, validation) is what it costs without them; that the weights are
the same then is a test's (tests/test_costly_stats.py). Epochs with and without, in turns, differ more by what else the
machine does than by the statistics. All of MNIST is read from --root or $FANIN_DATA; without it, left out.

    python benchmarks/bench_statistics.py [--root DIR] [--rounds 3]
"""

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # as in workers

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, judge, project

from fanin.build import build
from fanin.checkpoint import Progress
from fanin.run import Trainer
from fanin.stats import LayerStats
from fanin.sweep.compose import Composer
from fanin.sweep.launch import OWN_CONFIG, project_loader
from fanin.training import epochs_of

EPOCHS = 10  # of conf/config.yaml


@dataclass(frozen=True)
class Case:
    """`epochs` that are measured in a round; `most`: what training may cost with statistics, as a multiple."""

    data: str
    model: str
    epochs: int
    most: float


# mnist_5k has 3,500 images to train on, 35 steps of about 2 ms: an MLP's statistics cost as much as two or three.
CASES = (
    Case("mnist_5k", "mlp", epochs=10, most=1.10),
    Case("mnist_5k", "mlp_deep", epochs=4, most=1.10),
    Case("mnist_5k", "cnn_small", epochs=4, most=1.04),
    Case("mnist", "mlp", epochs=2, most=1.03),
    Case("mnist", "cnn_small", epochs=1, most=1.03),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("FANIN_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3, help="of mnist_5k; of all of MNIST it is one")
    options = parser.parse_args()
    os.environ["FANIN_DATA"] = str(options.root.absolute())
    whole = (options.root / "MNIST" / "raw").is_dir()
    trainer, figures = Trainer(threads=1), []
    for name in ("remember", "measure", "predict"):
        clocked(name)
    with project():
        for case in CASES if whole else [case for case in CASES if case.data != "mnist"]:
            training, added = measure(trainer, case, rounds=1 if case.data == "mnist" else options.rounds)
            name = f"training with statistics / without: {case.model} on {case.data}"
            print(f"{name}: {training:.3f} CPU s a run and {1000 * added:.0f} ms", flush=True)
            figures.append(Figure(name, 1 + added / training, "x", most=case.most))
    return judge(figures)


def measure(trainer: Trainer, case: Case, *, rounds: int) -> tuple[float, float]:
    """CPU seconds of a run of EPOCHS without its statistics, and of these; medians over the epochs."""
    found = [list(epochs(trainer, case)) for _ in range(rounds)]
    first = [one[0] for one in found]
    others = [epoch for one in found for epoch in one[1:]]
    training, added = (
        statistics.median(epoch[part] for epoch in first) + EPOCHS * statistics.median(epoch[part] for epoch in others)
        for part in (0, 1)
    )
    return training, added


def epochs(trainer: Trainer, case: Case) -> Iterator[tuple[float, float]]:
    """CPU seconds of every epoch from 0 on without its statistics, and of these."""
    with project_loader() as (loader, found):
        overrides = [f"data={case.data}", f"model={case.model}", f"epochs={case.epochs}"]
        config: dict[str, Any] = Composer(loader, config_name=OWN_CONFIG, fixed=found).compose(overrides).config
    split = trainer._split(config)
    parts = build(config, shape=split.images.shape[1:], device=split.images.device, train_size=len(split.train))
    began, _ = time.thread_time(), spent.clear()
    for _ in epochs_of(config, parts, split, progress=Progress(), epochs=case.epochs):
        yield time.thread_time() - began - sum(spent), sum(spent)
        began, _ = time.thread_time(), spent.clear()


spent: list[float] = []  # CPU seconds of the calls in this epoch


def clocked(name: str) -> None:
    """Let the method of LayerStats write down its CPU seconds."""
    method = getattr(LayerStats, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        found = method(*arguments, **options)
        spent.append(time.thread_time() - began)
        return found

    setattr(LayerStats, name, timed)


if __name__ == "__main__":
    raise SystemExit(main())
