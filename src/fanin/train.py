"""The training loop: plain arguments in, one record per epoch out. It knows no config, tracker or file."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.augmentation import Augmentation, Mixture, augments
from fanin.averaging import WeightAverage
from fanin.checkpoint import Progress, capture, restore
from fanin.data import Split
from fanin.errors import ConfigError, require, unknown
from fanin.evaluation import EVALUATION_BATCH, Evaluation, evaluate, wide_dtype
from fanin.randomness import Streams
from fanin.ranges import whole
from fanin.regularizers import Regularizer, add_l2, decay, decays, l1_penalty, project_max_norm, weights
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

PRECISIONS = ("fp32", "bf16", "tf32")
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
    chunk = EVALUATION_BATCH if batch == "full" else None
    objective = Objective(model, optimizer, split, regularizer=regularizer, precision=precision, chunk=chunk)
    average = None
    if regularizer.weight_averaging:
        taken = max(progress.epoch, 0) * len(batch_sizes(len(split.train), batch_size=batch_size, batch=batch))
        average = WeightAverage(model, decay=regularizer.weight_averaging, state=progress.average, steps=taken)
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
                order = draw_order(split.train, streams=streams, epoch=epoch)
                batches = order.split(batch_sizes(len(order), batch_size=batch_size, batch=batch))
                if augments(regularizer):
                    objective.augment = Augmentation(regularizer, streams=streams, epoch=epoch, device=device)
                train = train_epoch(objective, batches, scheduler=scheduler, stats=stats, average=average)
                progress.seconds += time.perf_counter() - began
            layers = stats.measure(lr=train.lr) if stats else {}
            layers |= stats.predict() if stats and epoch == 0 else {}
            with average.applied() if average else nullcontext():
                val = evaluate(model, split.images, split.labels, index=split.val)
                progress.judge(model, epoch=epoch, loss=val.loss)
        if epoch > 0:
            scheduler.after_epoch(val.loss)
        progress.leave(device)
        diverged = not (math.isfinite(train.loss) and math.isfinite(val.loss))
        progress.ended = ending(progress, diverged=diverged, patience=regularizer.patience, epochs=epochs)
        metrics = {
            "train/loss": train.loss,
            "train/accuracy": train.accuracy,
            "val/loss": val.loss,
            "val/accuracy": val.accuracy,
            "optimizer/lr": train.lr,
            "diverged": float(diverged),
            "seconds": progress.seconds,
            **layers,
        }
        histograms = stats.histograms if stats else {}
        seconds = time.perf_counter() - began
        yield EpochRecord(epoch, metrics, seconds=seconds, predicted=val.predicted, histograms=histograms)


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


def batch_sizes(count: int, *, batch_size: int, batch: str = "mini") -> list[int]:
    """How many images each step of an epoch sees: its length is the number of steps.

    Every image is used. What would be a last batch of one joins the batch before it: batch norm has nothing
    to normalise a single image by, and all variants must share their batches.
    """
    if batch == "full":
        return [count]
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if rest == 1 and full:
        sizes[-2:] = [batch_size + 1]
    return sizes


def draw_order(index: Tensor, *, streams: Streams, epoch: int) -> Tensor:
    """`index` shuffled by the epoch's own stream, so that a resumed run needs no generator state."""
    order = torch.randperm(len(index), generator=streams.generator("order", f"epoch {epoch}"))
    return index[order.to(index.device)]


@dataclass(frozen=True)
class Running:
    """Means over one epoch's images, and the learning rate of its last step."""

    loss: float
    accuracy: float
    lr: float


def untrained(objective: "Objective") -> Running:
    """Epoch 0: the first training images by the weights as they are; enough of them to tell chance."""
    split = objective.split
    found = evaluate(objective.model, split.images, split.labels, index=split.train[:UNTRAINED_IMAGES])
    return Running(found.loss, found.accuracy, lr=objective.lr)


def train_epoch(
    objective: "Objective",
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
        objective.optimizer.step(objective)  # type: ignore[arg-type]  # a tensor does as a float
        if bound is not None:
            project_max_norm(objective.weights, max_norm=bound)
        if average:
            average.update()
        lr = objective.lr
        scheduler.after_step()
        losses.append(objective.loss)
        predicted.extend(objective.predicted)
    order = torch.cat(tuple(batches))
    counts = torch.tensor([len(index) for index in batches], device=order.device)
    wide = wide_dtype(order.device)
    total = torch.stack(losses).to(wide).mul(counts).sum()
    hits = (torch.cat(predicted) == objective.split.labels[order]).sum()
    loss, accuracy = (torch.stack([total, hits.to(wide)]) / len(order)).tolist()
    return Running(loss, accuracy, lr)


class Objective:
    """What one step minimises: called by the optimizer for the loss on the batch, with its gradient in place.

    The loss is cross-entropy plus the regularizer's terms. `loss` and `predicted` keep what the first call on
    a batch found without those terms: L-BFGS calls several times a step. `augment`, an epoch's, is done to each
    batch once.
    """

    augment: Augmentation | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        split: Split,
        *,
        regularizer: Regularizer,
        precision: str,
        chunk: int | None,
    ):
        self.model, self.optimizer, self.split = model, optimizer, split
        self.regularizer, self.precision, self.chunk = regularizer, precision, chunk
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = weights(self.parameters)
        self.decays = decays(optimizer)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def turn_to(self, index: Tensor) -> None:
        """Take the batch at `index`; with `chunk` it passes the model in pieces whose gradients add up."""
        images, labels = self.split.images.index_select(0, index), self.split.labels.index_select(0, index)
        self.mixture: Mixture | None = None
        if self.augment:
            images, self.mixture = self.augment(images)
        others = labels[self.mixture.partners] if self.mixture else labels
        self.chunks = [(images, labels, others)]
        if self.chunk is not None:
            sizes = batch_sizes(len(index), batch_size=self.chunk)
            pieces = images.split(sizes), labels.split(sizes), others.split(sizes)
            self.chunks = list(zip(*pieces, strict=True))
        self.count = len(index)
        self.fresh = True

    def __call__(self) -> Tensor:
        for parameter in self.parameters:  # what zero_grad does, at a tenth of its cost
            parameter.grad = None
        passes = [self._descend(images, labels, others) for images, labels, others in self.chunks]
        objective = _total([one.objective for one in passes])
        if self.regularizer.l1:
            penalty = l1_penalty(self.weights, strength=self.regularizer.l1)
            penalty.backward()
            objective = objective + penalty.detach()
        if self.regularizer.l2:
            objective = objective + add_l2(self.weights, strength=self.regularizer.l2)
        if self.regularizer.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.regularizer.gradient_clipping)
        if self.fresh:
            self.loss = _total([one.plain for one in passes])
            self.predicted = [one.predicted for one in passes]
            self.fresh = False
            if self.decays:
                decay(self.optimizer)
        return objective

    def _descend(self, images: Tensor, labels: Tensor, others: Tensor) -> "_Pass":
        """Add the gradient of one chunk, weighted by its share of the batch."""
        smoothing = self.regularizer.label_smoothing
        with autocast(self.precision, images.device):
            logits = self.model(images)
            loss = self._entropy(logits, labels, others, smoothing=smoothing)
        logits = logits.detach()
        plain = self._entropy(logits, labels, others, smoothing=0.0) if smoothing else loss.detach()
        if len(labels) < self.count:
            share = len(labels) / self.count
            loss, plain = loss * share, plain * share
        loss.backward()
        return _Pass(loss.detach(), plain, logits.argmax(1))

    def _entropy(self, logits: Tensor, labels: Tensor, others: Tensor, *, smoothing: float) -> Tensor:
        """Mean cross-entropy; of a mixture, that with either label by its share (Zhang et al. 2018, section 2)."""
        own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.mixture is None:
            return own
        return torch.lerp(F.cross_entropy(logits, others, label_smoothing=smoothing), own, self.mixture.share)


@dataclass(frozen=True, slots=True)
class _Pass:
    objective: Tensor
    plain: Tensor
    predicted: Tensor


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def ending(progress: Progress, *, diverged: bool, patience: int | None, epochs: int) -> str | None:
    """Why training is over after this epoch, or None."""
    if diverged:
        return "diverged"
    if progress.epoch >= epochs:
        return "epochs"
    return "early_stopping" if patience is not None and progress.stale >= patience else None


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16: products in bfloat16, weights in float32. Entered anew each pass: it caches the cast weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def numerics(precision: str, device: torch.device) -> Iterator[None]:
    """Global numeric modes for the time of one epoch.

    Denormals are flushed to zero: the averages that Adam keeps of a dead unit's gradient decay to denormal
    numbers and stay there, and its step then takes twice the time. On cuda, fp32 means IEEE and tf32 means
    TF32, for matrix products and convolutions alike (torch's own default mixes them).
    """
    places: tuple[Any, ...] = ()
    if device.type == "cuda":
        places = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    flushing = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
        for place, mode in zip(places, before, strict=True):
            place.fp32_precision = mode


def flushes_denormals() -> bool:
    """torch can set this mode but not tell it: a product below the smallest normal number shows it."""
    return (torch.full((1,), 1e-38) * 0.1).item() == 0
