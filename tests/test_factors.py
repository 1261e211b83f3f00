"""Which factor matters: from the runs of a complete grid, of a grid with gaps, and of a search."""

import itertools
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fanin.app import main
from fanin.sweep.factors import Factors, Share, render, render_markdown, weigh
from fanin.sweep.grammar import parse
from fanin.sweep.search import Search


def frame(points: list[dict[str, Any]], value: Callable[..., float], replicates: int = 1) -> pd.DataFrame:
    """Runs as `fanin.runs` gives them; value(point, replicate) is the metric `score`, NaN if it diverged."""
    rows = []
    for number, point in enumerate(points):
        for replicate in range(replicates):
            score = value(point, replicate)
            state = {"status": "FINISHED", "reason": None, "diverged": math.isnan(score), "seconds": 1.0}
            rows.append({"variant": str(number), "replicate": replicate, **point, **state, "score": score})
    return pd.DataFrame(rows)


def full(**levels: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(levels, cell, strict=True)) for cell in itertools.product(*levels.values())]


def judge(runs: pd.DataFrame, *by: str, **settings: Any) -> Factors | None:
    return weigh(runs, by=by, **{"metric": "score", "direction": "maximize"} | settings)


def shares(factors: Factors | None) -> dict[str, float]:
    assert factors is not None
    return {share.factor: share.share for share in factors.shares}


def test_a_complete_grid_is_split_exactly_and_into_everything() -> None:
    # effects by hand: a +-2 (variance 4), b +-1.5 (2.25), both +-1 (1), the seed +-0.5 (0.25), nothing else
    cells = {("p", 1): 1.0, ("p", 2): 2.0, ("q", 1): 3.0, ("q", 2): 8.0}
    runs = frame(full(a=["p", "q"], b=[1, 2]), lambda p, r: cells[p["a"], p["b"]] + r - 0.5, replicates=2)
    found = judge(runs, "a", "b")
    total = 4 + 2.25 + 1 + 0.25
    assert shares(found) == pytest.approx(
        {"a": 4 / total, "b": 2.25 / total, "a x b": 1 / total, "noise": 0.0,
         "seed (common to all variants)": 0.25 / total}
    )  # fmt: skip
    assert found is not None and "score over all 8 runs (exact)" in found.what and not found.note
    assert sum(shares(found).values()) == pytest.approx(1.0)


def test_small_interactions_are_summed_up_and_one_replicate_cannot_tell_noise() -> None:
    def value(point: dict[str, int], _: int) -> float:
        return 10 * point["a"] + 5 * point["b"] + 3 * point["c"] + 0.1 * point["a"] * point["b"] * point["c"]

    found = judge(frame(full(a=[0, 1], b=[0, 1], c=[0, 1]), value), "a", "b", "c")
    assert [*shares(found)][:3] == ["a", "b", "c"] and [*shares(found)][3:] == ["other interactions"]
    assert found is not None and found.note.startswith("One replicate")
    assert "beyond chance" not in render(found)


def test_keys_that_walk_in_step_are_one_factor() -> None:
    points = [{"a": a, "lr": {"p": 0.1, "q": 0.2}[a], "b": b} for a in "pq" for b in (1, 2)]
    found = judge(frame(points, lambda p, r: p["b"] + 10 * p["lr"]), "a", "lr", "b")
    assert [*shares(found)] == ["a & lr", "b", "a & lr x b"]


def test_a_diverged_run_counts_as_it_does_in_the_leaderboard() -> None:
    points = full(a=[1, 2], b=[1, 2])
    runs = frame(points, lambda p, r: math.nan if p["a"] == 2 else 0.9).rename(columns={"score": "test/accuracy"})
    chance = frame(points, lambda p, r: 0.25 if p["a"] == 2 else 0.9)
    found = judge(runs, "a", "b", metric="test/accuracy", classes=4)
    assert shares(found) == pytest.approx(shares(judge(chance, "a", "b")))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda runs: runs.iloc[:-1], id="a gap"),
        pytest.param(lambda runs: runs.assign(b=1), id="one factor only"),
        pytest.param(lambda runs: runs.assign(status="KILLED"), id="nothing finished"),
        pytest.param(lambda runs: runs.drop(columns="score"), id="no such metric"),
    ],
)
def test_what_cannot_be_told_is_not_said(spoil: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    runs = frame(full(a=[1, 2, 3], b=[1, 2, 3]), lambda p, r: p["a"])
    assert judge(runs, "a", "b") is not None
    assert judge(spoil(runs), "a", "b") is None


def searched(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    rates, widths = 10 ** draw.uniform(-4, -1, count), draw.integers(8, 64, count)
    acts = draw.choice(["relu", "tanh"], count)
    return [{"lr": r, "width": w, "act": a} for r, w, a in zip(rates, widths, acts, strict=True)]


def hill(point: dict[str, Any], _: int) -> float:
    """The learning rate decides, on its logarithm; the activation matters a little, the width not at all."""
    return -((math.log10(point["lr"]) + 2.2) ** 2) + 0.2 * (point["act"] == "relu")


def test_in_a_search_the_factor_that_decides_comes_first() -> None:
    found = judge(frame(searched(60), hill), "lr", "width", "act")
    assert found is not None and [*shares(found)][0] == "lr" and shares(found)["lr"] > 0.6
    assert sum(shares(found).values()) == pytest.approx(1.0) and "PED-ANOVA" in found.what
    rough = judge(frame(searched(25), hill), "lr", "width", "act")
    assert rough is not None and rough.note.startswith("A rough estimate")
    assert judge(frame(searched(19), hill), "lr", "width", "act") is None
    # worse is better: what decides is the same
    turned = judge(frame(searched(60), lambda p, r: -hill(p, r)), "lr", "width", "act", direction="minimize")
    assert shares(turned) == pytest.approx(shares(found))


def test_runs_alone_say_nearly_what_the_search_itself_would(tmp_path: Path) -> None:
    space = parse({"lr": "tag(log,interval(1e-4,1e-1))", "width": "int(interval(8,63))", "act": "relu,tanh"})
    search = Search(
        space, sampler={"name": "random"}, directions=["maximize"], storage=tmp_path / "journal.log",
        name="study", seed=1,
    )  # fmt: skip
    points = []
    for _ in range(60):
        trial = search.ask()
        assert trial is not None
        text = trial.values
        point = {"lr": float(text["lr"]), "width": int(text["width"]), "act": text["act"]}
        points.append(point)
        search.tell(trial.number, hill(point, 0))
    runs = frame(points, hill)
    exact, guessed = (judge(runs, "lr", "width", "act", search=one) for one in (search, None))
    assert shares(exact) == pytest.approx(shares(guessed), abs=0.1)


def test_the_table_is_plain_text_and_markdown() -> None:
    both = (Share("lr", 0.9, 0.88), Share("act x lr", 0.1, -0.0001))
    found = Factors("share of x (exact)", both, "A note.")
    assert render(found).splitlines() == [
        "Which factor matters: share of x (exact)", "",
        "factor    share  beyond chance",
        "--------  -----  -------------",
        "lr        90.0%          88.0%",
        "act x lr  10.0%           0.0%", "",
        "A note.",
    ]  # fmt: skip
    assert render_markdown(found).splitlines()[2:5] == [
        "| factor | share | beyond chance |", "| --- | ---: | ---: |", "| lr | 90.0% | 88.0% |",
    ]  # fmt: skip


def test_a_sweep_and_fanin_results_say_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model=softmax", "data=digits", "epochs=1", "stats=off", "study.name=two", "study.replicates=2"]
    assert main(["train", "-m", *small, "optimizer.lr=0.0001,0.02", "initializer=zeros,he_normal"]) == 0
    first = capsys.readouterr().out
    assert main(["results", "two"]) == 0
    second = capsys.readouterr().out
    table = first[first.index("Which factor matters") : first.index("\nThis session")].strip()
    assert "optimizer.lr" in table and "initializer" in table and table in second
    with sqlite3.connect(project / "mlflow.db") as database:  # and so does the study's page in MLflow
        notes = database.execute("select value from tags where key = 'mlflow.note.content'").fetchall()
    database.close()
    assert any("Which factor matters" in note for (note,) in notes)
