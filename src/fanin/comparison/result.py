"""What `fanin.compare` returns, and how it is said: in a terminal of 100 columns, as Markdown, as HTML."""

import html
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas

from fanin.comparison.contrasts import Rules
from fanin.comparison.words import name, number, percent, plain, probability, with_half, wrap
from fanin.noise import is_seed

SHOWN = 12  # sentences; the tables have all
PLACES = 3  # of each level, that are named; of more, how many
TESTS = {
    "permutation": "exact sign-flip test",
    "wilcoxon": "exact Wilcoxon test",
    "t": "paired t test, which takes differences for normal",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a study says about the levels of one key, and how sure that is.

    levels: a row per level (see levels.describe); differences: each level against the `reference` (see
    contrasts.contrasts); pairs: every two levels; blocks: the mean of each level in each combination of the
    keys `within`; shares: exact shares of variance (see fanin.variance.anova), None unless the grid is
    complete; best_of: what n tries are expected to give (see levels.best_of); notes: what to know of the
    data.

    The reference is the `baseline` that was asked for or else the best level. That one is known only after
    the fact, so that every two levels count as compared with each other: Holm's correction is over all
    pairs.
    """

    title: str
    by: str
    metric: str
    direction: str
    within: tuple[str, ...]
    reference: Hashable
    baseline: bool
    rules: Rules
    levels: pandas.DataFrame
    differences: pandas.DataFrame
    pairs: pandas.DataFrame
    blocks: pandas.DataFrame
    shares: pandas.DataFrame | None
    best_of: pandas.DataFrame
    notes: tuple[str, ...]

    @property
    def comparisons(self) -> int:
        """The size of the family Holm's correction is over."""
        return len(self.differences) if self.baseline else len(self.pairs)

    @property
    def rho(self) -> float:
        """The correlation that pairing achieved: a difference varies by 1 - rho of what it would unpaired."""
        return float(self.pairs["rho"].mean())

    @property
    def sentences(self) -> list[str]:
        """What was compared and how; then which may be the best, what is decided one by one, what is not; and
        where another is the best."""
        decided = self.differences[self.differences["verdict"] != "undecided"]
        said = [_sentence(row, self) for row in _rows(decided)]
        if len(said) > SHOWN:
            said[SHOWN:] = [f"and {len(said) - SHOWN} more"]
        return [_head(self), *_best_set(self), *said, *_undecided(self), *_changes_of_the_best(self)]

    @property
    def verdict(self) -> str:
        """The sentences for a terminal."""
        head, *lines = self.sentences
        return "\n".join([wrap(f"{self._key}{head}"), *(wrap(line, "  ") for line in lines)])

    @property
    def markdown(self) -> str:
        """The sentences as a list."""
        head, *lines = (line.replace("|", "\\|").replace("<", "&lt;") for line in self.sentences)
        return "\n".join([f"{self._key}{head}", "", *(f"- {line}" for line in lines)])

    @property
    def _key(self) -> str:
        """Which key this is about, where there are others."""
        return f"{self.by}: " if self.within else ""

    def __str__(self) -> str:
        """All of it: the levels, the sentences, what matters, the notes."""
        parts = [self.title, plain(_table(self)), self.verdict]
        if self.within and self.shares is not None:
            parts.append(f"Shares of the variance of {self.metric}\n\n{plain(_shares(self.shares))}")
        parts.append("\n".join(wrap(note) for note in self.notes))
        return "\n\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        """The sentences and the tables, for notebooks."""
        head, *lines = map(html.escape, self.sentences)
        items = "".join(f"<li>{line}</li>" for line in lines)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        tables = self.levels.to_html(border=0) + self.differences.to_html(border=0)
        return f"<h4>{html.escape(self.title)}</h4><p>{head}</p><ul>{items}</ul>{tables}{notes}"


def _head(comparison: Comparison) -> str:
    rules, count = comparison.rules, comparison.comparisons
    family = f", Holm over {count} comparisons" if count > 1 else ""
    rho = "" if math.isnan(comparison.rho) else f" with rho {comparison.rho:.2f}"
    way = f"paired by replicate{rho}, {percent(rules.confidence)} intervals, {TESTS[rules.test]}{family}"
    return f"{comparison.metric} against {name(comparison.reference)} ({way}):"


def _best_set(comparison: Comparison) -> list[str]:
    """What the model confidence set leaves out; nothing if it has all levels."""
    levels = comparison.levels
    inside, outside = (_names(levels.loc[levels["best"] == best, "level"]) for best in (True, False))
    if not outside:
        return []
    best = f"the best is {inside}" if levels["best"].sum() == 1 else f"the best is among {inside}"
    together = " (one test of all levels together)" if len(levels) > 2 else ""
    return [f"{percent(comparison.rules.confidence)} sure: {best}; it is not {outside}{together}"]


def _sentence(row: Any, comparison: Comparison) -> str:
    """he_normal beats normal_002 by 0.0132 [0.0080, 0.0180], p .03, n=10"""
    level, reference, rules = name(row.level), name(row.reference), comparison.rules
    if row.verdict == "equivalent":
        interval = f"[{number(row.low)}, {number(row.high)}]"
        found = f"{level} equals {reference} within {rules.margin:g}: {number(row.difference)} {interval}"
        return f"{found}, p {probability(row.equivalence)}, n={row.n}"
    winner, loser = (level, reference) if row.verdict == "better" else (reference, level)
    size, *ends = (math.copysign(1, row.difference) * value for value in (row.difference, row.low, row.high))
    interval = "[{}, {}]".format(*map(number, sorted(ends)))
    why = f", {row.why}" if row.why else ""
    return f"{winner} beats {loser} by {number(size)} {interval}, p {probability(row.holm)}, n={row.n}{why}"


def _undecided(comparison: Comparison) -> Iterator[str]:
    """One sentence for all that are undecided for the same reason. The set above may well leave levels out of which
    none is: that some level is not the best is less to show than which one it is worse than."""
    table = comparison.differences
    alone = f"each alone against {name(comparison.reference)}" + ", which asks more" * bool(_best_set(comparison))
    said = f"{alone}: undecided" if len(table) > 1 else "undecided"
    for why, group in table[table["verdict"] == "undecided"].groupby("why", sort=False):
        levels = "all" if 1 < len(group) == len(table) else _names(group["level"])
        fewer = _with_a_baseline(comparison) if "never" in str(why) else ""
        yield f"{said} ({why!s}{fewer}): {levels}" if why else f"{said}: {levels}"


def _with_a_baseline(comparison: Comparison) -> str:
    others = len(comparison.levels) - 1
    fewer = comparison.rules.fewest(others)
    saves = not comparison.baseline and fewer < comparison.rules.fewest(comparison.comparisons)
    return f", {fewer} against a baseline named beforehand" if saves else ""


def _changes_of_the_best(comparison: Comparison) -> Iterator[str]:
    """An average over blocks can hide that another level is the best in some of them. Among seeds it always is."""
    keys = comparison.within
    table = comparison.rules.sign * comparison.blocks.dropna()
    best = table.idxmax(axis=1)
    if best.nunique() < 2 or any(map(is_seed, keys)):
        return
    places = pandas.Series([" ".join(map(name, block)) for block in table.index], index=table.index)
    groups = {level: places[best == level] for level in best.value_counts().index}
    many = max(map(len, groups.values())) > PLACES
    said = [f"{name(level)} {f'in {len(own)}' if many else f'with {_names(own)}'}" for level, own in groups.items()]
    tail = f" of {len(best)}" if many else ""
    yield f"the best mean changes with {', '.join(keys)}: {'; '.join(said)}{tail}"


def _table(comparison: Comparison) -> list[list[str]]:
    """A row per level: by itself, and against the reference."""
    against = {row.level: row for row in _rows(comparison.differences)}
    diverged = comparison.levels["diverged"].any()
    head = [comparison.by, comparison.metric, "IQM", "n", *(["diverged"] if diverged else [])]
    rows = [[*head, "difference", "p", "P(better)", "verdict"]]
    for level in _rows(comparison.levels):
        own = [
            name(level.level),
            with_half(level.mean, level.high - level.mean),
            number(level.iqm),
            str(level.n),
        ]
        own += [percent(level.divergence)] if diverged else []
        rows.append([*own, *(_against(against[level.level]) if level.level in against else ["", "", "", ""])])
    return rows


def _against(row: Any) -> list[str]:
    if not row.n:
        return ["-", "-", "-", row.verdict]
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    size = f"{number(row.difference)}{interval}"
    return [size, probability(row.holm), f"{row.improvement:.2f}", row.verdict]


def _shares(shares: pandas.DataFrame) -> list[list[str]]:
    rows = zip(shares["effect"], shares["share"], shares["corrected"], strict=True)
    return [["effect", "share", "beyond chance"]] + [
        [effect, f"{share:z.1%}", "-" if math.isnan(corrected) else f"{corrected:z.1%}"]
        for effect, share, corrected in rows
    ]


def _rows(table: pandas.DataFrame) -> Iterator[Any]:
    """One named tuple per row."""
    return iter(table.itertuples())


def _names(levels: "pandas.Series[Any]") -> str:
    return ", ".join(map(name, levels))
