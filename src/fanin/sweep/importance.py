"""Which axis matters in a search: PED-ANOVA. (A complete grid is split exactly: fanin.variance.)

A search visits good regions more often, which would bias averages over what it visited; PED-ANOVA (Watanabe
et al. 2023) instead asks in which axes the best trials differ from the rest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from fanin.sweep.search import Search

DECADES = 100.0  # the span from which on a range is taken for a logarithmic one
FEWEST = 10  # complete trials below which PED-ANOVA has nothing to say
TOP = 5  # trials the top group should have (optuna's advice), up to half of them all


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
    with _quiet():
        copy = optuna.create_study(directions=cast(Any, list(directions)))
    for trial in trials:
        values = [v if math.isfinite(v) else w[v] for v, w in zip(trial.values, worst, strict=True)]
        copy.add_trial(create_trial(params=trial.params, distributions=trial.distributions, values=values))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, TOP / len(trials))))
    shares = get_param_importances(copy, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every study that is made, also one that is made to be asked and thrown away."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _finite_worst(values: Sequence[Sequence[float]]) -> list[Mapping[float, float]]:
    """For each objective, the finite numbers that stand in for +-infinity: just the extremes that were
    seen."""
    finite = [[v for v in column if math.isfinite(v)] or [0.0] for column in zip(*values, strict=True)]
    return [{math.inf: max(column), -math.inf: min(column)} for column in finite]
