"""What a sweep of one key has decided, for its summary: the comparison's answer, or how the race went."""

import math
from collections.abc import Iterator

import pandas

from fanin.comparison.core import compare_runs
from fanin.comparison.words import name, percent, wrap
from fanin.errors import ConfigError
from fanin.leaderboard import counted
from fanin.sweep import race
from fanin.sweep.study import Study


def judge(study: Study, runs: pandas.DataFrame) -> tuple[str, str] | None:
    """The answer as text and as Markdown; None where not one key was swept with several replicates, or too
    little has finished. `runs`: see summary.frame."""
    if len(study.swept) != 1 or study.replicates < 2 or len(study.objectives) > 1:
        return None
    if study.racing:
        head, *lines = _raced(study, runs)
        return "\n".join([head, *(wrap(line, "  ") for line in lines)]), "\n".join([head, "", *_items(lines)])
    try:
        found = compare_runs(
            runs,
            by=study.swept[0],
            metric=study.objective.metric,
            direction=study.objective.direction,
            classes=study.classes or 2,
        )
    except ConfigError:  # one value only has finished runs
        return None
    return found.verdict, found.markdown


def _raced(study: Study, runs: pandas.DataFrame) -> Iterator[str]:
    """A race stops adding replicates on what it sees, so that only its own tests hold afterwards."""
    assert study.racing
    key, objective = study.swept[0], study.objective
    runs = counted(runs, metric=objective.metric, direction=objective.direction, classes=study.classes or 2)
    runs[objective.metric] = runs[objective.metric].where(runs["complete"], math.nan)
    values = {
        name(level): dict(zip(own["replicate"], own[objective.metric], strict=True))
        for level, own in runs.groupby(key, sort=False, observed=True)
    }
    settings = {"direction": objective.direction, "max_replicates": study.replicates, **study.racing}
    verdicts = race.decide(values, **settings)
    risk = 1 - settings.get("confidence", 0.95)
    yield f"The race for {objective.metric} (risk of dropping a best one: {percent(risk)}):"
    yield from (f"{level}: {one.reason}" for level, one in verdicts.items() if one.action == "drop")
    left = [level for level, one in verdicts.items() if one.action != "drop"]
    yield f"not told apart: {', '.join(left)}" if len(left) > 1 else f"left: {left[0]}"


def _items(lines: list[str]) -> Iterator[str]:
    return (f"- {line}" for line in lines)
