"""The histograms of a run's weights, as the spool keeps them beside an epoch's metrics and one file holds them all.

They are dense (fanin.stats.distribution: 33 numbers per layer and epoch) and nobody sorts runs by them, so they are no
metrics, and MLflow's tables stay small.
"""

import json
from collections.abc import Iterable, Mapping

HISTOGRAMS = "histograms.json"


def collect(epochs: Iterable[Mapping]) -> str:
    """The histograms in a run's records of epochs as JSON: layer -> {epochs, bounds, counts}; "" if there are none."""
    layers: dict[str, dict[str, list]] = {}
    for record in epochs:
        for layer, (bound, *counts) in record.get("histograms", {}).items():
            found = layers.setdefault(layer, {"epochs": [], "bounds": [], "counts": []})
            found["epochs"].append(record["epoch"])
            found["bounds"].append(bound)
            found["counts"].append(counts)
    return json.dumps(layers, separators=(",", ":")) if layers else ""
