"""A sweep's answer: the leaderboard with its intervals, as text for the terminal and as Markdown for MLflow.

Made from the spools, so that it is there even when the tracking store is down.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from fanin.leaderboard import leaderboard, render, render_markdown
from fanin.sweep.folder import Outcome
from fanin.sweep.plan import Planned
from fanin.sweep.schedule import Tally
from fanin.sweep.study import Study
from fanin.sweep.trial import Trial


@dataclass(frozen=True)
class Answer:
    text: str
    markdown: str


def summarise(study: Study, planned: Iterable[Planned], tally: Tally, *, front: Sequence[Trial] = ()) -> Answer:
    """The question, the leaderboard, the Pareto front of a search with several objectives, and how the sweep ended."""
    table = frame(planned, study)
    head = f"{study.name}: {study.question}" if study.question else study.name
    tail = _ending(tally)
    if table.empty:
        return Answer(f"\n{head}\n\nNo run has ended yet.\n{tail}", f"## {head}\n\nNo run has ended yet.\n\n{tail}")
    board = leaderboard(
        table,
        metric=study.objective.metric,
        direction=study.objective.direction,
        by=[column for column in table.columns if column in study.swept],
        classes=study.classes or 2,
    )
    text = f"\n{head}\n\n{render(board)}\n"
    markdown = f"## {head}\n\n{render_markdown(board)}\n"
    if front:
        text += "\n" + "\n".join(_front_lines(front, study)) + "\n"
        markdown += "\n```\n" + "\n".join(_front_lines(front, study)) + "\n```\n"
    return Answer(f"{text}{tail}", f"{markdown}\n{tail}")


def frame(planned: Iterable[Planned], study: Study) -> pandas.DataFrame:
    """One row per run that has ended: the swept keys, status, reason, diverged, seconds, and the objectives."""
    rows = [_row(one.shown, one.result, study) | {"variant": one.variant} for one in planned]
    return pandas.DataFrame(rows)


def _row(shown: Mapping[str, Any], result: Outcome, study: Study) -> dict[str, Any]:
    values = {key: str(value) if isinstance(value, list) else value for key, value in shown.items()}
    metrics = {o.metric: result.metrics.get(o.metric, float("nan")) for o in study.objectives}
    return {
        **values,
        "status": result.status,
        "reason": result.reason,
        "diverged": bool(result.metrics.get("diverged")),
        "seconds": result.seconds,
        **metrics,
    }


def _front_lines(front: Sequence[Trial], study: Study) -> list[str]:
    names = [objective.metric for objective in study.objectives]
    lines = [f"Pareto front ({', '.join(f'{o.metric}: {o.direction}' for o in study.objectives)})"]
    for trial in sorted(front, key=lambda t: t.scores or ()):
        scores = "  ".join(f"{n} {s:.4g}" for n, s in zip(names, trial.scores or (), strict=True))
        lines.append(f"  {scores}   " + " ".join(f"{k}={v}" for k, v in trial.values.items()))
    return lines


def _ending(tally: Tally) -> str:
    counts = {
        "finished": tally.finished,
        "diverged": tally.diverged,
        "pruned": tally.pruned,
        "failed": tally.failed,
    }
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing was left to do"
    ended = "" if tally.ended == "done" else f" ({tally.ended})"
    return f"This session: {said}{ended}."
