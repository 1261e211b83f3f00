"""Measuring the layers of a model on a fixed probe."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.evaluation import observing
from fanin.stats import weights
from fanin.stats.batch_mode import batch_mode
from fanin.stats.covariate_shift import covariate_shift
from fanin.stats.curvature import curvature
from fanin.stats.drift import drifts, percentiles
from fanin.stats.gains import gains_between, layers_of, measure_gains
from fanin.stats.geometry import shapes
from fanin.stats.prediction import predict
from fanin.stats.reductions import norm, ratio, rms
from fanin.stats.trace import Trace
from fanin.stats.trail import following
from fanin.stats.transfer import to_host


class LayerStats:
    """Measures a model on a fixed probe: held-out `images` (N, C, H, W) and their `labels` (N,). With the `level`
    "full" also what is costly; `initial` are then the weights as they were initialized, by path (None: as now)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        images: Tensor,
        labels: Tensor,
        level: str = "standard",
        initial: Mapping[str, Tensor] | None = None,
    ):
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self.images, self.labels = images, labels
        self.layers = layers_of(self.model)
        self.level = level
        self._before: dict[str, Tensor] = {}
        self._percentiles: dict[str, Tensor] = {}  # at the last record, with level "full"
        self._length = rms(images)
        now = {path: layer.weight.detach().clone() for path, layer in self.layers.items()} if level == "full" else {}
        self.initial = now if initial is None else initial
        self.histograms: dict[str, list[float]] = {}  # of each layer's weights, at the last `measure`

    def remember(self) -> None:
        """Keep the weights as they are before a step, for the update ratio of the next `measure`."""
        self._before = {path: layer.weight.detach().clone() for path, layer in self.layers.items()}

    def recall(self) -> None:
        """Take up a resumed run, whose model is as it was at its last record: what drifts is told from there."""
        if self.level == "full":
            with batch_mode(self.model, self.images):
                self._percentiles = percentiles(self.model, self.images)

    def measure(self, *, lr: float | None = None) -> dict[str, float]:
        """Every statistic by its key; infinite or NaN weights give NaN. The device is waited for once, unless a layer
        has weights of 0, which are counted after that. Covariate shift is what a step of `lr` makes of the gradients.
        """
        with observing(self.model, device=self.images.device):
            readings = {path: weights.read(layer.weight) for path, layer in self.layers.items()}
            numbers = self._read_updates() | self._read_probe()
        updated, self._before = list(self._before), {}
        ((first,), *parts) = to_host([[torch.stack(list(numbers.values()))], *readings.values()])
        found = dict(zip(numbers, first.tolist(), strict=True))
        for path in updated:
            found[f"update/{path}/ratio"] = ratio(found.pop(f"step/{path}"), found.pop(f"from/{path}"))
        _summarise_signal(found)
        readings = {path: weights.Reading(*part) for path, part in zip(readings, parts, strict=True)}
        for path, reading in readings.items():
            values = weights.summarise(reading, self.layers[path].weight)
            found |= {f"weight/{path}/{name}": value for name, value in values.items()}
        self.histograms = {path: weights.count(reading) for path, reading in readings.items()}
        return found | (self._measure_costly() | self._measure_in_batch_mode(lr) if self.level == "full" else {})

    def _measure_costly(self) -> dict[str, float]:
        with observing(self.model, device=self.images.device):
            return shapes(self.model, self.images, self.initial) | curvature(self.model, self.images, self.labels)

    def _measure_in_batch_mode(self, lr: float | None) -> dict[str, float]:
        with batch_mode(self.model, self.images):
            found = measure_gains(self.model, self.images, self.labels).metrics("batch_")
        before = self._percentiles
        self.recall()
        found |= drifts(self._percentiles, before)
        return found | (covariate_shift(self.model, self.images, self.labels, lr=lr) if lr is not None else {})

    def predict(self) -> dict[str, float]:
        """What theory says of the model as it is now, before training: predicted gains by their keys."""
        with observing(self.model, device=self.images.device):
            return predict(self.model, self.images).metrics("predicted_")

    @torch.no_grad()
    def _read_updates(self) -> dict[str, Tensor]:
        readings = {}
        for path, before in self._before.items():
            readings[f"step/{path}"] = norm(self.layers[path].weight - before)
            readings[f"from/{path}"] = norm(before)
        return readings

    def _read_probe(self) -> dict[str, Tensor]:
        """One forward and one backward pass of the probe; the model's own gradients stay as they are."""
        trace = Trace(self.layers)
        trained = {path: layer.weight for path, layer in self.layers.items() if layer.weight.requires_grad}
        with torch.enable_grad(), following(self.model, self.layers, trace.read):
            logits = self.model.forward(self.images)  # not __call__: compiled code would not run the hooks
            loss = F.cross_entropy(logits, self.labels)
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        readings = {"forward/": self._length, **trace.readings}
        for path, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                readings[f"grad/{path}/norm"] = norm(gradient)
        return readings


def _summarise_signal(found: dict[str, float]) -> None:
    """Replace the z_l's root mean squares, and the norms of their gradients, by the gains between layers."""
    found |= gains_between(_take(found, "forward/"), _take(found, "backward/")).metrics()


def _take(found: dict[str, float], prefix: str) -> dict[str, float]:
    """Move the entries whose key starts with `prefix` out of `found`, in their order."""
    keys = [key for key in found if key.startswith(prefix)]
    return {key.removeprefix(prefix): found.pop(key) for key in keys}
