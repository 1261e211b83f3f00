"""The choices of `hydra/sweeper` and of `hydra/sweeper/pruner`.

Hydra imports this file at the start of every Hydra program on the machine, so it imports nothing but Hydra.
An option of null means Optuna's default, whatever it is in the installed version; the options are listed so
that they can be set without a `+`, and so that `--cfg hydra` shows them.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional  # noqa: UP035

from hydra.core.config_store import ConfigStore

# TPE looks at the best trials and as many of the others as `window` says, the most recent ones; null: at all, as Optuna
# does, at a cost that grows with them.
SAMPLERS: dict[str, dict[str, Any]] = {
    "grid": {},
    "random": {},
    "tpe": {
        **dict.fromkeys(["n_startup_trials", "n_ei_candidates", "multivariate", "group", "constant_liar"]),
        "window": 200,
    },
    "gp": dict.fromkeys(["n_startup_trials", "deterministic_objective"]),
    "cmaes": dict.fromkeys(
        ["n_startup_trials", "popsize", "consider_pruned_trials", "use_separable_cma", "with_margin", "lr_adapt"]
    ),
    "qmc": dict.fromkeys(["qmc_type", "scramble"]),
    "nsgaii": dict.fromkeys(["population_size", "mutation_prob", "crossover_prob", "swapping_prob"]),
}

# Given values are those that Optuna leaves to us (it has no default), or that its own examples use.
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": dict.fromkeys(["n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"]),
    "percentile": {
        "percentile": 25.0,
        **dict.fromkeys(["n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials"]),
    },
    "hyperband": dict.fromkeys(["min_resource", "max_resource", "reduction_factor"]),
    "halving": dict.fromkeys(["min_resource", "reduction_factor", "min_early_stopping_rate"]),
    "patient": {"patience": 5, "min_delta": None, "wrapped": None},
    "threshold": dict.fromkeys(["lower", "upper", "n_warmup_steps", "interval_steps"]),
    "wilcoxon": dict.fromkeys(["p_threshold", "n_startup_steps"]),
}


@dataclass
class FaninSweeperConfig:
    """`params` is the space, in Hydra's override grammar. The search ends with `max_trials` trials (in all, also
    across resumes; a grid ends by itself), after `timeout` seconds, with `max_epochs` epochs trained (in
    all, too), or when the metric reaches `target`: whichever comes first.

    The fields from `study` on are for programs other than fanin, whose study file and `hardware` group say the
    same: `study` names it (default: the program's name), `direction` is minimize or maximize, one or a list;
    `change` says what happens when the question differs from the one the study holds: refuse, extend or new;
    `warm_start` names a study whose best points a search tries first."""

    defaults: List[Any] = field(default_factory=lambda: [{"pruner": "none"}])  # noqa: UP006
    _target_: str = "hydra_plugins.fanin_sweeper.sweeper.FaninSweeper"
    sampler: Dict[str, Any] = field(default_factory=dict)  # noqa: UP006
    pruner: Dict[str, Any] = field(default_factory=dict)  # noqa: UP006
    params: Dict[str, Any] = field(default_factory=dict)  # noqa: UP006
    max_trials: Optional[int] = None  # noqa: UP045
    max_epochs: Optional[int] = None  # noqa: UP045
    timeout: Optional[float] = None  # noqa: UP045
    target: Optional[float] = None  # noqa: UP045
    study: Optional[str] = None  # noqa: UP045
    direction: Any = "minimize"
    seed: int = 0
    workers: Optional[int] = None  # noqa: UP045
    threads: int = 1
    change: str = "refuse"
    warm_start: Optional[str] = None  # noqa: UP045


def _register() -> None:
    store = ConfigStore.instance()
    for name, given in SAMPLERS.items():
        node = FaninSweeperConfig(sampler={"name": name, **given})
        store.store(group="hydra/sweeper", name=name, node=node, provider="fanin")
    for name, given in PRUNERS.items():
        store.store(group="hydra/sweeper/pruner", name=name, node={"name": name, **given}, provider="fanin")


_register()
