"""Composition against Hydra's own, which composes each set of overrides in full and from nothing."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from fanin.errors import ConfigError
from fanin.sweep.compose import Composer
from fanin.sweep.launch import OWN_CONFIG, project_loader

CHOICES = {
    "model": ["mlp", "cnn_small", "softmax", "resnet18"],
    "initializer": ["zeros", "normal_002", "xavier_uniform", "torch_default"],
    "regularization": ["none", "dropout", "[dropout,l1]", "[l1,dropout]", "[weight_decay,early_stopping]"],
    "optimizer": ["sgd", "nesterov", "adamw", "lbfgs"],
    "scheduler": ["none", "onecycle", "plateau"],
    "data": ["mnist_5k", "cifar10", "digits"],
    "hardware": ["auto", "cpu"],
    "tracking": ["none", "local"],
    "+sweeps": ["initializers", "learning_rate", "race"],
}
VALUES = {
    "epochs": ["3", "1e1"],
    "seed": ["7"],
    "optimizer.lr": ["0.5", "1e-3", "${batch_size}"],
    "regularization.dropout": ["0.25", "0"],
    "regularization.max_norm": ["null", "2.5"],
    "model.activation": ["tanh", "'gelu'"],
    "+model.extra": ["[1,2,{a: b}]", "true"],
    "++initializer.gain": ["2", "1.5"],
    "study.replicates": ["4"],
    "study.racing": ["{min_replicates: 2}", "null"],
    "study.question": ["'Which, of all?'", "why"],
    "+study.when": ["{optimizer.lr: {optimizer: [sgd, adam]}}"],
    "data.n_train": ["100"],
    "hardware.threads": ["2"],
    "~optimizer.batch": [""],
}


@pytest.fixture
def loader(project) -> Iterator[tuple[ConfigLoader, list[str]]]:
    with project_loader() as found:
        yield found


def hydras(loader: ConfigLoader, overrides: list[str]) -> Any:
    config = loader.load_configuration(OWN_CONFIG, overrides, run_mode=RunMode.RUN)
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), resolve=True)
    choices = {k: str(v) for k, v in config.hydra.runtime.choices.items() if "/" not in k and k != "sweeps"}
    return plain, choices


def drawn(draw: random.Random) -> list[str]:
    """Some choices, some values, in any order; a group of which there is no choice among them."""
    groups = draw.sample(sorted(CHOICES), draw.randint(0, 5))
    keys = draw.sample(sorted(VALUES), draw.randint(0, 6))
    lines = [f"{group}={draw.choice(CHOICES[group])}" for group in groups]
    lines += [f"{key}={draw.choice(VALUES[key])}".removesuffix("=") for key in keys]
    draw.shuffle(lines)
    return lines


@pytest.mark.parametrize("seed", range(30))
def test_a_composition_equals_hydras_for_any_overrides_fixed_or_varied(loader, seed):
    loader, found = loader
    draw = random.Random(seed)
    fixed = [*found, *drawn(draw)]
    keys = {line.partition("=")[0].strip("+~") for line in fixed}
    composer = Composer(loader, config_name=OWN_CONFIG, fixed=fixed)
    if any(line.startswith("~") for line in fixed):
        with pytest.raises(ConfigError, match="optimizer.batch: is needed"):
            composer.compose()
        return
    for _ in range(3):  # by the same composer: what it keeps from one must not show in the next
        varied = [line for line in drawn(draw) if line.partition("=")[0].strip("+~") not in keys]
        if any(line.startswith("~") for line in varied):
            continue
        try:
            expected, choices = hydras(loader, [*fixed, *varied])
        except ConfigCompositionException:  # softmax has no activation to override
            with pytest.raises(ConfigError, match="no such key"):
                composer.compose(varied)
            continue
        composed = composer.compose(varied)
        assert composed.config == expected, varied
        applied = sorted(expected["regularization"]["applied"])
        assert composed.choices == choices | {"regularization": "+".join(applied) or "none"}


def test_a_configuration_is_nobody_elses_to_change(loader):
    loader, found = loader
    composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
    composer.compose(["epochs=3"]).config["model"]["widths"].append(7)
    assert composer.compose(["epochs=3"]).config["model"]["widths"] == [256, 256]
    assert composer.compose().config["epochs"] == 10


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("none", "none"),
        ("dropout", "dropout"),
        ("[dropout,batchnorm]", "batchnorm+dropout"),
        ("[batchnorm,dropout]", "batchnorm+dropout"),
        ("[l1]", "l1"),
        ("[]", "none"),
    ],
)
def test_a_list_of_choices_is_named_by_what_it_applies_in_any_order(loader, text, name):
    loader, found = loader
    composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
    assert composer.compose([f"regularization={text}"]).choices["regularization"] == name


def test_environment_variables_are_resolved_when_composing(loader, monkeypatch):
    loader, found = loader
    monkeypatch.setenv("FANIN_DATA", "somewhere")
    composer = Composer(loader, config_name=OWN_CONFIG, fixed=[*found, "data=mnist"])
    assert composer.compose().config["data"]["root"] == "somewhere"
    monkeypatch.delenv("FANIN_DATA")
    assert composer.compose().config["data"]["root"] == "data"


def test_a_key_in_a_file_of_conf_is_checked_like_one_on_the_command_line(project):
    files = project / "conf"
    original = files.resolve()
    files.unlink()
    (project / "conf" / "optimizer").mkdir(parents=True)
    for path in original.iterdir():
        if path.name != "optimizer":
            (files / path.name).symlink_to(path)
    (files / "optimizer" / "adam.yaml").symlink_to(original / "optimizer" / "adam.yaml")
    (files / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    with project_loader() as (loader, found):
        composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
        with pytest.raises(ConfigError, match="optimizer.batch: is needed; see the other files in conf/opt"):
            composer.compose(["optimizer=mine"])
        assert composer.compose(["optimizer=mine", "+optimizer.batch=mini"]).config["optimizer"]["lr"] == 0.1
