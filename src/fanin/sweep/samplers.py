"""Optuna's samplers by name, with Optuna's own defaults wherever an option is not given.

A sampler is built anew for every trial and seeded by (study seed, trial number). Its random state is then a
function of the number alone: a search that was killed and resumed draws what the uninterrupted one would have
drawn, instead of the first numbers of the stream once more. What samplers must remember between trials (the
covariance of CMA-ES, the populations of NSGA-II, the position in a Sobol sequence) Optuna keeps in its
storage.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from fanin.errors import ConfigError, require
from fanin.sweep.excerpt import Excerpt, Excerpts, ExcerptSampler
from fanin.sweep.options import check_options
from fanin.sweep.space import Space

KEY = "hydra.sweeper.sampler"

OPTIONS: dict[str, dict[str, type]] = {
    "grid": {},
    "random": {},
    "tpe": {
        "n_startup_trials": int,
        "n_ei_candidates": int,
        "multivariate": bool,
        "group": bool,
        "constant_liar": bool,
        "window": int,
    },
    "gp": {"n_startup_trials": int, "deterministic_objective": bool},
    "cmaes": {
        "n_startup_trials": int,
        "popsize": int,
        "consider_pruned_trials": bool,
        "use_separable_cma": bool,
        "with_margin": bool,
        "lr_adapt": bool,
    },
    "qmc": {"qmc_type": str, "scramble": bool},
    "nsgaii": {
        "population_size": int,
        "mutation_prob": float,
        "crossover_prob": float,
        "swapping_prob": float,
    },
}

LEAST = {"n_startup_trials": 0, "n_ei_candidates": 1, "popsize": 4}  # Optuna fails in mid-search on less

# A sampler that models all axes together cannot model one that is sometimes absent; Optuna would silently
# draw such an axis at random. TPE can: it groups the trials by the axes they have.
CONDITIONAL = ("grid", "random", "tpe")


def trial_seed(seed: int, number: int) -> int:
    """32 bits for the sampler of one trial."""
    return int.from_bytes(hashlib.sha256(f"{seed}/search/{number}".encode()).digest()[:4], "big")


def check_sampler(sampler: Mapping[str, Any], space: Space, *, objectives: int, seed: int) -> None:
    """Refuse (ConfigError) options that do not exist and a sampler that cannot search this space."""
    name, options = sampler["name"], check_options(KEY, sampler, OPTIONS)
    rule = "must be at least 1 (the most recent trials that TPE looks at, beside the best), or null: all of them"
    require(options.get("window", 1) >= 1, f"{KEY}.window", rule, options.get("window"))
    for option, least in LEAST.items():
        value = options.get(option, least)
        require(value >= least, f"{KEY}.{option}", f"must be at least {least}, or null: Optuna's default", value)
    if name not in CONDITIONAL:
        axis = next((axis for axis in space.axes if axis.when), None)
        rule = f"{name} needs every axis in every trial; use hydra/sweeper=tpe, or drop the condition of"
        require(axis is None, KEY, rule, axis and axis.name)
    if name == "cmaes":
        _check_cmaes(space, objectives=objectives)
    build_sampler(sampler, space, objectives=objectives, seed=seed, number=0)


def _check_cmaes(space: Space, *, objectives: int) -> None:
    require(
        objectives == 1,
        KEY,
        "cmaes has one objective; use hydra/sweeper=nsgaii or tpe",
        f"{objectives} of them",
    )
    axis = next((axis for axis in space.axes if axis.kind in ("choice", "zip", "points")), None)
    rule = "cmaes searches numbers only (it would draw names at random); fix this axis, or use hydra/sweeper=tpe"
    require(axis is None, KEY, rule, axis and f"{axis.name}={axis.text}")
    wide = [axis.name for axis in space.axes if axis.size != 1]
    require(len(wide) >= 2, KEY, "cmaes needs at least two axes (the covariance of one is no news); use tpe", wide)


def excerpts_for(sampler: Mapping[str, Any], *, directions: Sequence[str]) -> Excerpts | None:
    """What shortens the history for this sampler: for TPE with a `window`. Several objectives have no such few best (a
    front grows), so they keep all of it."""
    options = check_options(KEY, sampler, OPTIONS)
    if "window" not in options or len(directions) > 1:
        return None
    started = options.get("n_startup_trials", 0)  # of fewer trials no model would ever be made
    return Excerpts(max(options["window"], started), direction=directions[0])


def build_sampler(
    sampler: Mapping[str, Any],
    space: Space,
    *,
    objectives: int,
    seed: int,
    number: int,
    excerpt: Excerpt | None = None,
) -> BaseSampler:
    """The sampler for trial `number`; TPE sees the `excerpt` of the history, or all of it."""
    name, options = sampler["name"], check_options(KEY, sampler, OPTIONS)
    own = trial_seed(seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if name == "tpe":
                return _tpe(options, space, objectives=objectives, seed=own, excerpt=excerpt)
            if name == "gp":
                return optuna.samplers.GPSampler(seed=own, warn_independent_sampling=False, **options)
            if name == "cmaes":
                return optuna.samplers.CmaEsSampler(seed=own, warn_independent_sampling=False, **options)
            if name == "qmc":
                return _qmc(options, seed=seed, own=own)
            if name == "nsgaii":
                return optuna.samplers.NSGAIISampler(seed=own, **options)
        except ValueError as error:
            raise ConfigError(f"{KEY} ({name}): {error}") from error
    return optuna.samplers.RandomSampler(seed=own)


def _tpe(
    options: Mapping[str, Any], space: Space, *, objectives: int, seed: int, excerpt: Excerpt | None
) -> BaseSampler:
    """With conditions, one multivariate model for each group of axes that occur together (`group`), as Optuna
    recommends; several objectives are modelled axis by axis, which needs no groups."""
    group = space.conditional and objectives == 1 and options.get("multivariate") is not False
    given = {"group": group, **options, "seed": seed}
    given.pop("window", None)  # that is the excerpt's
    return optuna.samplers.TPESampler(**given) if excerpt is None else ExcerptSampler(excerpt, **given)


def _qmc(options: Mapping[str, Any], *, seed: int, own: int) -> BaseSampler:
    """The sequence is one for the whole study, so its scrambling has the study's seed."""
    return optuna.samplers.QMCSampler(
        seed=seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=own),
        warn_independent_sampling=False,
        **options,
    )
