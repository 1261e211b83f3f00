"""What a report reads of single runs' files: the histograms of their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas

from fanin.histograms import HISTOGRAMS
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

MOST_VARIANTS = 9  # of whose runs a file is read


def histograms(runs: pandas.DataFrame, *, project: Path) -> dict[int, Mapping[str, Any]]:
    """place -> the histograms of the variant's first complete run, as fanin.histograms.collect wrote them."""
    tracker = Tracker(project=project)
    found: dict[int, Mapping[str, Any]] = {}
    whole = runs[runs["complete"] & (runs["place"] < MOST_VARIANTS)].sort_values(["place", "replicate"])
    first = whole.drop_duplicates("place")
    for place, run in zip(first["place"], first["run_id"], strict=True):
        try:
            text = tracker.read(run, HISTOGRAMS)
        except (TrackingDown, TrackingRefused):  # the rest of the page does without
            return found
        if text:
            found[int(place)] = json.loads(text)
    return found
