"""What is measured of a layer's weights alone: a few passes on the device, and the rest on the host.

Both spread and size come from one pass over the units' distances d_i from their mean row m:

    sum (w - mean w)^2 = sum d_i^2 + units sum (m - mean m)^2        sum w^2 = sum d_i^2 + units sum m^2

in which nothing cancels, so that equal weights have exactly no spread.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fanin import spectrum
from fanin.evaluation import wide_dtype
from fanin.stats.distribution import histogram, sample
from fanin.stats.reductions import ratio, share, square

SPARSE = 1e-8


@dataclass(frozen=True)
class Reading:
    """Of W as a matrix of units x fan_in, still on its device: the mean row (fan_in,), the units' distances from it
    (units,), the least and the largest magnitude (2,), what the spectrum needs, and a sample for the histogram."""

    matrix: Tensor
    mean_row: Tensor
    distances: Tensor
    extremes: Tensor
    spectrum: Tensor
    sample: Tensor


@torch.no_grad()
def read(weight: Tensor) -> Reading:
    """Starts the work on the device and does not wait for it."""
    matrix = weight.detach().flatten(1)
    wide = matrix.to(wide_dtype(matrix.device), copy=True)
    mean_row = wide.mean(0)
    distances = torch.linalg.vector_norm(wide.sub_(mean_row), dim=1)
    extremes = torch.stack(torch.aminmax(matrix.abs()))
    return Reading(matrix, mean_row, distances, extremes, spectrum.compact(matrix), sample(matrix))


def summarise(reading: Reading) -> dict[str, float]:
    """The statistics by their names; infinite or NaN weights give NaN."""
    row, distances = (part.double().cpu().numpy() for part in (reading.mean_row, reading.distances))
    units, smallest, largest = len(distances), *reading.extremes.tolist()
    with np.errstate(invalid="ignore"):
        mean = float(row.mean())
        common, between, within = (math.sqrt(part @ part) for part in (row, row - mean, distances))
    norm = math.hypot(within, common * units**0.5)
    top = spectrum.finish(reading.spectrum.cpu())
    found = {
        "mean": mean,
        "std": math.hypot(within, between * units**0.5) / reading.matrix.numel() ** 0.5,
        "absmax": largest,
        "norm": norm,
        "spectral_norm": top,
        "stable_rank": square(ratio(norm, top)),
        "sparsity": 0.0 if smallest > SPARSE else float(share(reading.matrix.abs() <= SPARSE)),
    }
    return found | ({"row_spread": ratio(float(distances.max()), common)} if units > 1 else {})


def count(reading: Reading) -> list[float]:
    """The histogram (distribution.py)."""
    return histogram(reading.sample.cpu())
