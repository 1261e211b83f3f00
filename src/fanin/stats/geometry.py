"""Costlier shapes: spectra of weights, their way from where they started, Jacobians, and how alike inputs become."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fanin.stats.gains import layers_of
from fanin.stats.trail import Passed, following

JACOBIANS = 8  # inputs
ALIKE = 64  # inputs whose pairs are compared


def shapes(model: nn.Module, images: Tensor, initial: Mapping[str, Tensor]) -> dict[str, float]:
    """weight/L/effective_rank, init_distance and init_cosine; signal/L/correlation; jacobian/mean_singular_value, the
    last two on the first of the `images` (N, ...). `initial`: the weights by path as they were initialized; layers
    that are missing there have no way."""
    found = {}
    for path, layer in layers_of(model).items():
        weight = layer.weight.detach().flatten(1).double().cpu()
        found[f"weight/{path}/effective_rank"] = effective_rank(weight)
        if path in initial:
            start = initial[path].flatten(1).double().cpu()
            found[f"weight/{path}/init_distance"] = _ratio((weight - start).norm(), start.norm())
            found[f"weight/{path}/init_cosine"] = _ratio((weight * start).sum(), weight.norm() * start.norm())
    found |= {f"signal/{path}/correlation": value for path, value in correlations(model, images[:ALIKE]).items()}
    found["jacobian/mean_singular_value"] = float(jacobian_spectra(model, images[:JACOBIANS]).mean())
    return found


def effective_rank(matrix: Tensor) -> float:
    """exp(entropy of the singular values' shares) of a `matrix` (rows, columns): from 1 to the rank (Roy and Vetterli
    2007); 0 for a zero matrix, NaN with an entry that is not finite."""
    if not torch.isfinite(matrix).all():
        return float("nan")
    values = torch.linalg.svdvals(matrix)
    if not values.any():
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def correlations(model: nn.Module, images: Tensor) -> dict[str, float]:
    """By layer: the mean cosine between the z_l of two different inputs (N, ...), mean field's c_l."""
    layers = layers_of(model)
    paths = {layer: path for path, layer in layers.items()}
    found: dict[str, float] = {}

    def read(module: nn.Module, given: Tensor, output: Tensor, source: Passed | None) -> None:
        path = paths.get(module)  # type: ignore[call-overload]
        if path is not None and path not in found:
            unit = nn.functional.normalize(output.flatten(1).double().cpu(), dim=1)
            count = len(unit)
            found[path] = float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))

    with following(model, layers, read):
        model.forward(images)
    return found


def jacobian_spectra(model: nn.Module, images: Tensor) -> Tensor:
    """Singular values (N, classes) of d logits / d input at each image (Glorot and Bengio 2010: about 1 is good)."""
    with torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        logits = model.forward(images)
        rows = [
            torch.autograd.grad(logits[:, c].sum(), images, retain_graph=True, allow_unused=True)[0]
            for c in range(logits.shape[1])
        ]
    jacobian = torch.stack([torch.zeros_like(images) if row is None else row for row in rows], 1)
    jacobian = jacobian.flatten(2).double().cpu()
    if not torch.isfinite(jacobian).all():
        return torch.full(jacobian.shape[:2], torch.nan)
    return torch.linalg.svdvals(jacobian)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
