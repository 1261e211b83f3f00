"""TPE on an excerpt of a long history: its cost no longer grows with the number of trials.

Optuna's TPE goes through all earlier trials, in Python, at every ask. What it makes of them is two densities: one of
the best few (`BELOW` at most, however many there are), one of all others, in which the older ones weigh less. So an
excerpt takes little away: the best trials by Optuna's own order, the most recent `window` of the others, and all that
are running. Up to `window` + `BELOW` finished trials the excerpt is the history and every draw is Optuna's own. Which
axes all trials have in common, or with conditions which occur together, is known of the whole history: an axis of a
branch that was given up long ago stays in a group of its own.

The excerpt is a function of the finished trials, not of the order in which they ended or were looked at, so a search
that is resumed draws what the uninterrupted one would have drawn.

Bergstra et al., Algorithms for Hyper-Parameter Optimization (2011); Bergstra et al., Making a Science of Model Search
(2013), for the weights that fall with age.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import FrozenTrial, TrialState

BELOW = 25  # default_gamma goes no higher
Axes = frozenset[tuple[str, BaseDistribution]]


@dataclass(frozen=True)
class Excerpt:
    """The trials that TPE is shown: the best in Optuna's order, the most recent of the others and the running ones in
    that of their numbers. Of all finished ones: their count, and the first of each kind (by its axes), in
    which Optuna finds the same groups of axes as in all. And where the best and the recent lie: number -> axis -> the
    value as Optuna computes with it."""

    best: Sequence[FrozenTrial]
    recent: Sequence[FrozenTrial]
    running: Sequence[FrozenTrial]
    finished: int
    kinds: Sequence[FrozenTrial]
    points: Mapping[int, Mapping[str, float]]

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        return sorted([*self.best, *self.recent, *self.running], key=_number)

    def split(self, *, running: bool) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Those that count as the best, as Optuna would choose them of all, and the others."""
        count = default_gamma(self.finished)
        above = [*self.best[count:], *self.recent, *(self.running if running else ())]
        return sorted(self.best[:count], key=_number), sorted(above, key=_number)


class Excerpts:
    """The excerpt of a growing history; each trial that has ended is looked at once."""

    def __init__(self, window: int, *, direction: str) -> None:
        self.window, self._sign = window, 1.0 if direction == "minimize" else -1.0
        self._best: list[FrozenTrial] = []  # in Optuna's order
        self._recent: list[FrozenTrial] = []  # of the others, by number
        self._open: set[int] = set()  # the trials that had not ended
        self._seen = self._finished = 0
        self._kinds: dict[Axes, FrozenTrial] = {}  # the first trial of each
        self._points: dict[int, dict[str, float]] = {}

    @property
    def start(self) -> int:
        """The first trial that had not ended last time."""
        return min(self._open, default=self._seen)

    def of(self, trials: Sequence[FrozenTrial]) -> Excerpt:
        """With all `trials` of the study from `start` on, in order of their numbers."""
        fresh = [trial for trial in trials if trial.number >= self._seen or trial.number in self._open]
        for trial in fresh:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._take_in(trial)
        self._open = {trial.number for trial in fresh if not trial.state.is_finished()}
        self._seen = max(self._seen, *(trial.number + 1 for trial in fresh), 0)
        running = [trial for trial in fresh if trial.state == TrialState.RUNNING]
        kinds = sorted(self._kinds.values(), key=_number)
        return Excerpt(list(self._best), list(self._recent), running, self._finished, kinds, dict(self._points))

    def _take_in(self, trial: FrozenTrial) -> None:
        """What leaves the best has `BELOW` better ones for good, and what leaves the recent `window` more recent ones:
        neither comes back, whatever is taken in later."""
        axes = frozenset(trial.distributions.items())
        self._kinds[axes] = min(self._kinds.get(axes, trial), trial, key=_number)
        self._finished += 1
        self._points[trial.number] = _point(trial.params, trial.distributions)
        bisect.insort(self._best, trial, key=partial(_rank, sign=self._sign))
        if len(self._best) > BELOW:
            bisect.insort(self._recent, self._best.pop(), key=_number)
        if len(self._recent) > self.window:
            del self._points[self._recent.pop(0).number]


def _point(params: Mapping[str, Any], kinds: Mapping[str, BaseDistribution]) -> dict[str, float]:
    return {name: kinds[name].to_internal_repr(value) for name, value in params.items()}


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _rank(trial: FrozenTrial, *, sign: float) -> tuple[float, ...]:
    """Optuna's order: complete trials by their value, then pruned ones, those that came further first, by their last
    value; those that reported nothing last; ties by number."""
    if trial.state == TrialState.COMPLETE:
        return 0, sign * cast(float, trial.value), 0.0, trial.number
    if not trial.intermediate_values:
        return 1, 1.0, 0.0, trial.number
    step, value = max(trial.intermediate_values.items())
    return 1, -step, math.inf if math.isnan(value) else sign * value, trial.number


class ExcerptSampler(TPESampler):
    """TPE that takes an excerpt for the whole history."""

    def __init__(self, excerpt: Excerpt, **options: Any) -> None:
        super().__init__(**options)
        self._excerpt = excerpt

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(_shown(study, self._excerpt.kinds), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(_shown(study, self._excerpt.trials), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(_shown(study, self._excerpt.trials), trial, param_name, param_distribution)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """TPESampler's own, but for trials that are split already."""
        below, above = self._excerpt.split(running=self._constant_liar)
        good = self._build_parzen_estimator(study, search_space, below, handle_below=True)
        others = self._build_parzen_estimator(study, search_space, above, handle_below=False)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        chosen = self._compare(candidates, self._compute_acquisition_func(candidates, good, others))
        return {name: kind.to_external_repr(chosen[name]) for name, kind in search_space.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: optuna.Study
    ) -> dict[str, Any]:
        """Axis -> the values of the trials that have all the axes."""
        of_ended = self._excerpt.points
        found = [of_ended.get(trial.number) or self._aim(trial, search_space, study) for trial in trials]
        points = [point for point in found if search_space.keys() <= point.keys()]
        return {name: np.asarray([point[name] for point in points]) for name in search_space}

    def _aim(
        self, trial: FrozenTrial, search_space: dict[str, BaseDistribution], study: optuna.Study
    ) -> Mapping[str, float]:
        """Where a trial that runs lies, or will when all the values drawn for it are in."""
        params = self._get_params(trial, study)
        return _point({name: params[name] for name in params.keys() & search_space.keys()}, search_space)


def _shown(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    return cast(optuna.Study, _Shown(study, trials))


class _Shown:
    """The study, except that it has fewer trials. (Optuna's Hyperband shows samplers a part of a study likewise.)"""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._whole, self._trials = study, trials

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        assert not deepcopy, "TPE only looks at them"
        return [trial for trial in self._trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)
