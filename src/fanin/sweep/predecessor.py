"""The study that a search starts from (`study.warm_start`): its best points are tried first.

The points are run again rather than their values believed: the other study may have had other data or other
epochs, and every number of a study should be its own.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin.errors import require, unknown
from fanin.folders import MEMORY
from fanin.sweep.folder import outcome
from fanin.sweep.grammar import text_of
from fanin.sweep.study import Study

if TYPE_CHECKING:
    from fanin.sweep.search import Search

COUNT = 10  # points
KEY = "study.warm_start"


def find_predecessor(study: Study, *, project: Path) -> Path | None:
    """The folder of the study to start from, or None. Raises ConfigError when it is not there."""
    name = study.warm_start
    if name is None:
        return None
    grid = study.sampler["name"] == "grid"
    require(not grid, KEY, "a grid tries all its points anyway; search them: hydra/sweeper=tpe", name)
    known = {path.parent.name: path.parent for path in sorted((project / MEMORY).glob("*/study.json"))}
    known.pop(study.name, None)
    if name not in known:
        raise unknown(KEY, name, known)
    return known[name]


def queue_best(search: "Search", source: Path) -> int:
    """Queue the best points of the study in the folder `source`, once; returns how many were queued."""
    journal = source / "journal.log"
    if journal.exists() and _identity(source)["sampler"]["name"] != "grid":
        return search.warm_start(journal, name=source.name, count=COUNT)
    return search.start_from(best_points(source)[:COUNT], name=source.name)


def best_points(source: Path) -> list[dict[str, str]]:
    """The points of a grid, the best first, by their mean over the replicates that did not diverge."""
    identity = _identity(source)
    metric, sign = identity["metric"][0], 1 if identity["direction"][0] == "minimize" else -1
    values: dict[str, list[float]] = {}
    points: dict[str, dict[str, str]] = {}
    for path in sorted(source.glob("runs/*/run.json")):
        spec, result = json.loads(path.read_text()), outcome(path.parent)
        if result is None or result.status != "FINISHED" or result.metrics.get("diverged"):
            continue
        value = result.metrics.get(metric, math.nan)
        if math.isfinite(value):
            values.setdefault(spec["variant"], []).append(value)
            points[spec["variant"]] = {key: text_of(shown) for key, shown in spec["overrides"].items()}
    return [points[key] for key in sorted(values, key=lambda key: sign * sum(values[key]) / len(values[key]))]


def _identity(source: Path) -> Mapping[str, Any]:
    return dict(json.loads((source / "study.json").read_text())["identity"])
