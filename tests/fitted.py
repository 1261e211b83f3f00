"""A problem that is learned in no time, a model for it, and what trains the model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fanin import optimizers, regularizers, schedulers
from fanin.data import Split
from fanin.models.dropout import Dropout
from fanin.models.noise import seed_noise
from fanin.order import batch_sizes
from fanin.randomness import Streams
from fanin.stats import LayerStats
from fanin.train import EpochRecord, Progress, fit

STREAMS = Streams(seed=3, replicate=1)
TRAIN, VAL = 130, 40
NOT_COMPARED = {"seconds"}


def make_split() -> Split:
    """A learnable problem: the class is the brighter third of the picture."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(TRAIN + VAL + 30, 1, 6, 6, generator=generator)
    labels = images.flatten(1).unflatten(1, (3, 12)).mean(2).argmax(1)
    end = TRAIN + VAL
    order = torch.randperm(end, generator=generator)
    return Split(images[:end], labels[:end], order[VAL:], order[:VAL], images[end:], labels[end:], classes=3)


SPLIT = make_split()


def make_model(*, noisy: bool = False, norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(11)
    noise = [norm or nn.BatchNorm1d(16), nn.ReLU(), Dropout(0.3), nn.Dropout(0.2)] if noisy else [nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), *noise, nn.Linear(16, 3))
    seed_noise(model, STREAMS)
    return model


class Run:
    """A model with what trains it; the keywords are those of the builders and of `fit`."""

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        factory: Any = torch.optim.Adam,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        batch: str = "mini",
        batch_size: int = 32,
        epochs: int = 4,
        schedule: dict[str, Any] | None = None,
        stats: bool = False,
        options: dict[str, Any] | None = None,
        precision: str = "fp32",
        split: Split = SPLIT,
        **regularizer: Any,
    ):
        self.model = model or make_model()
        self.optimizer = optimizers.build(
            factory,
            self.model.parameters(),
            lr=lr,
            weight_decay=weight_decay,
            batch=batch,
            **(options or {}),
        )
        schedule = schedule or {
            "factory": torch.optim.lr_scheduler.ConstantLR,
            "every": "epoch",
            "factor": 1.0,
        }
        steps = len(batch_sizes(len(split.train), batch_size=batch_size, batch=batch))
        self.scheduler = schedulers.build(optimizer=self.optimizer, epochs=epochs, steps_per_epoch=steps, **schedule)
        probe = split.val[:20]
        self.progress = Progress()
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "batch": batch,
            "batch_size": batch_size,
            "precision": precision,
            "streams": STREAMS,
            "scheduler": self.scheduler,
            "regularizer": regularizers.Regularizer(**{**vars(regularizers.NONE), **regularizer}),
            "stats": LayerStats(self.model, images=split.images[probe], labels=split.labels[probe]) if stats else None,
        }
        self.split = split

    def records(self) -> Iterator[EpochRecord]:
        return fit(self.model, self.optimizer, self.split, progress=self.progress, **self.settings)

    def all(self) -> list[EpochRecord]:
        return list(self.records())

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


def metrics(records: list[EpochRecord]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.metrics.items() if k not in NOT_COMPARED} for record in records]
