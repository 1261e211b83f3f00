"""CPU time an epoch of our trainer, against a tutorial's script and against the leanest loop one can write.

One thread, fp32, 784-256-256-10, batch 100, Adam 1e-3, 60,000 MNIST images from --root or $FANIN_DATA (else
the 5,000 of mnist_5k, repeated). Each loop runs in a fresh process, in turns, as the machine's speed drifts;
a round's ratio compares neighbours, and the median of the rounds is printed. Ours trains with all statistics
on, and its untrained epoch 0 and its evaluations count as part of its epochs.

    python benchmarks/bench_trainer.py [--root DIR] [--rounds 5] [--epochs 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LR, VAL = 100, 1e-3, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("FANIN_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="of ours and of the lean loop; the tutorial runs 1")
    parser.add_argument("--loop", choices=sorted(LOOPS), help=argparse.SUPPRESS)  # the child's side
    options = parser.parse_args()
    if options.loop:
        torch.set_num_threads(1)
        images, labels = load(options.root)
        print(json.dumps(LOOPS[options.loop](images, labels, options.epochs)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    lean, ours, tutorial = [], [], []
    for number in range(options.rounds):
        lean.append(run("lean", options, epochs=options.epochs))
        ours.append(run("ours", options, epochs=options.epochs))
        if number < 2:
            tutorial.append(run("tutorial", options, epochs=1))
        print(f"round {number + 1}: lean {lean[-1]:.3f}  ours {ours[-1]:.3f} CPU s an epoch", flush=True)
    extra = statistics.median(mine / his for mine, his in zip(ours, lean, strict=True))
    saved = statistics.median(his / mine for his, mine in zip(tutorial, ours, strict=False))
    print(f"tutorial: {statistics.median(tutorial):.3f} CPU s an epoch")
    print(f"tutorial / ours with all statistics: {saved:.2f}x (target >= 3.5x)")
    print(f"ours with all statistics / leanest loop: {extra:.3f}x (target <= 1.10x)")


def run(loop: str, options: argparse.Namespace, *, epochs: int) -> float:
    command = [sys.executable, __file__, "--loop", loop, "--epochs", str(epochs), "--root", str(options.root)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def load(root: Path) -> tuple[Tensor, Tensor]:
    """60,000 uint8 images (N, 28, 28) and their labels."""
    from fanin.data import mnist_5k

    folder = root / "MNIST" / "raw"
    if folder.is_dir():
        pixels = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
        labels = (folder / "train-labels-idx1-ubyte").read_bytes()[8:]
        tensors = [torch.frombuffer(bytearray(raw), dtype=torch.uint8) for raw in (pixels, labels)]
        return tensors[0].view(-1, 28, 28), tensors[1].long()
    train = mnist_5k().train
    return train.images.view(-1, 28, 28).repeat(15, 1, 1), train.labels.repeat(15)


def build() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def tutorial(images: Tensor, labels: Tensor, epochs: int) -> float:
    """What the first tutorial teaches: a Dataset of PIL images, ToTensor, a shuffling DataLoader, Adam."""
    from PIL import Image

    from fanin.vision import torchvision  # noqa: F401  (before torchvision's own modules)

    class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):  # as torchvision.datasets.MNIST does it
        def __init__(self) -> None:
            from torchvision.transforms import ToTensor

            self.transform = ToTensor()

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.transform(Image.fromarray(images[index].numpy(), mode=None)), int(labels[index])

    loader = torch.utils.data.DataLoader(Digits(), batch_size=BATCH, shuffle=True)
    model = build()
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=LR), nn.CrossEntropyLoss()
    began = time.process_time()
    for _ in range(epochs):
        running = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
    return (time.process_time() - began) / epochs


def lean(images: Tensor, labels: Tensor, epochs: int) -> float:
    """Tensors in memory, a permutation, a fused optimizer; nothing is measured, not even the loss."""
    x = images.view(-1, 1, 28, 28).float() / 255
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    began = time.process_time()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()
    return (time.process_time() - began) / epochs


def ours(images: Tensor, labels: Tensor, epochs: int) -> float:
    """Our loop, every statistic on; the validation images come on top, so that it trains on all 60,000."""
    from fanin import optimizers, regularizers, schedulers
    from fanin.data import Split
    from fanin.memory import keep_freed_memory
    from fanin.randomness import Streams
    from fanin.stats import LayerStats
    from fanin.train import Progress, batch_sizes, fit

    keep_freed_memory()
    x = images.view(-1, 1, 28, 28).float() / 255
    everything, val = torch.arange(len(x)), torch.arange(VAL)
    split = Split(x, labels, train=everything, val=val, test_images=x[:1], test_labels=labels[:1], classes=10)
    model = build()
    optimizer = optimizers.build(torch.optim.Adam, model.parameters(), lr=LR, weight_decay=0.0, batch="mini")
    constant = torch.optim.lr_scheduler.ConstantLR
    steps = len(batch_sizes(len(x), batch_size=BATCH))
    records = fit(
        model,
        optimizer,
        split,
        epochs=epochs,
        batch_size=BATCH,
        batch="mini",
        streams=Streams(seed=0, replicate=0),
        scheduler=schedulers.build(
            constant, optimizer, every="epoch", epochs=epochs, steps_per_epoch=steps, factor=1.0
        ),
        regularizer=regularizers.NONE,
        stats=LayerStats(model, images=x[:256], labels=labels[:256]),
        precision="fp32",
        progress=Progress(),
    )
    began = time.process_time()
    losses = [record.metrics["train/loss"] for record in records]
    assert losses[-1] < losses[0]
    return (time.process_time() - began) / epochs


LOOPS: dict[str, Callable[[Tensor, Tensor, int], float]] = {"tutorial": tutorial, "lean": lean, "ours": ours}

if __name__ == "__main__":
    main()
