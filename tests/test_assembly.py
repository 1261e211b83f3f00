"""Assembled configurations against those that Hydra composes itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fanin.sweep.compose import Composer

CONF = Path(__file__).parent.parent / "conf"


@contextmanager
def composer(conf: Path, name: str = "config", *, own: bool = True, fixed: tuple[str, ...] = ()) -> Iterator[Composer]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        yield Composer(GlobalHydra.instance().config_loader(), config_name=name, fixed=fixed, own=own)


def hydras(overrides: list[str], name: str = "config", *, resolve: bool = True) -> dict[str, Any]:
    """What Hydra composes, by its public function."""
    config = OmegaConf.to_container(compose(name, overrides=overrides), resolve=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key != "hydra"}


def count_asked(one: Composer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    asked, ask = [], one._ask_hydra
    monkeypatch.setattr(one, "_ask_hydra", lambda overrides: asked.append(overrides) or ask(overrides))
    return asked


def test_combinations_equal_hydras_and_need_one_composition_for_each_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = {
        "initializer": ["he_normal", "normal_002"],
        "optimizer": ["sgd", "adam"],
        "regularization": ["none", "dropout", "[dropout,batchnorm]"],
    }
    with composer(CONF, fixed=("model=mlp_narrow", "optimizer.lr=0.5")) as one:
        asked = count_asked(one, monkeypatch)
        one.compose()
        for choices in product(*axes.values()):
            overrides = [f"{group}={choice}" for group, choice in zip(axes, choices, strict=True)]
            found = one.compose([*overrides, "epochs=3"])
            assert found.config == hydras([*one.fixed, *overrides, "epochs=3"])
            assert found.choices["optimizer"] == choices[1]
        assert len(asked) == 1 + 2 + 2 + 3 + 1  # the base, each choice, and the default keys


@pytest.mark.parametrize("group", ["hardware", "scheduler", "tracking"])
def test_every_choice_beside_another_equals_hydras(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with composer(CONF) as one:
        for name in one.options(group):
            overrides = [f"{group}={name}", "optimizer=sgd"]
            assert one.compose(overrides).config == hydras(overrides)


FILES = {
    "config.yaml": "defaults: [_self_, a: one, b: one, extra: none]\nshared: 0",
    "paired.yaml": "defaults: [_self_, a: one, b: one, extra: none, optional pair: '${a}_${b}']\nshared: 0",
    "a/one.yaml": "x: 1",
    "a/two.yaml": "x: 2\nlinked: ${b.y}",
    "a/global.yaml": "# @package _global_\na: {x: 3}\nshared: 3",
    "a/masked.yaml": "# @package _global_\na: {x: 5}\nb: {y: 9}",  # shows where b does not set y
    "a/nested.yaml": "defaults: [/extra@b.more: some]\nx: 4",
    "b/one.yaml": "y: 1",
    "b/two.yaml": "y: 2",
    "b/other.yaml": "w: 1",
    "b/global.yaml": "# @package _global_\nb: {y: 3}\nshared: 5",
    "extra/none.yaml": "{}",
    "extra/some.yaml": "z: 1",
    "pair/two_two.yaml": "both: true",
}


@pytest.mark.parametrize(("name", "fixed"), [("config", ()), ("config", ("b=global",)), ("paired", ("a=two",))])
def test_choices_that_reach_beyond_their_group_are_composed_by_hydra(
    name: str, fixed: tuple[str, ...], tmp_path: Path
) -> None:
    for file, text in FILES.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    with composer(tmp_path, name, own=False, fixed=fixed) as one:
        for a, b in product(["one", "two", "global", "masked", "nested"], ["one", "two", "global", "other"]):
            overrides = [f"a={a}", f"b={b}"]
            expected = hydras([*fixed, *overrides], name, resolve=False)
            assert one.compose(overrides).config == expected, overrides
