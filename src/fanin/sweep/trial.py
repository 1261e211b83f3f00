"""A trial of a search, as the rest of the program sees it, and which trials are best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trial:
    """One variant of a search. `values` maps override keys to texts; `state` is running, complete, pruned or
    failed; `scores` are the objectives once told, `reports` the intermediate values by step."""

    number: int
    values: dict[str, str]
    state: str = "running"
    scores: tuple[float, ...] | None = None
    reports: dict[int, float] = field(default_factory=dict)

    def costs(self, directions: Sequence[str]) -> tuple[float, ...]:
        """The scores turned so that less is better."""
        assert self.scores is not None
        pairs = zip(self.scores, directions, strict=True)
        return tuple(score if direction == "minimize" else -score for score, direction in pairs)


def pareto_front(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """The complete trials with finite scores that no other one dominates: is at least as good in every
    objective and better in one. Ordered by number; with one objective, the best trial and its equals."""
    scored = [t for t in trials if t.state == "complete" and all(map(math.isfinite, t.scores or ()))]
    costs = [trial.costs(directions) for trial in scored]
    return [t for t, cost in zip(scored, costs, strict=True) if not any(_dominates(c, cost) for c in set(costs))]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
