"""From arguments to a study: what identifies it and its variants, and what is refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fanin.errors import ConfigError
from fanin.sweep.identity import difference
from fanin.sweep.launch import OWN_CONFIG, project_loader
from fanin.sweep.reading import Settings, read_study
from fanin.sweep.study import Budget, Study, objectives

Read = Callable[..., Study]


@pytest.fixture
def read(project) -> Iterator[Read]:
    """Reads the study of some arguments."""
    with project_loader() as (loader, found):

        def read(*arguments: str, params: Any = None, sampler: str = "grid", **settings: Any) -> Study:
            budget = settings.pop("budget", Budget())
            pruner = settings.pop("pruner", None)
            return read_study(
                loader,
                config_name=OWN_CONFIG,
                hydra_overrides=found,
                arguments=list(arguments),
                settings=Settings(params=params, sampler={"name": sampler}, pruner=pruner, budget=budget),
            )

        yield read


def key_of(study: Study, **values: str) -> str:
    return study.variant({key.replace("__", "."): text for key, text in values.items()}).key


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.root=elsewhere"],
        ["data.download=false"],
        ["hardware=cpu"],
        ["hardware.workers=2"],
        ["hardware.threads=2"],
        ["hardware.checkpoint=0"],
        ["tracking=none"],
        ["replicate=3"],
        ["study.question=why"],
        ["study.replicates=4"],
        ["study.metric=val/loss"],
        ["optimizer.lr=0.001"],  # its default
        ["initializer=he_normal"],
    ],
)
def test_where_and_how_a_run_is_made_does_not_change_its_identity(read, arguments):
    assert key_of(read("data=mnist", *arguments)) == key_of(read("data=mnist"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizer.lr=0.002"],
        ["optimizer=adamw"],
        ["initializer=he_uniform"],
        ["initializer.bias=0.1"],
        ["model.widths=[256]"],
        ["regularization=l1"],
        ["epochs=11"],
        ["batch_size=99"],
        ["seed=1"],
        ["data=fashion_mnist"],
        ["data.n_train=1000"],
        ["data.val=501"],
        ["data.scale=standard"],
        ["hardware.precision=bf16"],
        ["test_weights=best"],
    ],
)
def test_whatever_changes_the_numbers_changes_the_identity(read, arguments):
    assert key_of(read("data=mnist", *arguments)) != key_of(read("data=mnist"))


def test_a_point_reached_by_other_overrides_is_the_same_variant(read):
    swept = read("optimizer.lr=0.1,1e-3", "initializer=zeros,he_normal")
    assert key_of(swept, optimizer__lr="1e-3") == key_of(read()) == key_of(swept)
    assert key_of(swept, optimizer__lr="0.1") == key_of(read("optimizer.lr=1e-1"))
    assert key_of(read("regularization=[dropout,l1]")) == key_of(read("regularization=[l1,dropout]"))


def test_a_variant_is_named_by_what_is_swept_as_it_was_resolved(read):
    study = read("regularization=none,[dropout,batchnorm]", "optimizer.lr=1e-3,0.1", "model.widths=[9],[9,8]")
    point = {"regularization": "[dropout,batchnorm]", "optimizer.lr": "1e-3", "model.widths": "[9,8]"}
    variant = study.variant(point)
    assert variant.name == "regularization=batchnorm+dropout optimizer.lr=0.001 model.widths=9-8"
    assert variant.shown["optimizer.lr"] == 0.001 and variant.shown["model.widths"] == [9, 8]
    spec = study.spec(variant, 2)
    assert spec["key"] == f"{variant.key}-r2" and spec["config"]["replicate"] == 2
    assert spec["choices"]["regularization"] == "batchnorm+dropout"


def test_a_study_is_named_by_its_file_or_by_the_user_or_by_its_question(read):
    assert read("+sweeps=race").name == "race"
    assert read("+sweeps=race", "study.name=mine").name == "mine"
    one, same, other = (read(text).name for text in ("seed=1,2", "seed=1,2", "seed=1,3"))
    assert one == same != other and one.startswith("adhoc-")


def test_the_identity_tells_questions_apart_and_nothing_else(read):
    first = read("+sweeps=race").identity()
    assert read("+sweeps=race", "hardware.workers=1", "tracking=none").identity() == first
    assert replace(read("+sweeps=race"), sampler={"name": "grid", "window": 200}).identity() == first
    changes = difference(first, read("+sweeps=race", "epochs=3", "study.replicates=7").identity())
    assert [line.split(":")[0] for line in changes] == ["config.epochs", "replicates"]
    assert changes[1].endswith("-> 7")


def test_the_command_line_wins_over_the_file_and_one_value_is_no_axis(read):
    study = read("initializer=zeros", params={"initializer": "ones,zeros", "epochs": 3, "seed": "1,2"})
    assert study.swept == ["seed"] and study.space.size == 2
    assert study.base.config["epochs"] == 3 and study.base.choices["initializer"] == "zeros"
    assert study.seed == 0 and read("seed=5").seed == 5


@pytest.mark.parametrize(
    ("metric", "given", "direction"),
    [
        ("val/accuracy", None, "maximize"),
        ("test/loss", None, "minimize"),
        ("seconds", None, "minimize"),
        ("train/loss", "minimize", "minimize"),
        ("signal/layers.0/forward_gain", "maximize", "maximize"),
    ],
)
def test_a_metric_has_a_better_direction(metric, given, direction):
    (objective,) = objectives(metric, given)
    assert (objective.metric, objective.direction) == (metric, direction)
    assert objective.sign == {"maximize": 1, "minimize": -1}[direction]


@pytest.mark.parametrize(
    ("metric", "direction", "message"),
    [
        ("val/loss", "maximize", "study.direction: val/loss is better the other way"),
        ("val/accuracy", "minimize", "study.direction: val/accuracy is better the other way"),
        ("val/f1", None, "study.metric: 'val/f1' is not one of"),
        ("accuracy", None, "study.metric: 'accuracy' .*did you mean '.*/accuracy'"),
        ("grad/layers.0/norm", None, "study.direction: must be maximize or minimize for grad"),
        ("val/loss", "down", "study.direction: 'down' is not one of"),
        (["val/loss", "seconds"], ["minimize"], "study.direction: one direction for each of the 2"),
        ([], None, "study.direction"),
        (None, None, "study.metric: 'None'"),
    ],
)
def test_a_metric_that_is_none_and_a_direction_that_is_wrong_are_refused(metric, direction, message):
    with pytest.raises(ConfigError, match=message):
        objectives(metric, direction)


def test_several_metrics_have_a_direction_each(read):
    study = read("study.metric=[val/accuracy,seconds]", params={"seed": "1,2"}, sampler="nsgaii")
    assert [one.direction for one in study.objectives] == ["maximize", "minimize"]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["study.metric=[val/loss,seconds]"], {}, "study.metric: a grid has one"),
        (["study.on_divergence=no"], {}, "study.on_divergence: 'no'"),
        (["study.racing={confidnce: 0.9}"], {}, "study.racing: 'confidnce'.*did you mean 'confidence'"),
        (["seed=1,2"], {"budget": Budget(trials=3)}, "max_trials: a grid runs all"),
        ([], {"sampler": "tpe"}, "hydra.sweeper.params: a search needs a space"),
        (["seed=1,2"], {"sampler": "tpe", "budget": Budget(seconds=0)}, "timeout: must be null or > 0"),
        (["seed=1,2"], {"pruner": {"name": "median"}, "sampler": "tpe", "budget": Budget(epochs=-1)}, "epochs"),
        (["seed=1,2", "study.metric=test/loss"], {"pruner": {"name": "median"}}, "study.metric: .*known at the"),
        (["seed=1,2", "epochs=1"], {"pruner": {"name": "median"}}, "hydra.sweeper.pruner"),
    ],
)
def test_what_cannot_work_is_refused_when_the_study_is_read(read, arguments, settings, message):
    with pytest.raises(ConfigError, match=message):
        read(*arguments, **settings)
