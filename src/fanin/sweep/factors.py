"""Which factor matters: a study's short answer, from its runs alone.

A complete grid is split exactly (variance.anova). Whatever else has enough variants, a search above all,
is asked in which factors its best variants differ from the rest (importance.ped_anova). Diverged runs count
as in the leaderboard.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from fanin.errors import ConfigError
from fanin.leaderboard import counted
from fanin.noise import Noise, split
from fanin.sweep.importance import ped_anova, ped_anova_of
from fanin.variance import anova

if TYPE_CHECKING:
    from fanin.sweep.search import Search

# Variants from which on PED-ANOVA is worth showing. On a made-up search of three factors, one of them decisive,
# it named that one in 50 of 60 cases with 10 variants, in 59 with 20; the standard deviation of its share was
# 0.14 with 20 and 0.07 with 100.
ENOUGH, MANY = 20, 50
SMALL = 0.01  # interactions below this share are summed up
NOT_FACTORS = {"replicate": "seed (common to all variants)", "noise": "noise"}


@dataclass(frozen=True)
class Share:
    """What a factor accounts for, from 0 to 1; `corrected`: without what noise alone would have given it."""

    factor: str
    share: float
    corrected: float = math.nan


@dataclass(frozen=True)
class Factors:
    """The shares, largest first, of `what`; `note` is for whoever reads them."""

    what: str
    shares: tuple[Share, ...]
    note: str = ""


def weigh(
    runs: pd.DataFrame,
    *,
    by: Sequence[str],
    metric: str,
    direction: str,
    classes: int = 2,
    search: "Search | None" = None,
) -> Factors | None:
    """The shares of the factors `by`, or None where the runs cannot tell: fewer than two factors vary, or the
    grid has gaps and fewer than 20 variants are complete.

    `runs` has one row per run with the columns variant, replicate, status, reason, diverged, `by`, `metric`,
    as `fanin.runs` gives it. `search` knows the true ranges of its parameters; without it they are taken from
    the runs.
    """
    if metric not in runs or not {*by} <= {*runs.columns}:
        return None
    runs = counted(runs, metric=metric, direction=direction, classes=classes)
    varying = [key for key in by if key != "replicate" and runs[key].astype(str).nunique() > 1]
    complete = runs[runs["complete"] & runs[metric].notna()]
    if len(varying) < 2 or complete.empty:
        return None
    whole = len(complete) == len(runs)
    exact = _exact(complete, by=varying, metric=metric) if whole and search is None else None
    return exact or _searched(complete, by=varying, metric=metric, direction=direction, search=search)


def scatter(runs: pd.DataFrame, *, by: Sequence[str], metric: str, direction: str, classes: int = 2) -> Noise | None:
    """Where the noise between the runs comes from, within equal values of `by`, if their seeds cross."""
    if metric not in runs:
        return None
    runs = counted(runs, metric=metric, direction=direction, classes=classes)
    return split(runs[runs["complete"]], by=by, metric=metric)


def _exact(runs: pd.DataFrame, *, by: Sequence[str], metric: str) -> Factors | None:
    """The analysis of variance; None for a grid with gaps."""
    runs, names = _merged(runs, by)
    try:
        table = anova(runs, by=names, metric=metric)
    except ConfigError:
        return None
    if len(names) < 2:
        return None
    small = (table["kind"] == "higher") | ((table["kind"] == "interaction") & (table["share"] < SMALL))
    small &= small.sum() > 1  # a single one may as well be named
    chance = table["kind"].isin(list(NOT_FACTORS))
    rows = [_row(row) for row in table[~small & ~chance].to_dict("records")]
    if small.any():
        rest = table[small]
        rows.append(Share("other interactions", rest["share"].sum(), rest["corrected"].sum(skipna=False)))
    rows += [_row(row) for row in table[chance].to_dict("records")]
    alone = runs["replicate"].nunique() == 1
    return Factors(
        f"share of the variance of {metric} over all {len(runs)} runs (exact)",
        tuple(rows),
        "One replicate: noise cannot be told from interactions." if alone else "",
    )


def _row(row: Mapping[Any, Any]) -> Share:
    return Share(NOT_FACTORS.get(row["kind"], row["effect"]), row["share"], row["corrected"])


def _merged(runs: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Keys that walk in step (a zip) cannot be told apart: they are one factor."""
    runs = runs.copy()
    runs[list(by)] = runs[list(by)].astype(str)
    groups: list[list[str]] = []
    for key in by:
        for group in groups:
            pairs = len(runs[[group[0], key]].drop_duplicates())
            if pairs == runs[key].nunique() == runs[group[0]].nunique():
                group.append(key)
                break
        else:
            groups.append([key])
    names = [" & ".join(group) for group in groups]
    heads = [group[0] for group in groups]
    return runs.rename(columns=dict(zip(heads, names, strict=True))), names


def _searched(
    runs: pd.DataFrame, *, by: Sequence[str], metric: str, direction: str, search: "Search | None"
) -> Factors | None:
    if runs["variant"].nunique() < ENOUGH:
        return None
    if search:
        shares, of = ped_anova(search), "all objectives" if len(search.directions) > 1 else metric
    else:
        shares, of = ped_anova_of(runs, by=by, metric=metric, direction=direction), metric
    if len(shares) < 2:
        return None
    return Factors(
        f"share in telling the best variants from the rest, by {of} (PED-ANOVA)",
        tuple(Share(name, share) for name, share in shares.items()),
        "A rough estimate: there are few variants yet." if runs["variant"].nunique() < MANY else "",
    )


def render(factors: Factors) -> str:
    """Plain text for the terminal."""
    cells = _cells(factors)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([f"Which factor matters: {factors.what}", "", *lines, "", factors.note]).rstrip()


def render_markdown(factors: Factors) -> str:
    """The same for MLflow's description of a study."""
    head, *body = _cells(factors)
    rule = ["---", *(["---:"] * (len(head) - 1))]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    return "\n".join([f"Which factor matters: {factors.what}", "", *lines, "", factors.note]).rstrip()


def _cells(factors: Factors) -> list[list[str]]:
    known = any(not math.isnan(share.corrected) for share in factors.shares)
    rows = [["factor", "share", *(["beyond chance"] if known else [])]]
    for share in factors.shares:
        rows.append([share.factor, _percent(share.share), *([_percent(share.corrected)] if known else [])])
    return rows


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:z.1%}"
