"""A sweep's answer: the leaderboard with its intervals, as text for the terminal and as Markdown for MLflow."""

from dataclasses import dataclass
from typing import Any

from fanin.sweep.schedule import Tally
from fanin.sweep.study import Study


@dataclass(frozen=True)
class Answer:
    text: str
    markdown: str


def summarise(study: Study, plan: Any, tally: Tally) -> Answer:
    text = "\n".join(f"{k} {v.metrics.get(study.objective.metric)}" for k, v in plan.results.items())
    return Answer(text, text)
