"""A sweep's answer: the leaderboard with its intervals, the verdict, the best point and which factor
matters, as text for the terminal and as Markdown for MLflow.

Made from the spools, so that it is there even when the tracking store is down.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from fanin import noise
from fanin.criteria import words
from fanin.criteria.judge import Verdict, overall
from fanin.leaderboard import lead, leaderboard, render, render_markdown
from fanin.sweep import diagnoses, factors
from fanin.sweep.folder import Outcome
from fanin.sweep.grammar import text_of
from fanin.sweep.plan import Planned, value_of
from fanin.sweep.schedule import INTERRUPTED, Tally
from fanin.sweep.search import Search
from fanin.sweep.study import Study, Variant
from fanin.sweep.verdicts import judge


@dataclass(frozen=True)
class Scored:
    """A variant and its value for each objective, the mean over replicates."""

    variant: Variant
    scores: tuple[float, ...]

    @property
    def overrides(self) -> str:
        """As they are typed on the command line, to every digit."""
        return " ".join(f"{key}={text}" for key, text in self.variant.values.items())


@dataclass(frozen=True)
class Answer:
    """`best` has the best point; with several objectives, the Pareto front."""

    text: str
    markdown: str
    tags: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""  # on the study's criteria
    best: tuple[Scored, ...] = ()


def summarise(
    study: Study,
    planned: Iterable[Planned],
    tally: Tally,
    *,
    search: Search | None = None,
    verdicts: Sequence[Verdict] = (),
) -> Answer:
    """The question, the leaderboard, the verdict, the best, what matters, the verdicts on the criteria, and how
    the sweep ended. `search`: that of an adaptive study."""
    planned = list(planned)
    table = frame(planned, study)
    head = f"{study.name}: {study.question}" if study.question else study.name
    tail = _ending(tally)
    if table.empty:
        nothing = "No run has ended yet."
        return Answer(f"\n{head}\n\n{nothing}\n{tail}", f"## {head}\n\n{nothing}\n\n{tail}")
    metric, direction, classes = study.objective.metric, study.objective.direction, study.classes or 2
    table, by = noise.pooled(table, study.swept)
    board = leaderboard(table, metric=metric, direction=direction, by=by, classes=classes)
    board.attrs["replicable"] = study.own  # a foreign program takes no seed from us
    best = _front(study, search) if search and len(study.objectives) > 1 else _best(study, planned)
    how: Mapping[str, Any] = {"metric": metric, "direction": direction, "classes": classes}
    found = factors.weigh(table, by=study.swept if by else by, search=search, **how)
    scatter = factors.scatter(table, by=by, **how)
    parts = [(render(board), "\n\n".join(filter(None, [lead(board), render_markdown(board)])))]
    decided = judge(table, swept=study.swept, racing=study.race, **how) if len(study.objectives) == 1 else None
    if decided:
        parts.append(decided)
    if wrong := diagnoses.tell(table, by=by):
        parts.append(wrong)
    if shown := _shown(study, best):
        parts.append((shown, f"```\n{shown}\n```"))
    if found:
        parts.append((factors.render(found), factors.render_markdown(found)))
    if scatter:
        parts.append((noise.render(scatter), noise.render_markdown(scatter)))
    tags = {"fanin.verdict": overall(verdicts)} if verdicts else {}
    verdict = words.render(verdicts) if verdicts else ""
    if verdicts:
        parts.append((verdict, words.render_markdown(verdicts)))
    text, markdown = ("\n\n".join(pieces) for pieces in zip(*parts, strict=True))
    return Answer(f"\n{head}\n\n{text}\n\n{tail}", f"## {head}\n\n{markdown}\n\n{tail}", tags, verdict, best)


def frame(planned: Iterable[Planned], study: Study) -> pandas.DataFrame:
    """One row per run that has ended: variant and replicate, the swept keys, status, reason, diverged,
    seconds, and the objectives."""
    return pandas.DataFrame([_row(one, one.result, study) for one in planned])


def _row(one: Planned, result: Outcome, study: Study) -> dict[str, Any]:
    shown = one.variant.shown
    values = {key: text_of(value) if isinstance(value, Mapping) else value for key, value in shown.items()}
    values = {key: str(value) if isinstance(value, list) else value for key, value in values.items()}
    metrics = {o.metric: result.metrics.get(o.metric, math.nan) for o in study.objectives}
    return {
        "variant": one.variant.key,
        "replicate": one.replicate,
        **values,
        "status": result.status,
        "reason": result.reason,
        "diagnosis": result.diagnosis,
        "diverged": bool(result.metrics.get("diverged")),
        "seconds": result.seconds,
        **metrics,
    }


def _best(study: Study, planned: Sequence[Planned]) -> tuple[Scored, ...]:
    """The variant with the best mean over its finished runs, the first of equals; none before one has."""
    values: dict[str, list[float]] = {}
    for one in planned:
        if one.result.status == "FINISHED":
            value = value_of(one.result, study.objective, classes=study.classes)
            values.setdefault(one.variant.key, []).append(value)
    means = {key: sum(v) / len(v) for key, v in values.items()}
    finite = {key: mean for key, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return ()
    best = max(finite, key=lambda key: study.objective.sign * finite[key])
    variant = next(one.variant for one in planned if one.variant.key == best)
    return (Scored(variant, (finite[best],)),)


def _front(study: Study, search: Search) -> tuple[Scored, ...]:
    points = [Scored(study.variant(trial.values), trial.scores or ()) for trial in search.front]
    return tuple(sorted(points, key=lambda point: point.scores))


def _shown(study: Study, best: Sequence[Scored]) -> str:
    """The best as overrides: the leaderboard shortens them. A grid's are the very values it was given."""
    if len(study.objectives) > 1:
        return "\n".join(_front_lines(study, best)) if best else ""
    if not best or (study.own and study.sampler["name"] == "grid"):
        return ""
    return f"best: {best[0].overrides}"


def _front_lines(study: Study, front: Sequence[Scored]) -> list[str]:
    names = [objective.metric for objective in study.objectives]
    cells = [[*(f"{score:.4g}" for score in point.scores), point.overrides] for point in front]
    widths = [max(len(row[i]) for row in [names, *cells]) for i in range(len(names))]
    count = "1 point" if len(front) == 1 else f"{len(front)} points"
    directions = ", ".join(f"{o.metric}: {o.direction}" for o in study.objectives)
    lines = [f"Pareto front ({directions}): {count} that no other one beats in everything", ""]
    for row in [[*names, ""], *cells]:
        numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join(["", *numbers, row[-1]]).rstrip())
    return lines


def as_data(study: Study, best: Sequence[Scored]) -> Mapping[str, Any]:
    """The best as plain data, in the shape that Hydra's other sweepers write to optimization_results.yaml."""
    found = [(dict(point.variant.shown), list(point.scores)) for point in best]
    if len(study.objectives) > 1:
        return {"name": "fanin", "solutions": [{"params": p, "values": v} for p, v in found]}
    if not found:
        return {"name": "fanin", "best_params": None, "best_value": None}
    params, values = found[0]
    return {"name": "fanin", "best_params": params, "best_value": values[0]}


def _ending(tally: Tally) -> str:
    counts = {
        "finished": tally.finished,
        "diverged": tally.diverged,
        "pruned": tally.pruned,
        "failed": tally.failed,
    }
    none = "no run ended" if tally.ended == INTERRUPTED else "nothing was left to do"
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or none
    ended = "" if tally.ended == "done" else f" ({tally.ended})"
    return f"This session: {said}{ended}."
