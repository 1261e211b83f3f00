"""Each level against another one: the difference, how sure it is, and a verdict."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from fanin.comparison import evidence
from fanin.comparison.aggregates import improvement
from fanin.comparison.intervals import mean_intervals
from fanin.comparison.pairing import Pairs, Scores, pair

COLUMNS = [
    *("level", "reference", "n", "missing", "difference", "low", "high", "interval"),
    *("p", "holm", "equivalence", "improvement", "rho", "verdict", "why"),
]
VERDICTS = ("better", "worse", "equivalent", "undecided")


@dataclass(frozen=True)
class Rules:
    """What counts as evidence. sign: 1 if more is better, -1 if less is; test: permutation, wilcoxon or t;
    margin: the difference that nobody would act on, None for no claims of equivalence."""

    sign: int
    test: str
    confidence: float
    margin: float | None

    @property
    def alpha(self) -> float:
        """The share of families in which a true null hypothesis may be rejected."""
        return 1 - self.confidence

    def fewest(self, comparisons: int) -> int:
        """Replicates from which a difference can be found at all."""
        return 2 if self.test == "t" else evidence.fewest(comparisons, alpha=self.alpha)


def contrasts(scores: Scores, wanted: Sequence[tuple[int, int]], rules: Rules) -> pandas.DataFrame:
    """A row for each pair (level, reference) in `wanted`, which is the family of Holm's correction.

    difference = level - reference in units of the metric, its interval from low to high (for this pair
    alone); n: pairs; missing: replicates one side lacks; p and holm: of no difference; equivalence: of a
    difference beyond the margin (Holm, too); improvement: the probability that a run of level is the better
    one; rho: see Pairs.correlation; verdict: is the level better, worse, equivalent, or is that undecided,
    and why.
    """
    found = [pair(scores, level, reference) for level, reference in wanted]
    rows = [
        {
            "level": scores.levels[level],
            "reference": scores.levels[reference],
            "n": pairs.differences.size,
            "missing": pairs.missing,
            "difference": pairs.differences.mean() if pairs.differences.size else math.nan,
            "p": _p(pairs, rules, scores.resolution),
            "equivalence": _equivalence(pairs, rules, scores.resolution),
            "improvement": _improvement(pairs, rules),
            "rho": pairs.correlation,
        }
        for (level, reference), pairs in zip(wanted, found, strict=True)
    ]
    table = pandas.DataFrame(rows, columns=COLUMNS)
    table["holm"] = evidence.holm(table["p"].to_numpy())
    table["equivalence"] = evidence.holm(table["equivalence"].to_numpy())
    _add_intervals(table, found, rules)
    judged: list[Any] = [*table.itertuples()]
    verdicts = [_verdict(row, rules) for row in judged]
    whys = [_why(*both, rules, comparisons=len(table)) for both in zip(judged, verdicts, strict=True)]
    return table.assign(verdict=pandas.Categorical(verdicts, VERDICTS), why=whys)


def ranked_pairs(scores: Scores, rules: Rules) -> list[tuple[int, int]]:
    """(worse, better) by their means, for all pairs; those with the best level first."""
    ranks = _ranks(scores, rules)
    return [(ranks[j], ranks[i]) for i in range(len(ranks)) for j in range(i + 1, len(ranks))]


def against(scores: Scores, reference: Hashable, rules: Rules) -> list[tuple[int, int]]:
    """(level, reference) for all other levels, the best first."""
    fixed = scores.levels.index(reference)
    return [(level, fixed) for level in _ranks(scores, rules) if level != fixed]


def _ranks(scores: Scores, rules: Rules) -> list[int]:
    return [int(level) for level in numpy.argsort(-rules.sign * scores.means, kind="stable")]


def _p(pairs: Pairs, rules: Rules, resolution: float) -> float:
    if not pairs.differences.size:
        return 1.0
    if rules.test == "t":
        return evidence.paired_t(pairs.differences, resolution=resolution)
    return evidence.EXACT[rules.test](pairs.differences)


def _equivalence(pairs: Pairs, rules: Rules, resolution: float) -> float:
    if rules.margin is None:
        return 1.0
    return evidence.equivalence(pairs.differences, margin=rules.margin, resolution=resolution)


def _improvement(pairs: Pairs, rules: Rules) -> float:
    if not pairs.differences.size:
        return math.nan
    return improvement(rules.sign * pairs.first, rules.sign * pairs.second)


def _add_intervals(table: pandas.DataFrame, found: Sequence[Pairs], rules: Rules) -> None:
    """All pairs of the same size at once, which is much faster."""
    low, high = numpy.full(len(table), math.nan), numpy.full(len(table), math.nan)
    method = numpy.full(len(table), "", dtype=object)
    for n in set(table["n"]) - {0}:
        chosen = numpy.flatnonzero(table["n"] == n)
        rows = numpy.stack([found[int(i)].differences for i in chosen])
        intervals = mean_intervals(rows, confidence=rules.confidence)
        low[chosen], high[chosen], method[chosen] = intervals.low, intervals.high, intervals.method
    table["low"], table["high"], table["interval"] = low, high, method


def _verdict(row: Any, rules: Rules) -> str:
    if row.holm <= rules.alpha:
        return "better" if rules.sign * row.difference > 0 else "worse"
    return "equivalent" if row.equivalence <= rules.alpha else "undecided"


def _why(row: Any, verdict: str, rules: Rules, *, comparisons: int) -> str:
    """What to know about the verdict."""
    if verdict in ("better", "worse"):
        return f"but by less than {rules.margin:g}" if row.equivalence <= rules.alpha else ""
    needed = rules.fewest(comparisons)
    if verdict == "equivalent" or row.n >= needed:
        return ""
    if row.n == 0:
        return "no pairs"
    family = f" over {comparisons} comparisons" if comparisons > 1 else ""
    level = f"{rules.alpha:.3g}".removeprefix("0")
    return f"{row.n} replicate{'s' * (row.n > 1)} can never reach p < {level}{family}; {needed} could"
