"""The weights of the best variants as histograms over the epochs: densities in common bins."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from fanin.report.series import in_depth_order, thinned

MOST_STEPS = 8
BINS = 40
Array = NDArray[numpy.float64]


def draw(files: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """For each variant and layer: `bound`, and the densities in bins that part [-bound, bound], one row per step."""
    drawn = {str(place): [_layer(name, one) for name, one in _ordered(layers)] for place, layers in files.items()}
    kept = {place: [layer for layer in layers if layer["steps"]] for place, layers in drawn.items()}
    kept = {place: layers for place, layers in kept.items() if layers}
    return {"bins": BINS, "of": kept} if kept else None


def _ordered(layers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, layers[name]) for name in in_depth_order(layers)]


def _layer(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    known = {e: i for i, (e, b) in enumerate(zip(one["epochs"], one["bounds"], strict=True)) if math.isfinite(b)}
    steps = [int(step) for step in thinned(known, MOST_STEPS)]
    bound = max((one["bounds"][known[step]] for step in steps), default=0.0)
    rows = [density(one["counts"][known[step]], one["bounds"][known[step]], bound=bound) for step in steps]
    return {"name": name, "steps": steps, "bound": float(f"{bound:.4g}"), "rows": rows}


def density(counts: Sequence[float], own: float, *, bound: float) -> list[float]:
    """Counts in even bins of [-own, own], as densities in BINS even bins of [-bound, bound]: inside its bins, a
    histogram is flat. Without any width, shares of the middle bins stand for densities."""
    edges = numpy.linspace(-bound, bound, BINS + 1)
    below = numpy.concatenate([[0.0], numpy.cumsum(counts)]) / sum(counts)
    if own == 0:
        shares = numpy.diff((edges >= 0).astype(float))
        return [float(share) for share in shares]
    shares = numpy.diff(numpy.interp(edges, numpy.linspace(-own, own, len(counts) + 1), below))
    return [float(f"{share:.3g}") for share in shares / (2 * bound / BINS)]
