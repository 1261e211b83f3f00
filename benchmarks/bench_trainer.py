"""CPU time an epoch of our trainer, against a tutorial's script and against the leanest loop one can write.

One thread, fp32, 784-256-256-10, batch 100, Adam 1e-3, MNIST's 60,000 images from --root or $FANIN_DATA (else
the 5,000 of mnist_5k, repeated). Ours is what a user has: `fanin train` with all statistics, validation on
5,000 images, spool, checkpoints, live display and MLflow on SQLite; the CPU time of the worker and of the
coordinator, which ships, are added up. A run of one epoch is taken off a longer one, so an epoch is what one
more epoch costs, whatever a run costs. The other two train in fresh processes, in turns with ours, as the
machine's speed drifts; a process can be a quarter slower than the last, so the median of the rounds' ratios counts.

    python benchmarks/bench_trainer.py [--root DIR] [--rounds 5] [--epochs 4]
"""

import argparse
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from figures import Figure, judge, project, sweep
from torch import Tensor, nn

from fanin.memory import keep_freed_memory
from fanin.run import Trainer
from fanin.sweep import devices, engine

BATCH, LR, IMAGES, VAL = 100, 1e-3, 60_000, 5000
SAVED, EXTRA = 3.5, 1.10
CLOCK = Path("clock")
RUN = ["model=mlp", "hardware=cpu", "hardware.workers=1", f"batch_size={BATCH}", f"data.val={VAL}", "data=own"]


class TimedTrainer(Trainer):
    """A worker that writes down its CPU seconds in runs."""

    def run(self, payload: Any, channel: Any) -> None:
        began = time.process_time()
        super().run(payload, channel)
        CLOCK.write_text(str(time.process_time() - began))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("FANIN_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of ours and of the leanest loop; the tutorial's is 1")
    parser.add_argument("--loop", choices=sorted(LOOPS), help=argparse.SUPPRESS)  # the child's side
    options = parser.parse_args()
    if options.loop:
        torch.set_num_threads(1)
        print(LOOPS[options.loop](options.root, options.epochs))
        return 0
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    devices.TASK = "bench_trainer:TimedTrainer"
    engine.FLUSH = 600.0  # ship to the last point: it belongs to the cost
    root = options.root.absolute()
    with project() as folder:
        root = root if (root / "MNIST" / "raw").is_dir() else repeat_small_set(folder / "data")
        ours_spent(1, root, "warm", images=1000)  # imports, MLflow's database
        saved, extra = [], []
        for number in range(options.rounds):
            lean = run("lean", root, options.epochs)
            few, more = (ours_spent(n, root, f"round{number}of{n}") for n in (1, 1 + options.epochs))
            tutorial = run("tutorial", root, 1)
            ours = (more - few) / options.epochs * IMAGES / (IMAGES - VAL)
            saved.append(tutorial / ours)
            extra.append(ours / lean)
            print(f"round {number + 1}, CPU s an epoch: tutorial {tutorial:.3f}, ours {ours:.3f}, ", end="")
            print(f"leanest {lean:.3f}: {saved[-1]:.2f}x and {extra[-1]:.3f}x", flush=True)
    return judge(
        [
            Figure("tutorial / ours with statistics and tracking", statistics.median(saved), "x", least=SAVED),
            Figure("ours with statistics and tracking / leanest loop", statistics.median(extra), "x", most=EXTRA),
        ]
    )


def ours_spent(epochs: int, root: Path, name: str, *, images: int | None = None) -> float:
    """CPU seconds of a run: in the worker, and in this process, which coordinates and ships."""
    limit = [f"data.n_train={images}"] if images else []
    data = ["data._target_=bench_trainer.digits", f"data.path={root}"]
    began = time.process_time()
    sweep([*RUN, *limit, *data, f"epochs={epochs}", f"study.name={name}"])
    return time.process_time() - began + float(CLOCK.read_text())


def run(loop: str, root: Path, epochs: int) -> float:
    command = [sys.executable, __file__, "--loop", loop, "--epochs", str(epochs), "--root", str(root)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tutorial(root: Path, epochs: int) -> float:
    """What a first tutorial teaches, word for word: datasets.MNIST, ToTensor, a shuffling DataLoader, Adam."""
    from fanin.vision import torchvision

    device = "cpu"
    mnist_train = torchvision.datasets.MNIST(root=root, train=True, transform=torchvision.transforms.ToTensor())
    data_loader = torch.utils.data.DataLoader(mnist_train, batch_size=BATCH, shuffle=True, drop_last=True)
    model = build().to(device)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    total_batch = len(data_loader)
    began = time.process_time()
    for _ in range(epochs):
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
    return (time.process_time() - began) / epochs


def lean(root: Path, epochs: int) -> float:
    """Tensors in memory, a permutation, a fused optimizer; nothing is measured, not even the loss. It has our
    setting of the C library, too, which is worth a few per cent to it."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
    images, labels = digits(root)[0]
    x, labels = images.float() / 255, labels.long()
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    began = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x.index_select(0, rows)), labels.index_select(0, rows)).backward()
            optimizer.step()
    return (time.process_time() - began) / epochs


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


LOOPS: dict[str, Callable[[Path, int], float]] = {"tutorial": tutorial, "lean": lean}

if __name__ == "__main__":
    raise SystemExit(main())
