"""The options of a search: refused where they cannot work, and those that conf/ and Hydra offer are Optuna's."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from searches import MIXED, NUMBERS, open_search

from fanin.errors import ConfigError
from fanin.sweep import pruners, samplers
from fanin.sweep.grammar import parse
from hydra_plugins.fanin_sweeper import config

# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": {"name": "tpee"}}, "hydra.sweeper.sampler.name: 'tpee' .*did you mean 'tpe'"),
        (
            {"sampler": {"name": "tpe", "n_startup": 3}},
            r"hydra.sweeper.sampler \(tpe\): 'n_startup' .*did you mean",
        ),
        (
            {"sampler": {"name": "random", "seed": 3}},
            r"sampler \(random\): 'seed' is not one of: \(it has no",
        ),
        (
            {"sampler": {"name": "tpe", "n_startup_trials": "x"}},
            "n_startup_trials: must be of type int, got 'x'",
        ),
        ({"sampler": {"name": "tpe", "group": True, "multivariate": False}}, r"sampler \(tpe\): .*group"),
        ({"sampler": {"name": "nsgaii", "population_size": 1}}, r"sampler \(nsgaii\): .*population_size"),
        ({"sampler": {"name": "tpe", "n_startup_trials": -1}}, "n_startup_trials: must be at least 0, or null"),
        ({"sampler": {"name": "tpe", "n_ei_candidates": 0}}, "n_ei_candidates: must be at least 1, or null"),
        ({"sampler": {"name": "cmaes", "popsize": 3}, "space": NUMBERS}, "popsize: must be at least 4, or null"),
        ({"sampler": {"name": "qmc", "qmc_type": "sobl"}}, r"sampler \(qmc\): .*halton"),
        ({"sampler": {"name": "cmaes"}}, "cmaes searches numbers only.*'c=a,.b,c.,d'"),
        ({"sampler": {"name": "cmaes"}, "space": {"x": "interval(0,1)"}}, "cmaes needs at least two axes"),
        (
            {"sampler": {"name": "cmaes"}, "space": NUMBERS, "directions": ["minimize"] * 2},
            "cmaes has one objective",
        ),
        (
            {"pruner": {"name": "medin"}, "steps": 9},
            "hydra.sweeper.pruner.name: 'medin' .*did you mean 'median'",
        ),
        ({"pruner": {"name": "median", "warmup": 1}, "steps": 9}, r"pruner \(median\): 'warmup'"),
        ({"pruner": {"name": "median"}}, "median judges a run by its epochs.*needs epochs=2 or more.*'0 epochs'"),
        (
            {"pruner": {"name": "median"}, "steps": 9, "directions": ["minimize"] * 2},
            "median compares one value",
        ),
        (
            {"pruner": {"name": "median", "n_warmup_steps": 9}, "steps": 9},
            "n_warmup_steps: must be at most 8",
        ),
        ({"pruner": {"name": "hyperband", "min_resource": 9}, "steps": 9}, "min_resource: must be at most 8"),
        (
            {"pruner": {"name": "hyperband", "max_resource": 10}, "steps": 9},
            "max_resource: must be at most 9",
        ),
        ({"pruner": {"name": "percentile"}, "steps": 9}, "pruner.percentile: percentile needs it"),
        ({"pruner": {"name": "percentile", "percentile": 120}, "steps": 9}, r"pruner \(percentile\)"),
        ({"pruner": {"name": "patient"}, "steps": 9}, "pruner.patience: patient needs it"),
        (
            {"pruner": {"name": "patient", "patience": 1, "wrapped": {"name": "x"}}, "steps": 9},
            "pruner.name: 'x'",
        ),
        (
            {"pruner": {"name": "threshold"}, "steps": 9},
            r"threshold needs one: hydra.sweeper.pruner.lower=0.2, or upper",
        ),
        (
            {"pruner": {"name": "wilcoxon"}, "replicates": 4},
            "before 4 of them: it needs study.replicates of at least 5",
        ),
        ({"pruner": {"name": "wilcoxon", "p_threshold": 0.01}, "replicates": 7}, "at least 8"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_its_journal_is_made(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_search(tmp_path, **({"space": MIXED} | settings))
    assert not (tmp_path / "journal.log").exists()


@pytest.mark.parametrize("name", ["gp", "cmaes", "qmc", "nsgaii"])
def test_samplers_that_need_every_axis_refuse_conditions(tmp_path: Path, name: str) -> None:
    space = parse({"a": "1,2", "x": "interval(0,1)"}, when={"x": {"a": 1}})
    with pytest.raises(ConfigError, match=f"{name} needs every axis in every trial.*'x'"):
        open_search(tmp_path, space, sampler={"name": name})


def test_another_direction_under_the_same_name_is_refused(tmp_path: Path) -> None:
    open_search(tmp_path, MIXED)
    with pytest.raises(ConfigError, match="study.direction: the study study was begun with .'minimize'."):
        open_search(tmp_path, MIXED, directions=["maximize"])


# The configuration


def test_every_option_offered_is_an_option_of_optunas_class() -> None:
    classes: dict[str, Any] = {
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "qmc": optuna.samplers.QMCSampler,
        "nsgaii": optuna.samplers.NSGAIISampler,
        "median": optuna.pruners.MedianPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "threshold": optuna.pruners.ThresholdPruner,
        "wilcoxon": optuna.pruners.WilcoxonPruner,
    }
    for name, options in {**samplers.OPTIONS, **pruners.OPTIONS}.items():
        if name in classes:
            assert set(options) - {"window"} <= set(inspect.signature(classes[name].__init__).parameters), name


def test_the_hydra_choices_list_exactly_the_options_there_are() -> None:
    assert {name: set(o) for name, o in config.SAMPLERS.items()} == {n: set(o) for n, o in samplers.OPTIONS.items()}
    assert {name: set(o) for name, o in config.PRUNERS.items()} == {n: set(o) for n, o in pruners.OPTIONS.items()}


@pytest.mark.parametrize("name", list(samplers.OPTIONS))
def test_every_sweeper_choice_composes_into_a_search_that_asks(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        overrides = [
            f"hydra/sweeper={name}",
            "hydra/sweeper/pruner=median",
            "+hydra.sweeper.params.x='interval(0,1)'",
        ]
        sweeper = compose("config", overrides, return_hydra_config=True).hydra.sweeper
    GlobalHydra.instance().clear()
    settings: Any = OmegaConf.to_container(sweeper)
    assert settings["_target_"] == "hydra_plugins.fanin_sweeper.sweeper.FaninSweeper"
    space = parse({**settings["params"], "y": "interval(0,1)"})
    search = open_search(tmp_path, space, sampler=settings["sampler"], pruner=settings["pruner"], steps=9)
    assert search.ask() is not None


def test_the_plugin_configuration_imports_nothing_heavy() -> None:
    script = (
        "import sys, hydra_plugins.fanin_sweeper.config\n"
        "print(sorted({'torch', 'optuna', 'mlflow', 'numpy', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
