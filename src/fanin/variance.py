"""Which axis matters: an exact analysis of variance of a balanced grid.

A grid has every combination, so its variance can be split without any model (functional ANOVA, Hoeffding
1948; for hyperparameters: Hutter, Hoos, Leyton-Brown 2014): with y(c) the mean over replicates of combination
c, the effect of a set u of axes is what the mean over all other axes says beyond the effects of the subsets
of u,

    f_u(c_u) = mean(y | c_u) - sum over v strictly inside u of f_v(c_v),      share_u = mean(f_u^2) / V,

and V is the variance over all runs. The replicates' own split, V = cells + replicate + noise, is that of a
randomised block design: `replicate` is what all variants have in common under one seed (an easy split, say),
`noise` what is left.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fanin.errors import require


def anova(runs: pd.DataFrame, *, by: Sequence[str], metric: str, replicate: str = "replicate") -> pd.DataFrame:
    """Variance shares of a balanced grid, one row per effect, largest first.

    `runs` has one row per run with the columns `by` (the axes), `metric` and `replicate`. Columns of the
    result: effect (`optimizer`, `initializer x optimizer`, ...), kind (main, interaction, higher, replicate,
    noise), freedom (degrees of freedom), share (of the variance over all runs; the shares sum to 1) and
    corrected: omega squared, the share with the part removed that noise alone would produce (it can be
    slightly negative; NaN with one replicate, when noise cannot be told from interaction). Interactions of
    three and more axes are summed up as `higher`. Raises ConfigError unless every combination has the same
    replicates, each once and finite.
    """
    cube = _cube(runs, by=list(by), metric=metric, replicate=replicate)
    cells = cube.mean(axis=-1)
    total = float(cube.var())
    blocks = cube.mean(axis=tuple(range(len(by))))
    effects = _effects(cells, by)
    higher = float(cells.var()) - sum(variance for _, variance, _ in effects)
    rows = [(" x ".join(axes), _kind(axes), freedom, variance) for axes, variance, freedom in effects]
    rows.append(("higher order", "higher", cells.size - 1 - sum(f for _, _, f in effects), max(0.0, higher)))
    rows.append(("replicate", "replicate", blocks.size - 1, float(blocks.var())))
    noise = max(0.0, total - float(cells.var()) - float(blocks.var()))
    rows.append(("noise", "noise", (cells.size - 1) * (blocks.size - 1), noise))
    table = pd.DataFrame(rows, columns=["effect", "kind", "freedom", "variance"])
    table["share"] = table["variance"] / total if total > 0 else 0.0
    table["corrected"] = _corrected(table, total=total, count=cube.size)
    table = table[table["freedom"] > 0].drop(columns="variance")
    return table.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def _cube(runs: pd.DataFrame, *, by: list[str], metric: str, replicate: str) -> NDArray[np.float64]:
    """The metric as an array with one dimension per axis and, last, the replicates."""
    table = runs[[*by, replicate, metric]].copy()
    table[by] = table[by].astype(object).where(table[by].notna(), "null").astype(str)  # null is a level, too
    counts = table.groupby([*by, replicate], observed=True)[metric].agg(["size", "count"])
    levels = [table[column].nunique() for column in [*by, replicate]]
    whole = len(counts) == math.prod(levels) and bool((counts == 1).all(axis=None))
    rule = f"the exact analysis needs every combination of {', '.join(by)} with the same replicates, each once"
    found = f"{int(counts['count'].sum())} values for {math.prod(levels)} places"
    require(whole and bool(np.isfinite(table[metric]).all()), "study", rule, found)
    ordered = table.sort_values([*by, replicate])[metric].to_numpy(dtype=np.float64)
    return ordered.reshape(levels)


def _effects(cells: NDArray[np.float64], by: Sequence[str]) -> list[tuple[tuple[str, ...], float, int]]:
    """(axes, variance, degrees of freedom) of every main effect and of every interaction of two axes."""
    effects: dict[tuple[int, ...], NDArray[np.float64]] = {(): cells.mean(keepdims=True)}
    found = []
    for size in (1, 2):
        for axes in combinations(range(cells.ndim), size):
            others = tuple(i for i in range(cells.ndim) if i not in axes)
            inside = [v for k in range(size) for v in combinations(axes, k)]
            effects[axes] = cells.mean(axis=others, keepdims=True) - sum(effects[v] for v in inside)
            freedom = math.prod(cells.shape[i] - 1 for i in axes)
            found.append((tuple(by[i] for i in axes), float(np.mean(effects[axes] ** 2)), freedom))
    return found


def _kind(axes: Sequence[str]) -> str:
    return "main" if len(axes) == 1 else "interaction"


def _corrected(table: pd.DataFrame, *, total: float, count: int) -> "pd.Series[float]":
    """omega^2 = (SS - freedom * MS_noise) / (SS_total + MS_noise), Hays 1963."""
    noise = table[table["kind"] == "noise"].iloc[0]
    if noise["freedom"] == 0:
        return pd.Series(math.nan, index=table.index)
    mean_square = noise["variance"] * count / noise["freedom"]
    corrected = (table["variance"] * count - table["freedom"] * mean_square) / (total * count + mean_square)
    return corrected.where(table["kind"] != "noise", 1.0 - corrected[table["kind"] != "noise"].sum())
