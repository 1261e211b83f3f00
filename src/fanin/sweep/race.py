"""Racing: which variants deserve another replicate. Pure functions of the values seen so far.

The race runs in rounds. In round n every variant still in has replicates 0..n-1; the one with the best mean
leads, and each other one is compared with it on the differences d_r = leader_r - variant_r (better minus
worse, so that d > 0 is bad), paired by replicate because both saw the same split, batch order and dropout
masks. A variant is dropped when the lower end of the one-sided t interval of its mean difference lies above
0:

    mean(d) - t(1 - a; n-1) * sd(d) / sqrt(n) > 0        with  a = (1 - confidence) / (looks * (variants -
    1)).

Why this a. The test is repeated in each of looks = max_replicates - min_replicates + 1 rounds, against a
leader that was picked because its mean is high. Dropping a variant that is as good as every other means that
some rival, in some round, beat it in a test whose null hypothesis is true; there are variants - 1 rivals and
`looks` rounds, so by the union bound this happens with probability at most 1 - confidence, whoever happens to
lead. That is a promise about each variant (the truly best one in particular), not about the number of wrong
drops among many equal ones. It is conservative: the tests are positively correlated.

Caveats. The t interval assumes roughly normal differences; with few replicates of a bounded metric it is an
approximation. Accuracies of few images are coarse, and a handful of equal differences would look like
certainty: `resolution` (1 / number of images) adds the rounding variance resolution^2 / 6, and without it
differences without any spread decide nothing. A variant that survives is not shown to equal the best, it is
just not shown to be worse. Means of the survivors are optimistic (the winner's curse): test on replicates the
race has not seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, variance

from fanin.errors import require
from fanin.ranges import is_whole

Values = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Verdict:
    """What to do with a variant. `action`: drop; continue (give it replicates until it has `needed`); done
    (it needs no more: it reached the maximum, or nobody is left to tell it from). `against` is the leader it
    was last compared with, over `replicates` pairs, `difference` by how much it was worse on average, and
    `low` the lower end of that difference's interval; None before the first comparison, and for the leader
    itself."""

    action: str
    needed: int
    replicates: int = 0
    against: str | None = None
    difference: float | None = None
    low: float | None = None

    @property
    def reason(self) -> str:
        """One line for the log and for MLflow."""
        if self.difference is None or self.low is None:
            return f"{self.action} after {self.replicates} replicates"
        worse = f"worse than {self.against} by {self.difference:.4g} (at least {self.low:.4g})"
        return f"{self.action} after {self.replicates} replicates: {worse}"


def decide(
    values: Values,
    *,
    direction: str,
    confidence: float = 0.95,
    min_replicates: int = 3,
    max_replicates: int,
    resolution: float = 0.0,
) -> dict[str, Verdict]:
    """A verdict for each variant of `values` (variant -> replicate -> value; all variants of the study, also
    those dropped long ago and those without a value yet).

    Replays the race from its first round, so the answer depends on the values only: not on the order in which
    they came, nor on how many workers computed them. Values beyond the round that the slowest variant has
    reached wait their turn. A variant with a value that is not finite never leads, and is dropped when its
    turn comes if the leader's are finite.
    """
    check(confidence=confidence, min_replicates=min_replicates, max_replicates=max_replicates)
    assert direction in ("maximize", "minimize"), direction
    costs = {name: _prefix(seen, sign=1.0 if direction == "minimize" else -1.0) for name, seen in values.items()}
    looks = max_replicates - min_replicates + 1
    alpha = (1.0 - confidence) / (looks * max(1, len(values) - 1))
    verdicts = {name: Verdict("continue", min_replicates) for name in values}
    alive = list(values)
    for n in range(min_replicates, max_replicates + 1):
        if any(len(costs[name]) < n for name in alive):
            return verdicts | {name: _wait(verdicts[name], n) for name in alive}
        leader = min(alive, key=lambda name: (_mean(costs[name][:n]), name))
        for name in alive:
            verdicts[name] = _compare(costs[name][:n], costs[leader][:n], leader, alpha=alpha, resolution=resolution)
        verdicts[leader] = Verdict("continue", n, n)
        alive = [name for name in alive if verdicts[name].action != "drop"]
        if len(alive) == 1:
            break
    return verdicts | {name: _done(verdicts[name]) for name in alive}


def check(*, confidence: float, min_replicates: int, max_replicates: int) -> None:
    """Refuse (ConfigError) settings under which no race can be run."""
    fits = type(confidence) is float and 0.5 <= confidence < 1
    require(fits, "study.racing.confidence", "must be a number from 0.5 to below 1", confidence)
    rule = "must be a whole number >= 2, for a paired interval"
    require(is_whole(min_replicates, least=2), "study.racing.min_replicates", rule, min_replicates)
    rule = f"must be at least min_replicates ({min_replicates})"
    require(max_replicates >= min_replicates, "study.racing.max_replicates", rule, max_replicates)


def _prefix(seen: Mapping[int, float], *, sign: float) -> list[float]:
    """The values of replicates 0, 1, ... as far as there is no gap, turned so that less is better."""
    costs: list[float] = []
    while len(costs) in seen:
        value = sign * seen[len(costs)]
        costs.append(value if math.isfinite(value) else math.inf)
    return costs


def _mean(costs: list[float]) -> float:
    return fmean(costs) if math.inf not in costs else math.inf


def _compare(own: list[float], best: list[float], leader: str, *, alpha: float, resolution: float) -> Verdict:
    n = len(own)
    if math.inf in own or math.inf in best:
        action = "drop" if math.inf not in best else "continue"
        return Verdict(action, n, n, leader, math.inf, math.inf if action == "drop" else None)
    differences = [mine - leaders for mine, leaders in zip(own, best, strict=True)]
    difference, spread = fmean(differences), variance(differences) + resolution**2 / 6
    low = difference - _quantile(alpha, n - 1) * math.sqrt(spread / n) if spread > 0 else -math.inf
    return Verdict("drop" if low > 0 else "continue", n, n, leader, difference, low)


@lru_cache
def _quantile(alpha: float, freedom: int) -> float:
    """The upper `alpha` quantile of Student's t."""
    from scipy.special import stdtrit  # slow to import, and most sweeps are no race

    return float(stdtrit(freedom, 1.0 - alpha))


def _wait(verdict: Verdict, needed: int) -> Verdict:
    seen = (verdict.replicates, verdict.against, verdict.difference, verdict.low)
    return Verdict("continue", needed, *seen)


def _done(verdict: Verdict) -> Verdict:
    seen = (verdict.replicates, verdict.against, verdict.difference, verdict.low)
    return Verdict("done", verdict.replicates, *seen)
