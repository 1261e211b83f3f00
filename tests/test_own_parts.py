"""docs/own_parts.md holds a project of its own: its files work as they stand there."""

import re
import shutil

import pytest
from conftest import ROOT

from fanin.app import main

PAGE = (ROOT / "docs" / "own_parts.md").read_text()
FILES = dict(re.findall(r"^```\w+\n# (\S+\.(?:py|yaml))\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def place(project, monkeypatch):
    """A project with the page's files beside the shipped ones."""
    monkeypatch.syspath_prepend(str(project))
    for folder in ("conf", "sweeps"):
        (project / folder).unlink()  # a link to ours
        shutil.copytree(ROOT / folder, project / folder)
    for name, text in FILES.items():
        (project / name).write_text(text)
    return project


def test_a_run_of_all_of_the_pages_parts_trains(place, capsys):
    chosen = [name.removesuffix(".yaml").split("/")[1:] for name in FILES if name.startswith("conf/")]
    assert sorted(group for group, _ in chosen) == ["data", "initializer", "model", "optimizer"]
    parts = [f"{group}={choice}" for group, choice in chosen]
    code = main(["train", *parts, "epochs=2", "regularization=dropout", "tracking=none"])
    printed = capsys.readouterr()
    assert code == 0 and "test/accuracy" in printed.out, printed.err


def test_the_pages_study_is_planned(place, capsys):
    assert main(["sweep", "tails", "--dry-run", "tracking=none", "study.preflight=off"]) == 0
    assert "12 variants x 5 replicates = 60" in capsys.readouterr().out
