from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import yaml

from fanin import data
from fanin.errors import ConfigError

CONF = Path(__file__).parent.parent / "conf" / "data"
GROUP = {"shape": [1, 28, 28], "classes": 10, "val": 5, "n_train": None, "scale": "unit"}


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("val", 0, r"data\.val: must be a positive whole number of validation images, got 0"),
        ("val", 2.5, r"data\.val: must be a positive whole number"),
        ("val", True, r"data\.val: must be a positive whole number"),
        ("val", "many", r"data\.val: must be a positive whole number"),
        ("val", 4000, r"data\.val: must leave some of the 4000 training images to train on, got 4000"),
        (
            "n_train",
            3996,
            r"data\.n_train: must be at most 3995 \(4000 training images less 5 for .*got 3996",
        ),
        ("n_train", 0, r"data\.n_train: must be null \(all of them\) or a positive whole number"),
        ("n_train", "all", r"data\.n_train: must be null"),
        ("scale", "units", r"data\.scale: 'units' is not one of: none, standard, unit; did you mean 'unit'"),
        ("scale", None, r"data\.scale: None is not one of"),
        ("shape", [28, 28], r"data\.shape: must be three positive whole numbers"),
        ("shape", [1, 28, 0], r"data\.shape: must be three positive whole numbers"),
        ("shape", 784, r"data\.shape: must be three positive whole numbers"),
        (
            "shape",
            [3, 28, 28],
            r"data\.shape: must be \[1, 28, 28\], the .* of this data set, got \[3, 28, 28\]",
        ),
        ("classes", 1, r"data\.classes: must be a whole number of at least 2, got 1"),
        ("classes", 11, r"data\.classes: must be 10 here, got 11"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(key, value, message):
    with pytest.raises(ConfigError, match=message):
        data.check(data.mnist_5k, **(GROUP | {key: value}))


def test_a_target_that_is_not_callable_is_refused():
    with pytest.raises(ConfigError, match=r"data\._target_: must name a callable, got 3"):
        data.check(3, **GROUP)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_choice_in_conf_names_a_loader_that_holds_what_it_says(path, tmp_path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 15
    group = yaml.safe_load(text)
    loader = resolve_name(group.pop("_target_"))
    assert callable(loader)
    if "root" in group:
        group["root"] = str(tmp_path)
    if path.stem == "own":
        part = np.zeros((600, 28, 28), dtype=np.uint8), np.arange(600) % 10
        group["path"] = str(tmp_path / "own.npz")
        np.savez(group["path"], x_train=part[0], y_train=part[1], x_test=part[0], y_test=part[1])
    outline = data.check(loader, **group)
    assert list(outline.shape) == group["shape"] and outline.classes == group["classes"]
