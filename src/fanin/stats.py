"""Per-layer statistics of weights, gradients, updates and activations, on a fixed probe batch in eval mode.

Layer l computes z_l = W_l h_{l-1} + b_l (W as units x fan_in) and its activation h_l = phi(z_l). Sums run in
float64. Nothing here draws a random number, updates a buffer or leaves a gradient behind, so the weights of a
run are bit for bit the same with and without statistics.

| key | meaning |
| --- | --- |
| weight/L/mean, std, absmax | over the entries of W (std: population) |
| weight/L/norm, spectral_norm | the Frobenius norm, and the largest singular value |
| weight/L/stable_rank | norm^2 / spectral_norm^2: from 1 to the rank, and 0 for W = 0 |
| weight/L/sparsity | fraction of entries with abs(w) <= 1e-8 |
| grad/L/norm | 2-norm of the gradient of the probe's mean cross-entropy by W |
| update/L/ratio | norm(W_after - W_before) / norm(W_before) of the epoch's last step, projection included |
| activation/L/mean, std | of h over the probe's inputs and the units (std: population) |
| activation/L/dead | fraction of units that a rectifier holds at 0 for every input (of a conv: everywhere) |
| activation/L/saturated | fraction of outputs on a flat end of phi: the outer 5 % of its bounded side |
| signal/L/forward_gain | mean z_l^2 / mean z_{l-1}^2, with the input as z_0: mean field's q_l / q_{l-1} |
| signal/L/backward_gain | sum (dL/dz_l)^2 / sum (dL/dz_{l+1})^2: mean field's chi; not for the last layer |

L is the path of a Linear or Conv module; layers follow one another as the probe passes them. An activation
belongs to the layer whose output it receives, directly or through norms, dropout and pooling; where a skip
connection is added in between, it belongs to none. A ratio 0/0 is given as 0: no signal in, none out.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin import spectrum
from fanin.evaluation import observing, wide_dtype

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (
    *RECTIFIERS, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign,
)  # fmt: skip
STATISTICS = {
    "weight": ("mean", "std", "absmax", "norm", "spectral_norm", "stable_rank", "sparsity"),
    "grad": ("norm",),
    "update": ("ratio",),
    "activation": ("mean", "std", "dead", "saturated"),
    "signal": ("forward_gain", "backward_gain"),
}
SPARSE = 1e-8
SELU_PLATEAU = 1.0507009873554805 * 1.6732632423543772  # scale * alpha of Klambauer et al. 2017


class LayerStats:
    """Measures a model on a fixed probe: held-out `images` (N, C, H, W) and their `labels` (N,)."""

    def __init__(self, model: nn.Module, *, images: Tensor, labels: Tensor):
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self.images, self.labels = images, labels
        modules = self.model.named_modules()
        self.layers = {path or "model": module for path, module in modules if isinstance(module, LAYERS)}
        self._before: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Keep the weights as they are before a step, for the update ratio of the next `measure`."""
        self._before = {path: layer.weight.detach().clone() for path, layer in self.layers.items()}

    def measure(self) -> dict[str, float]:
        """Every statistic by its key, after one wait for the device; infinite or NaN weights give NaN."""
        with observing(self.model, device=self.images.device):
            readings = self._read_weights() | self._read_updates() | self._read_probe()
        updated, self._before = list(self._before), {}
        found = _fetch(readings)
        for path in self.layers:
            _summarise_spectrum(found, path)
        for path in updated:
            found[f"update/{path}/ratio"] = _ratio(found.pop(f"step/{path}"), found.pop(f"from/{path}"))
        _summarise_signal(found)
        return found

    @torch.no_grad()
    def _read_weights(self) -> dict[str, Tensor]:
        readings = {}
        for path, layer in self.layers.items():
            weight = layer.weight.detach()
            mean, std = _moments(weight)
            readings[f"weight/{path}/mean"] = mean
            readings[f"weight/{path}/std"] = std
            readings[f"weight/{path}/absmax"] = weight.abs().amax()
            readings[f"weight/{path}/norm"] = _norm(weight)
            readings[f"weight/{path}/sparsity"] = _share(weight.abs() <= SPARSE)
            readings[f"weight/{path}/spectral_norm"] = spectrum.tridiagonal(weight.flatten(1))
        return readings

    @torch.no_grad()
    def _read_updates(self) -> dict[str, Tensor]:
        readings = {}
        for path, before in self._before.items():
            readings[f"step/{path}"] = _norm(self.layers[path].weight - before)
            readings[f"from/{path}"] = _norm(before)
        return readings

    def _read_probe(self) -> dict[str, Tensor]:
        """One forward and one backward pass of the probe; the model's own gradients stay as they are."""
        trace = _Trace(self.layers)
        trained = {path: layer.weight for path, layer in self.layers.items() if layer.weight.requires_grad}
        with torch.enable_grad(), trace.attached(self.model):
            logits = self.model.forward(self.images)  # not __call__: compiled code would not run the hooks
            loss = F.cross_entropy(logits, self.labels)
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        readings = {"forward/": _rms(self.images), **trace.readings}
        for path, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                readings[f"grad/{path}/norm"] = _norm(gradient)
        return readings


class _Trace:
    """Readings of one pass through a model, taken while it runs: later operations may be in place."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        self.paths: dict[nn.Module, str] = {layer: path for path, layer in layers.items()}
        self.readings: dict[str, Tensor] = {}
        # Whose output a tensor is, by the tensor's id; held here, so that no later tensor gets the same id.
        self._trail: dict[int, tuple[nn.Module, Tensor]] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        handles = [module.register_forward_hook(self._read) for module in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._trail.clear()  # a tensor's hook holds this trace: no garbage collector sees the circle

    def _read(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module in self.paths:
            self._trail[id(output)] = module, output
            self._read_layer(self.paths[module], output)
        elif inputs and id(inputs[0]) in self._trail:
            layer = self._trail[id(inputs[0])][0]
            if isinstance(module, ACTIVATIONS):
                self._read_activation(module, output.detach(), layer=layer)
            elif not any(module.children()):  # norm, dropout, pooling: still the same layer's output
                self._trail[id(output)] = layer, output

    def _read_layer(self, path: str, output: Tensor) -> None:
        if f"forward/{path}" in self.readings:
            return  # a layer used twice is measured where it is used first
        self.readings[f"forward/{path}"] = _rms(output.detach())
        if output.requires_grad:
            output.register_hook(partial(self._read_gradient, path))

    def _read_gradient(self, path: str, gradient: Tensor) -> None:
        self.readings[f"backward/{path}"] = _norm(gradient)

    @torch.no_grad()
    def _read_activation(self, module: nn.Module, output: Tensor, *, layer: nn.Module) -> None:
        path = f"activation/{self.paths[layer]}"
        if f"{path}/mean" in self.readings:
            return
        self.readings[f"{path}/mean"], self.readings[f"{path}/std"] = _moments(output)
        units = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        self.readings[f"{path}/dead"] = _share(_dead(module, units))
        self.readings[f"{path}/saturated"] = _share(_saturated(module, output))


def _dead(module: nn.Module, units: Tensor) -> Tensor:
    """Which rows of `units` never leave 0; only a rectifier's units get no gradient then."""
    if isinstance(module, RECTIFIERS):
        return units.amax(1) <= 0
    return torch.zeros_like(units[:, 0], dtype=torch.bool)


def _saturated(module: nn.Module, output: Tensor) -> Tensor:
    """Which outputs lie in the outer 5 % of the bounded side or sides of the activation."""
    match module:
        case nn.Sigmoid() | nn.Hardsigmoid():
            return (output - 0.5).abs() > 0.45
        case nn.Tanh() | nn.Softsign() | nn.Hardtanh(min_val=-1, max_val=1):
            return output.abs() > 0.95
        case nn.ReLU6():
            return output > 0.95 * 6
        case nn.ELU() | nn.CELU():
            return output < -0.95 * module.alpha
        case nn.SELU():
            return output < -0.95 * SELU_PLATEAU
        case _:
            return torch.zeros_like(output, dtype=torch.bool)


def _summarise_spectrum(found: dict[str, float], path: str) -> None:
    norm, largest = found[f"weight/{path}/norm"], found[f"weight/{path}/spectral_norm"]
    found[f"weight/{path}/stable_rank"] = _square(_ratio(norm, largest))


def _summarise_signal(found: dict[str, float]) -> None:
    """Replace the z_l's root mean squares, and the norms of their gradients, by the gains between layers."""
    forward = _take(found, "forward/")
    backward = _take(found, "backward/")
    for (_, before), (path, after) in pairwise(forward.items()):
        found[f"signal/{path}/forward_gain"] = _square(_ratio(after, before))
    ordered = [(path, backward[path]) for path in forward if path in backward]
    for (path, nearer), (_, farther) in pairwise(ordered):
        found[f"signal/{path}/backward_gain"] = _square(_ratio(nearer, farther))


def _take(found: dict[str, float], prefix: str) -> dict[str, float]:
    """Move the entries whose key starts with `prefix` out of `found`, in their order."""
    keys = [key for key in found if key.startswith(prefix)]
    return {key.removeprefix(prefix): found.pop(key) for key in keys}


def _fetch(readings: dict[str, Tensor]) -> dict[str, float]:
    """Bring all readings to the host in one transfer, and finish the spectra there."""
    wide = wide_dtype(next(iter(readings.values())).device)
    flat = torch.cat([reading.flatten().to(wide) for reading in readings.values()]).cpu()
    parts = flat.split([reading.numel() for reading in readings.values()])
    return {
        key: spectrum.finish(part.view(2, -1)) if key.endswith("/spectral_norm") else part.item()
        for key, part in zip(readings, parts, strict=True)
    }


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return part if part == 0 or math.isnan(part) else math.inf
    return part / whole


def _square(value: float) -> float:
    return value * value  # infinite where value**2 would raise


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation; centred first, so that equal values have exactly none."""
    wide = values.to(wide_dtype(values.device))
    mean = wide.mean()
    return mean, _rms(wide - mean)


def _rms(values: Tensor) -> Tensor:
    return _norm(values) / values.numel() ** 0.5


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dtype=wide_dtype(values.device))


def _share(mask: Tensor) -> Tensor:
    """The fraction of entries that are true."""
    return mask.sum().to(wide_dtype(mask.device)) / mask.numel()
