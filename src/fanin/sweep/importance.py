"""Which axis matters: an exact analysis of variance for balanced grids, PED-ANOVA for searches.

A grid has every combination, so its variance can be split without any model (functional ANOVA, Hoeffding
1948; for hyperparameters: Hutter, Hoos, Leyton-Brown 2014): with y(c) the mean over replicates of combination
c, the effect of a set u of axes is what the mean over all other axes says beyond the effects of the subsets
of u,

    f_u(c_u) = mean(y | c_u) - sum over v strictly inside u of f_v(c_v),      share_u = mean(f_u^2) / V,

and V is the variance over all runs. The replicates' own split, V = cells + replicate + noise, is that of a
randomised block design: `replicate` is what all variants have in common under one seed (an easy split, say),
`noise` what is left. A search visits good regions more often, which would bias such an average; PED-ANOVA
(Watanabe et al. 2023) instead asks in which axes the best trials differ from the rest.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fanin.errors import require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from fanin.sweep.search import Search

DECADES = 100.0  # the span from which on a range is taken for a logarithmic one
FEWEST = 10  # complete trials below which PED-ANOVA has nothing to say
TOP = 5  # trials the top group should have (optuna's advice), up to half of them all


def anova(
    runs: pd.DataFrame, *, by: Sequence[str], metric: str, replicate: str = "replicate"
) -> pd.DataFrame:
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
    table[by] = table[by].astype(str)
    counts = table.groupby([*by, replicate], observed=True)[metric].agg(["size", "count"])
    levels = [table[column].nunique() for column in [*by, replicate]]
    whole = len(counts) == math.prod(levels) and bool((counts == 1).all(axis=None))
    rule = (
        f"the exact analysis needs every combination of {', '.join(by)} with the same replicates, each once"
    )
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


def ped_anova(search: "Search") -> dict[str, float]:
    """Each axis's share in telling the best complete trials of a search from the rest, largest first (shares
    sum to 1); empty with fewer than 10 complete trials. With several objectives "best" is the Pareto front.

    Optuna's default takes the best 10 % of the trials; below 50 trials we take the best five, of which at
    least as many are needed for a stable answer. Trials that diverged count as the worst, not as absent.
    """
    from optuna.trial import TrialState

    trials = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    numbers = {trial.number for trial in search.trials if trial.state == "complete"}
    trials = [trial for trial in trials if trial.number in numbers]
    return _shares(trials, search.directions)


def ped_anova_of(runs: pd.DataFrame, *, by: Sequence[str], metric: str, direction: str) -> dict[str, float]:
    """The same from finished runs: one row each, with the columns variant, `by` and `metric`. A variant's
    value is its mean; a numeric factor reaches from its smallest to its largest value, on a logarithmic scale
    if it spans two decades."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    means = runs.groupby("variant", observed=True)[metric].mean()
    points = runs.drop_duplicates("variant").set_index("variant").loc[means.index, list(by)]
    kinds = {key: _distribution(points[key]) for key in by}
    trials = []
    for point, value in zip(points.to_dict("records"), means, strict=True):
        given = {key: kinds[key] for key in by if not pd.isna(point[key])}  # a conditional one may be absent
        numbers = {key for key, kind in given.items() if isinstance(kind, FloatDistribution)}
        params = {key: point[key] if key in numbers else str(point[key]) for key in given}
        trials.append(create_trial(params=params, distributions=given, values=[float(value)]))
    return _shares(trials, [direction])


def _distribution(column: "pd.Series[Any]") -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    seen = column.dropna()
    numeric = pd.api.types.is_numeric_dtype(seen) and not pd.api.types.is_bool_dtype(seen)
    if not numeric or seen.nunique() < 3:
        return CategoricalDistribution(sorted(seen.astype(str).unique()))
    low, high = float(seen.min()), float(seen.max())
    return FloatDistribution(low, high, log=low > 0 and high / low >= DECADES)


def _shares(trials: "Sequence[FrozenTrial]", directions: Sequence[str]) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    if len(trials) < FEWEST:
        return {}
    worst = _finite_worst([trial.values for trial in trials])
    copy = optuna.create_study(directions=list(directions))
    for trial in trials:
        values = [v if math.isfinite(v) else w[v] for v, w in zip(trial.values, worst, strict=True)]
        copy.add_trial(create_trial(params=trial.params, distributions=trial.distributions, values=values))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, TOP / len(trials))))
    shares = get_param_importances(copy, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _finite_worst(values: Sequence[Sequence[float]]) -> list[Mapping[float, float]]:
    """For each objective, the finite numbers that stand in for +-infinity: just the extremes that were
    seen."""
    finite = [[v for v in column if math.isfinite(v)] or [0.0] for column in zip(*values, strict=True)]
    return [{math.inf: max(column), -math.inf: min(column)} for column in finite]
