"""What is measured of a layer's weights alone: a few passes on the device, and the rest on the host.

Both spread and size come from one pass over the units' distances d_i from their mean row m:

    sum (w - mean w)^2 = sum d_i^2 + units sum (m - mean m)^2        sum w^2 = sum d_i^2 + units sum m^2

in which nothing cancels, so that equal weights have exactly no spread.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fanin import spectrum
from fanin.evaluation import wide_dtype
from fanin.stats.distribution import histogram, sample
from fanin.stats.reductions import ratio, share, square

SPARSE = 1e-8


class Reading(NamedTuple):
    """Of W as a matrix of units x fan_in, on its device or fetched from there: the mean row (fan_in,), the units'
    distances from it (units,), the least and the largest magnitude (2,), what the spectrum needs, and a sample for the
    histogram."""

    mean_row: Tensor
    distances: Tensor
    extremes: Tensor
    spectrum: Tensor
    sample: Tensor


@torch.no_grad()
def read(weight: Tensor) -> Reading:
    """Starts the work on the device and does not wait for it."""
    matrix = weight.detach().flatten(1)
    mean_row, distances = _rows(matrix)
    extremes = torch.stack(torch.aminmax(matrix.abs()))
    return Reading(mean_row, distances, extremes, spectrum.compact(matrix), sample(matrix))


def summarise(reading: Reading, weight: Tensor) -> dict[str, float]:
    """The statistics by their names, from what `read` found of `weight`, now on the CPU; infinite or NaN weights give
    NaN. Only weights of 0 have their device waited for, to be counted there."""
    row, distances = (part.double().numpy() for part in (reading.mean_row, reading.distances))
    units, smallest, largest = len(distances), *reading.extremes.tolist()
    with np.errstate(invalid="ignore"):
        mean = float(row.mean())
        common, between, within = (math.sqrt(part @ part) for part in (row, row - mean, distances))
    norm = math.hypot(within, common * units**0.5)
    top = spectrum.finish(reading.spectrum)
    found = {
        "mean": mean,
        "std": math.hypot(within, between * units**0.5) / weight.numel() ** 0.5,
        "absmax": largest,
        "norm": norm,
        "spectral_norm": top,
        "stable_rank": square(ratio(norm, top)),
        "sparsity": 0.0 if smallest > SPARSE else float(share(weight.detach().abs() <= SPARSE)),
    }
    return found | ({"row_spread": ratio(float(distances.max()), common)} if units > 1 else {})


def count(reading: Reading) -> list[float]:
    """The histogram (distribution.py) of what `read` found, now on the CPU."""
    return histogram(reading.sample)


def row_spread(weight: Tensor) -> float:
    """max_i |w_i - mean row| / |mean row| over the units of `weight` (units, ...): 0 where all are the same, zeros
    included; NaN with a weight that is not finite."""
    mean_row, distances = _rows(weight.detach().flatten(1))
    return ratio(float(distances.amax()), float(torch.linalg.vector_norm(mean_row)))


def _rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The mean row and the rows' distances from it, in which small weights do not vanish: squares of float32 would."""
    wide = matrix.to(wide_dtype(matrix.device), copy=True)
    mean_row = wide.mean(0)
    return mean_row, torch.linalg.vector_norm(wide.sub_(mean_row), dim=1)
