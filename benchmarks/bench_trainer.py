"""CPU time an epoch of our trainer, against a tutorial's script and against the leanest loop one can write.

One thread, fp32, 784-256-256-10, batch 100, Adam 1e-3, MNIST's 60,000 images from --root or $FANIN_DATA (else
the 5,000 of mnist_5k, repeated). Ours is what a user has: `fanin train` with all statistics, validation on
5,000 images, spool, checkpoints, live display and MLflow on SQLite; the CPU time of the worker and of the
coordinator, which ships, are added up; what the coordinator spends on an epoch is a long run less a short one.
The leanest loop trains in our worker, in turns with our epochs, on as many images; the tutorial is a script of its
own. A neighbour on the machine can make an epoch a third dearer, and never cheaper: the cheapest of each counts.

    python benchmarks/bench_trainer.py [--root DIR] [--rounds 3] [--epochs 6]
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from figures import Figure, judge, project, sweep
from torch import Tensor, nn

from fanin.run import Trainer
from fanin.sweep import delivery, devices
from fanin.train import EpochRecord
from fanin.training import Training

BATCH, LR, IMAGES, VAL = 100, 1e-3, 60_000, 5000
TRAINED = IMAGES - VAL
SAVED, EXTRA = 3.5, 1.10
CLOCK = Path("clock")
RUN = ["model=mlp", "hardware=cpu", "hardware.workers=1", f"batch_size={BATCH}", f"data.val={VAL}", "data=own"]


class TimedTraining(Training):
    """Writes down, as JSON, its CPU seconds in each epoch, and those of the leanest loop."""

    def epochs(self) -> Iterator[EpochRecord]:
        leanest = lean(Path(self.config["data"]["path"]), count=len(self.split.train))
        clock: dict[str, list[float]] = {"ours": [], "lean": []}
        began = time.process_time()
        for record in super().epochs():
            yield record  # now it is written down, sent and judged, and a checkpoint is saved
            if record.epoch > 0:
                clock["ours"].append(time.process_time() - began)
                clock["lean"].append(next(leanest))
            began = time.process_time()
        CLOCK.write_text(json.dumps(clock))


class TimedTrainer(Trainer):
    training = TimedTraining


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("FANIN_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of ours and of the leanest loop; the tutorial's is 1")
    parser.add_argument("--tutorial", action="store_true", help=argparse.SUPPRESS)  # its own process
    options = parser.parse_args()
    if options.tutorial:
        torch.set_num_threads(1)
        print(tutorial(options.root))
        return 0
    devices.TASK = "bench_trainer:TimedTrainer"
    delivery.FLUSH = 600.0  # ship to the last point: it belongs to the cost
    root = options.root.absolute()
    with project() as folder:
        root = root if (root / "MNIST" / "raw").is_dir() else repeat_small_set(folder / "data")
        train(1, root, "warm", images=1000)  # imports, MLflow's database
        rounds = [measure(root, number, epochs=options.epochs) for number in range(1, options.rounds + 1)]
    shipping = statistics.median(one["coordinator"] for one in rounds)
    ours, leanest, script = (min(s for one in rounds for s in one[name]) for name in ("ours", "lean", "tutorial"))
    return judge(
        [
            Figure("tutorial / ours with statistics and tracking", script / (ours + shipping), "x", least=SAVED),
            Figure("ours with statistics and tracking / leanest loop", (ours + shipping) / leanest, "x", most=EXTRA),
        ]
    )


def measure(root: Path, number: int, *, epochs: int) -> dict[str, Any]:
    """CPU seconds an epoch of TRAINED images: of ours in the worker and in the coordinator, and of the others."""
    short, _ = train(1, root, f"round{number}short")
    long, clock = train(1 + epochs, root, f"round{number}long")
    alone = [sys.executable, __file__, "--tutorial", "--root", str(root)]
    spent = float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout)
    found: dict[str, Any] = clock | {"tutorial": [spent * TRAINED / IMAGES], "coordinator": (long - short) / epochs}
    shown = {name: min(found[name]) for name in ("tutorial", "ours", "lean")}
    words = "  ".join(f"{name} {spent:.3f}" for name, spent in shown.items())
    print(f"round {number}, CPU s an epoch: {words}  coordinator {found['coordinator']:.3f}", flush=True)
    return found


def train(epochs: int, root: Path, name: str, *, images: int | None = None) -> tuple[float, dict[str, list[float]]]:
    """CPU seconds of a run in this process, which coordinates and ships, and what the worker wrote down."""
    limit = [f"data.n_train={images}"] if images else []
    data = ["data._target_=bench_trainer.digits", f"data.path={root}"]
    began = time.process_time()
    sweep([*RUN, *limit, *data, f"epochs={epochs}", f"study.name={name}"])
    return time.process_time() - began, json.loads(CLOCK.read_text())


def tutorial(root: Path) -> float:
    """CPU seconds of an epoch as a first tutorial teaches it, word for word: datasets.MNIST, ToTensor, a shuffling
    DataLoader, Adam."""
    from fanin.vision import torchvision

    device = "cpu"
    mnist_train = torchvision.datasets.MNIST(root=root, train=True, transform=torchvision.transforms.ToTensor())
    data_loader = torch.utils.data.DataLoader(mnist_train, batch_size=BATCH, shuffle=True, drop_last=True)
    model = build().to(device)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    total_batch = len(data_loader)
    began = time.process_time()
    avg_cost: Any = 0
    for X, Y in data_loader:
        X = X.view(-1, 28 * 28).to(device)
        Y = Y.to(device)
        optimizer.zero_grad()
        hypothesis = model(X)
        cost = criterion(hypothesis, Y)
        cost.backward()
        optimizer.step()
        avg_cost += cost / total_batch
    return time.process_time() - began


def lean(root: Path, *, count: int) -> Iterator[float]:
    """CPU seconds of one epoch after another: tensors in memory, a permutation, a fused optimizer; nothing is
    measured, not even the loss. It has our settings of the C library and of denormals, too, which are worth a few
    per cent to it."""
    images, labels = digits(root)[0]
    x, labels = images[:count].float() / 255, labels[:count].long()
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    while True:
        began = time.process_time()
        torch.set_flush_denormal(True)
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x.index_select(0, rows)), labels.index_select(0, rows)).backward()
            optimizer.step()
        torch.set_flush_denormal(False)
        yield time.process_time() - began


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def digits(path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """The training and the test set in MNIST's files, each uint8 images (N, 784) and their labels."""

    def read(name: str, head: int) -> Tensor:
        return torch.frombuffer(bytearray(Path(path, "MNIST/raw", name).read_bytes()[head:]), dtype=torch.uint8)

    names = ("train", "t10k")
    return [(read(f"{n}-images-idx3-ubyte", 16).view(-1, 784), read(f"{n}-labels-idx1-ubyte", 8)) for n in names]


def repeat_small_set(root: Path) -> Path:
    """The digits of mnist_5k, repeated, in the files of MNIST."""
    from fanin.data import mnist_5k

    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    found = mnist_5k()
    for name, part, count in (("train", found.train, IMAGES), ("t10k", found.test, 10_000)):
        times = count // len(part.labels)
        pixels, labels = part.images.repeat(times, 1, 1, 1), part.labels.to(torch.uint8).repeat(times)
        head = struct.pack(">iiii", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.numpy().tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.numpy().tobytes())
    return root


if __name__ == "__main__":
    raise SystemExit(main())
