"""The training loop: plain arguments in, one record per epoch out. It knows no config, tracker or file."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.augmentation import draw_augmentation
from fanin.averaging import WeightAverage
from fanin.checkpoint import Progress, capture, restore
from fanin.data import Split
from fanin.errors import ConfigError, require, unknown
from fanin.evaluation import EVALUATION_BATCH, Evaluation, evaluate, wide_dtype
from fanin.objective import Objective
from fanin.order import batch_sizes, draw_order
from fanin.precision import PRECISIONS, numerics
from fanin.randomness import Streams
from fanin.ranges import whole
from fanin.regularizers import Regularizer, project_max_norm
from fanin.schedulers import Schedule
from fanin.stats import LayerStats

__all__ = [
    "EpochRecord",
    "Evaluation",
    "Progress",
    "batch_sizes",
    "capture",
    "check",
    "evaluate",
    "fit",
    "restore",
]

UNTRAINED_IMAGES = 10_000


@dataclass(frozen=True)
class EpochRecord:
    """`metrics` by their public keys; `seconds`: its wall time with evaluation and statistics; `predicted`: the
    classes that the validation images were given, int64 (N,) on the device; `histograms`: of each layer's weights
    (fanin.stats.distribution)."""

    epoch: int
    metrics: dict[str, float]
    seconds: float
    predicted: Tensor
    histograms: dict[str, list[float]] = field(default_factory=dict)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    batch: str,
    streams: Streams,
    scheduler: Schedule,
    regularizer: Regularizer,
    stats: LayerStats | None,
    precision: str,
    progress: Progress,
) -> Iterator[EpochRecord]:
    """Train, and yield a record of the untrained network (epoch 0) and of every epoch after it.

    `train/...` are running means over the epoch's images while the weights move, by plain cross-entropy
    whatever the objective adds to it (with mixup: of mixed images and labels); for `val/...`, and at epoch 0 (on
    the first 10,000), they stand still. With `regularizer.weight_averaging`, `val/...` and `progress.best_state`
    are of the averaged weights, which `progress.average` holds; statistics are of those that are trained.
    Ends early when val/loss has stopped improving (`regularizer.patience`), or when a loss is not finite:
    that epoch is recorded as it is, with diverged=1. `progress.ended` says why. A `progress` that `restore`
    returned goes on after its epoch, bit for bit as if training had not stopped.

    The batch order is a function of the epoch and of nothing else. Between two records the caller may do what
    it likes with torch's global generators: training's own state is kept aside.
    """
    device = split.images.device
    sizes = batch_sizes(len(split.train), batch_size=batch_size, batch=batch)
    chunk = EVALUATION_BATCH if batch == "full" else None
    objective = Objective(model, optimizer, split, regularizer=regularizer, precision=precision, chunk=chunk)
    average = averaging(model, progress, decay=regularizer.weight_averaging, steps=len(sizes))
    if stats and progress.epoch >= 0:
        with numerics(precision, device):
            stats.recall()
    for epoch in range(progress.epoch + 1, epochs + 1):
        if progress.ended in ("early_stopping", "diverged"):
            return
        began = time.perf_counter()
        progress.enter(streams, device)
        with numerics(precision, device):
            if epoch == 0:
                train = untrained(objective)
            else:
                batches = draw_order(split.train, streams=streams, epoch=epoch).split(sizes)
                objective.augment = draw_augmentation(regularizer, streams=streams, epoch=epoch, device=device)
                train = train_epoch(objective, batches, scheduler=scheduler, stats=stats, average=average)
                progress.seconds += time.perf_counter() - began
            layers = measure(stats, epoch=epoch, lr=train.lr)
            val = validate(model, split, epoch=epoch, average=average, progress=progress)
        if epoch > 0:
            scheduler.after_epoch(val.loss)
        progress.leave(device)
        finite = math.isfinite(train.loss) and math.isfinite(val.loss)
        progress.ended = ending(progress, diverged=not finite, patience=regularizer.patience, epochs=epochs)
        metrics = {**describe(train, val, progress=progress), **layers}
        yield EpochRecord(epoch, metrics, time.perf_counter() - began, val.predicted, stats.histograms if stats else {})


def check(
    model: nn.Module, *, epochs: int, batch_size: int, batch: str, count: int, precision: str, device: str
) -> None:
    """Raise a ConfigError for settings with which `fit` could not train `model` on `count` images."""
    for key, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        require(whole(least).holds(value), key, whole(least).rule, value)
    if precision not in PRECISIONS:
        raise unknown("hardware.precision", precision, PRECISIONS)
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise ConfigError(f"hardware.precision: tf32 exists on cuda only, not on {device}; take fp32 or bf16")
    normalised = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for m in model.modules())
    smallest = min(batch_sizes(count, batch_size=batch_size, batch=batch))
    rule = f"batch norm needs at least 2 images a batch (of {count})"
    require(not normalised or smallest > 1, "batch_size", rule, batch_size)


@dataclass(frozen=True)
class Running:
    """Means over one epoch's images, and the learning rate of its last step."""

    loss: float
    accuracy: float
    lr: float


def untrained(objective: Objective) -> Running:
    """Epoch 0: the first training images by the weights as they are; enough of them to tell chance."""
    split = objective.split
    found = evaluate(objective.model, split.images, split.labels, index=split.train[:UNTRAINED_IMAGES])
    return Running(found.loss, found.accuracy, lr=objective.lr)


def train_epoch(
    objective: Objective,
    batches: Sequence[Tensor],
    *,
    scheduler: Schedule,
    stats: LayerStats | None,
    average: WeightAverage | None,
) -> Running:
    """One optimizer step per batch. The device is waited for at the end only."""
    objective.model.train()
    bound = objective.regularizer.max_norm
    losses, predicted = [], []
    for number, index in enumerate(batches, start=1):
        objective.turn_to(index)
        if stats and number == len(batches):
            stats.remember()
        objective.step()
        if bound is not None:
            project_max_norm(objective.weights, max_norm=bound)
        if average:
            average.update()
        lr = objective.lr
        scheduler.after_step()
        losses.append(objective.loss)
        predicted.extend(objective.predicted)
    loss, accuracy = means(losses, predicted, batches=batches, labels=objective.split.labels)
    return Running(loss, accuracy, lr)


def means(
    losses: list[Tensor], predicted: list[Tensor], *, batches: Sequence[Tensor], labels: Tensor
) -> tuple[float, float]:
    """Loss and accuracy over the images of all batches, from each batch's mean loss and its predicted classes."""
    order = torch.cat(tuple(batches))
    counts = torch.tensor([len(index) for index in batches], device=order.device)
    total = torch.stack(losses).to(wide_dtype(order.device)).mul(counts).sum()
    hits = (torch.cat(predicted) == labels[order]).sum()
    loss, accuracy = (torch.stack([total, hits.to(total.dtype)]) / len(order)).tolist()
    return loss, accuracy


def averaging(model: nn.Module, progress: Progress, *, decay: float, steps: int) -> WeightAverage | None:
    """The average that goes along with the weights, where one is asked for; `steps`: of an epoch."""
    if not decay:
        return None
    return WeightAverage(model, decay=decay, state=progress.average, steps=max(progress.epoch, 0) * steps)


def measure(stats: LayerStats | None, *, epoch: int, lr: float) -> dict[str, float]:
    """What the layers are like now; of the untrained network also what theory predicts for them."""
    if stats is None:
        return {}
    return stats.measure(lr=lr) | (stats.predict() if epoch == 0 else {})


def validate(
    model: nn.Module, split: Split, *, epoch: int, average: WeightAverage | None, progress: Progress
) -> Evaluation:
    """Evaluate the weights that a finished run is judged by, and keep them if they are the best so far."""
    with average.applied() if average else nullcontext():
        val = evaluate(model, split.images, split.labels, index=split.val)
        progress.judge(model, epoch=epoch, loss=val.loss)
    return val


def describe(train: Running, val: Evaluation, *, progress: Progress) -> dict[str, float]:
    """An epoch's metrics by their public keys, those of layers left out."""
    return {
        "train/loss": train.loss,
        "train/accuracy": train.accuracy,
        "val/loss": val.loss,
        "val/accuracy": val.accuracy,
        "optimizer/lr": train.lr,
        "diverged": float(progress.ended == "diverged"),
        "seconds": progress.seconds,
    }


def ending(progress: Progress, *, diverged: bool, patience: int | None, epochs: int) -> str | None:
    """Why training is over after this epoch, or None."""
    if diverged:
        return "diverged"
    if progress.epoch >= epochs:
        return "epochs"
    return "early_stopping" if patience is not None and progress.stale >= patience else None
