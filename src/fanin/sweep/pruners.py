"""Optuna's pruners by name. All but wilcoxon judge the epochs of a trial; wilcoxon judges its replicates."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner

from fanin.errors import ConfigError, require
from fanin.sweep.options import check_options

KEY = "hydra.sweeper.pruner"

_PERCENTILE = {"n_startup_trials": int, "n_warmup_steps": int, "interval_steps": int, "n_min_trials": int}
OPTIONS: dict[str, dict[str, type]] = {
    "none": {},
    "median": dict(_PERCENTILE),
    "percentile": {"percentile": float, **_PERCENTILE},
    "hyperband": {"min_resource": int, "max_resource": int, "reduction_factor": int},
    "halving": {"min_resource": int, "reduction_factor": int, "min_early_stopping_rate": int},
    "patient": {"patience": int, "min_delta": float, "wrapped": dict},
    "threshold": {"lower": float, "upper": float, "n_warmup_steps": int, "interval_steps": int},
    "wilcoxon": {"p_threshold": float, "n_startup_steps": int},
}
REQUIRED = {"percentile": "percentile", "patient": "patience"}
# Options that count steps: at `steps` or beyond, nothing would ever be pruned.
COUNTING = ("n_warmup_steps", "min_resource", "patience", "max_resource")


def build_pruner(
    pruner: Mapping[str, Any] | None, *, steps: int | None, replicates: int, objectives: int
) -> BasePruner | None:
    """The pruner, or None for none. `steps` is how many values a trial reports (epochs), None or 0 when it
    reports none. Raises ConfigError for a pruner that cannot work here, with the way out."""
    if pruner is None or pruner.get("name") in (None, "none"):
        return None
    options = check_options(KEY, pruner, OPTIONS)
    name = pruner["name"]
    rule = f"{name} compares one value; use hydra/sweeper/pruner=none, or one study.metric"
    require(objectives == 1, KEY, rule, f"{objectives} objectives")
    if name in REQUIRED:
        require(REQUIRED[name] in options, f"{KEY}.{REQUIRED[name]}", f"{name} needs it", None)
    given = name != "threshold" or {"lower", "upper"} & options.keys()
    require(given, KEY, f"threshold needs one: {KEY}.lower=0.2, or upper", None)
    if name == "wilcoxon":
        _check_replicates(options.get("p_threshold", 0.1), replicates=replicates)
    else:
        _check_steps(name, options, steps=steps)
    if name == "hyperband":
        options.setdefault("max_resource", steps)
    if name == "patient" and "wrapped" in options:
        options["wrapped"] = build_pruner(options["wrapped"], steps=steps, replicates=replicates, objectives=1)
    return _build(name, options)


def _build(name: str, options: Mapping[str, Any]) -> BasePruner:
    makers = {
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "patient": _patient,
        "threshold": optuna.pruners.ThresholdPruner,
        "wilcoxon": optuna.pruners.WilcoxonPruner,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return makers[name](**options)  # type: ignore[operator]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{KEY} ({name}): {error}") from error


def _patient(*, patience: int, min_delta: float = 0.0, wrapped: BasePruner | None = None) -> BasePruner:
    return optuna.pruners.PatientPruner(wrapped, patience=patience, min_delta=min_delta)


def _check_steps(name: str, options: Mapping[str, Any], *, steps: int | None) -> None:
    rule = f"{name} judges a run by its epochs, and stops none in its last: it needs epochs=2 or more, or take none"
    require(steps and steps >= 2, KEY, rule, f"{steps or 0} epochs")
    assert steps is not None
    for option in COUNTING:
        value = options.get(option)
        top = steps if option == "max_resource" else steps - 1
        rule = f"must be at most {top}: beyond it nothing is pruned in trials of {steps} epochs"
        require(value is None or value <= top, f"{KEY}.{option}", rule, value)
    if name == "hyperband":
        least, most = options.get("min_resource", 1), options.get("max_resource", steps)
        require(1 <= least < most, f"{KEY}.min_resource", f"must be from 1 to below max_resource ({most})", least)


def _check_replicates(p_threshold: float, *, replicates: int) -> None:
    """With n pairs the smallest one-sided p-value of the signed-rank test is 2^-n."""
    require(0 < p_threshold < 1, f"{KEY}.p_threshold", "must be between 0 and 1", p_threshold)
    needed = math.floor(-math.log2(p_threshold)) + 1
    rule = (
        f"wilcoxon compares replicates and cannot decide at p < {p_threshold:g} before {needed} of them: it "
        f"needs study.replicates of at least {needed + 1}; or raise p_threshold, or use study.racing"
    )
    require(replicates > needed, KEY, rule, replicates)
