"""Searches without training, over spaces of every kind of axis."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fanin.sweep.grammar import parse
from fanin.sweep.search import Search
from fanin.sweep.space import Space

NUMBERS = {"x": "interval(0,1)", "n": "int(interval(1,8))", "lr": "tag(log,interval(1e-4,1))"}
MIXED = {**NUMBERS, "r": "range(0,0.5,0.1)", "c": "a,[b,c],d"}


def open_search(tmp_path: Path, space: Space | dict[str, Any], **settings: Any) -> Search:
    space = parse(space) if isinstance(space, dict) else space
    settings = {
        "sampler": {"name": "random"},
        "directions": ["minimize"],
        "name": "study",
        "seed": 0,
    } | settings
    settings["storage"] = settings.get("storage", tmp_path / "journal.log")
    return Search(space, **settings)


def bowl(values: dict[str, str]) -> float:
    return (
        (float(values["x"]) - 0.3) ** 2
        + (float(values["n"]) - 3) ** 2 / 64
        + (math.log10(float(values["lr"])) + 2) ** 2
    )


def run(search: Search, trials: int, objective: Callable[[dict[str, str]], float] = bowl) -> list[dict[str, str]]:
    """Complete trials, one after the other, until `trials` were handed out in all or none is left."""
    for trial in search.reap():
        search.tell(trial.number, objective(trial.values))
    while search.asked < trials:
        trial = search.ask()
        if trial is None:
            break
        search.tell(trial.number, objective(trial.values))
    return [trial.values for trial in search.trials]
