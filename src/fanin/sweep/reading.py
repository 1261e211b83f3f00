"""Reading a study: from a multirun's arguments to a checked Study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader

from fanin.criteria.grammar import parse as parse_criteria
from fanin.diagnose import WHILE_TRAINING, check_measured
from fanin.errors import require, unknown
from fanin.ranges import is_whole
from fanin.sweep import grammar, preflight, race
from fanin.sweep.compose import Composer
from fanin.sweep.identity import decides, hash_of
from fanin.sweep.keys import check_version
from fanin.sweep.profiles import FULL
from fanin.sweep.space import bare
from fanin.sweep.study import Budget, Study, objectives

LONGEST_NAME = 200  # bytes: file systems take 255, and --new puts a folder aside with the time in its name
ON_DIVERGENCE = ("continue", "stop")
SHAPES: dict[str, tuple[type, str]] = {
    "name": (str, "a word"),
    "question": (str, "a sentence"),
    "racing": (Mapping, "{min_replicates: 3, confidence: 0.95}"),
    "prune_on": (list, "[symmetric_units, dead_units]"),
    "zip": (list, "[[initializer, optimizer.lr]]"),
    "points": (list, "[{optimizer: sgd, optimizer.lr: 0.1}]"),
    "when": (Mapping, "{optimizer.momentum: {optimizer: [momentum]}}"),
    "criteria": (list, "[{id: he_trains, says: ..., metric: test/accuracy, bound: '>= 0.8'}]"),
    "profiles": (Mapping, "{smoke: [epochs=1, data.n_train=500]}"),
}
INSTEAD = {  # of sweeping what changes no run
    "replicate": "study.replicates=3 trains every variant under 3 seeds",
    "study": "it holds for the whole study",
    "hardware": "choose one (hardware.precision alone can be swept)",
    "data": "datasets are compared as choices of their own: data=a,b",
}
RACING = {"min_replicates": 3, "confidence": 0.95}


@dataclass(frozen=True)
class Settings:
    """What the sweeper's configuration (hydra.sweeper) says."""

    params: Mapping[str, Any] | None
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None
    budget: Budget


def read_study(
    loader: ConfigLoader,
    *,
    config_name: str,
    hydra_overrides: Sequence[str],
    arguments: Sequence[str],
    settings: Settings,
) -> Study:
    """The study that a multirun's arguments describe. Raises ConfigError for whatever is wrong with it."""
    spaceless = grammar.parse(None, overrides=arguments, loader=loader)
    composer = Composer(loader, config_name=config_name, fixed=[*hydra_overrides, *spaceless.fixed])
    base = composer.compose()
    check_version(base.config)
    declared = base.config["study"]
    check_shapes(declared)
    space = grammar.parse(
        settings.params,
        overrides=arguments,
        loader=loader,
        zipped=declared["zip"],
        points=declared["points"],
        when=declared["when"],
        seed=base.config["seed"],
    )
    if space.fixed != spaceless.fixed:  # params of one value are fixed, too
        composer = Composer(loader, config_name=config_name, fixed=[*hydra_overrides, *space.fixed])
        base = composer.compose()
    profile = None if base.config["profile"] in (None, FULL) else base.config["profile"]
    study = Study(
        name=_name(declared["name"] or _file_name(arguments) or "", profile),
        question=declared["question"],
        objectives=objectives(declared["metric"], declared["direction"]),
        replicates=declared["replicates"],
        space=space,
        composer=composer,
        base=base,
        sampler=settings.sampler,
        pruner=settings.pruner,
        racing=_racing(declared),
        on_divergence=declared["on_divergence"],
        preflight=declared["preflight"],
        prune_on=tuple(declared["prune_on"]),
        budget=settings.budget,
        seed=base.config["seed"],
        warm_start=declared["warm_start"],
        profile=profile,
    )
    check_axes(study)
    check_study(study)
    criteria = parse_criteria(declared["criteria"], profile=profile, replicates=study.replicates)
    study = replace(study, criteria=criteria)
    return study if study.name else replace(study, name=f"adhoc-{hash_of(study.identity())}")


def check_axes(study: Study) -> None:
    """Refuse an axis that changes no run: all its values would be one variant. Raises ConfigError."""
    for key in (bare(key) for axis in study.space.axes for key in axis.keys):
        group = key.partition(".")[0]
        way = INSTEAD.get(group, "choose one value")
        require(decides(key), key, f"changes no number of a run, and cannot be swept; {way}", "several values")


def check_shapes(declared: Mapping[str, Any]) -> None:
    """That `study`'s lists are lists and its mappings mappings. Raises ConfigError."""
    for key, (kind, example) in SHAPES.items():
        value = declared[key]
        fits = isinstance(value, kind) or (value is None and key in ("name", "question", "racing"))
        require(fits, f"study.{key}", f"must look like {example}", value)
        if key == "zip":
            groups = all(isinstance(group, list) for group in value)
            require(groups, f"study.{key}", f"must look like {example}", value)


def check_study(study: Study) -> None:
    """Raise ConfigError for a study that cannot be run as it is."""
    require(is_whole(study.replicates, least=1), "study.replicates", "must be a whole number >= 1", study.replicates)
    _check_name(study)
    _check_choices(study)
    grid = study.sampler["name"] == "grid"
    _check_kind(study, grid=grid)
    _check_budget(study, grid=grid)
    rule = "a search needs a space, such as optimizer.lr=interval(0.001,0.1)"
    require(grid or study.space.axes, "hydra.sweeper.params", rule, None)
    if not grid or study.pruner:
        check_search(study)


def _check_name(study: Study) -> None:
    """A study has a folder of its name."""
    name = study.name
    fits = "/" not in name and name.strip(" ") == name and not name.startswith(".")
    fits = fits and name.isprintable() and len(name.encode()) <= LONGEST_NAME
    rule = f"names a folder: printable characters but /, {LONGEST_NAME} bytes at most, no dot or space at its ends"
    require(fits, "study.name" if study.own else "hydra.sweeper.study", rule, name)


def _check_choices(study: Study) -> None:
    """What is chosen from a list."""
    if study.on_divergence not in ON_DIVERGENCE:
        raise unknown("study.on_divergence", study.on_divergence, ON_DIVERGENCE)
    if study.preflight not in preflight.MODES:
        raise unknown("study.preflight", study.preflight, preflight.MODES)
    for name in study.prune_on:
        if name not in WHILE_TRAINING:
            raise unknown("study.prune_on", name, WHILE_TRAINING)
    check_measured(study.prune_on, stats=study.base.config.get("stats", "standard"))


def _check_kind(study: Study, *, grid: bool) -> None:
    """What only a grid, or only a search, can have."""
    rule = "skip needs a grid: a search proposes its variants while it runs; take warn"
    require(grid or study.preflight != "skip", "study.preflight", rule, study.preflight)
    metrics = [objective.metric for objective in study.objectives]
    require(len(metrics) == 1 or not grid, "study.metric", "a grid has one; several need a search (nsgaii)", metrics)
    if study.racing:
        rule = "races the variants of a grid; for a search, choose a pruner"
        require(grid, "study.racing", rule, study.sampler["name"])
        race.check(**study.racing, max_replicates=study.replicates)


def _check_budget(study: Study, *, grid: bool) -> None:
    budget = study.budget
    limits = {"max_trials": budget.trials, "timeout": budget.seconds, "max_epochs": budget.epochs}
    for key, limit in limits.items():
        require(limit is None or limit > 0, f"hydra.sweeper.{key}", "must be null or > 0", limit)
    rule = "a grid runs all of its points; leave it out, or search: hydra/sweeper=tpe"
    require(not (grid and study.own and budget.trials), "hydra.sweeper.max_trials", rule, budget.trials)


def check_search(study: Study) -> None:
    """Refuse options of a sampler or pruner before there is a journal that holds them."""
    from fanin.sweep.pruners import build_pruner
    from fanin.sweep.samplers import check_sampler

    count, name = len(study.objectives), study.pruner_name
    check_sampler(study.sampler, study.space, objectives=count, seed=study.seed)
    steps = study.base.config["epochs"] if study.own else None
    build_pruner(study.pruner, steps=steps, replicates=study.replicates, objectives=count)
    late = study.own and study.objective.metric.startswith("test/") and name not in ("none", "wilcoxon")
    rule = f"is known at the end of a run, and {name} judges its epochs; use val/..., or no pruner"
    require(not late, "study.metric", rule, study.objective.metric)


def _racing(declared: Mapping[str, Any]) -> dict[str, Any] | None:
    given = declared["racing"]
    if not given:
        return None
    for key in given:
        if key not in RACING:
            raise unknown("study.racing", key, RACING)
    return RACING | dict(given)


def _name(name: str, profile: str | None) -> str:
    """Of each profile its own: under one name they would be one question that changes all the time."""
    return f"{name}.{profile}" if name and profile else name


def _file_name(arguments: Sequence[str]) -> str | None:
    return next((a.partition("=")[2] for a in arguments if a.lstrip("+").startswith("sweeps=")), None)
