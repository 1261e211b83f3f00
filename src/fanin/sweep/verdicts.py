"""What a study has decided, for its summary: the comparison of each key, or how the race went."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas

from fanin.comparison.every import compare_every
from fanin.comparison.words import name, percent, wrap
from fanin.leaderboard import counted
from fanin.sweep import race


def judge(
    runs: pandas.DataFrame,
    *,
    swept: Sequence[str],
    metric: str,
    direction: str,
    classes: int,
    racing: Mapping[str, Any] | None = None,
) -> tuple[str, str] | None:
    """The answer as text and as Markdown; None of a search, without replicates, or where too little has finished.

    `runs`: see summary.frame; `racing`: the settings of a race, with its max_replicates.
    """
    how: Mapping[str, Any] = {"metric": metric, "direction": direction, "classes": classes}
    if racing:
        if len(swept) != 1:
            return None
        head, *lines = _raced(runs, swept[0], racing, **how)
        items = [f"- {line}" for line in lines]
        return "\n".join([head, *(wrap(line, "  ") for line in lines)]), "\n".join([head, "", *items])
    found = compare_every(runs, swept=swept, **how)
    if not found:
        return None
    return "\n\n".join(one.verdict for one in found), "\n\n".join(one.markdown for one in found)


def _raced(
    runs: pandas.DataFrame, key: str, settings: Mapping[str, Any], *, metric: str, direction: str, classes: int
) -> Iterator[str]:
    """A race stops adding replicates on what it sees, so that only its own tests hold afterwards."""
    runs = counted(runs, metric=metric, direction=direction, classes=classes)
    runs[metric] = runs[metric].where(runs["complete"], math.nan)
    values = {
        name(level): dict(zip(own["replicate"], own[metric], strict=True))
        for level, own in runs.groupby(key, sort=False, observed=True)
    }
    verdicts = race.decide(values, direction=direction, **settings)
    risk = 1 - settings.get("confidence", 0.95)
    yield f"The race for {metric} (risk of dropping a best one: {percent(risk)}):"
    yield from (f"{level}: {one.reason}" for level, one in verdicts.items() if one.action == "drop")
    left = [level for level, one in verdicts.items() if one.action != "drop"]
    yield f"not told apart: {', '.join(left)}" if len(left) > 1 else f"left: {left[0]}"
