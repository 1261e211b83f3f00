"""What is stopped early: by Optuna's pruners, by epochs and by replicates."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import NUMBERS, open_search

from fanin.sweep.search import Search
from fanin.sweep.trial import Trial


def curve(quality: float, epoch: int) -> float:
    """An accuracy that rises to `quality`."""
    return quality * (1 - 0.5**epoch)


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_pruning_finds_the_best_variant_with_at_most_half_of_the_epochs(tmp_path: Path, pruner: str) -> None:
    epochs = 16
    qualities = [0.95 if i % 10 == 9 else 0.2 + 0.004 * ((7 * i) % 50) for i in range(60)]
    search = open_search(
        tmp_path,
        {"i": f"range(0,{len(qualities)})"},
        directions=["maximize"],
        pruner={"name": pruner},
        steps=epochs,
    )
    spent = 0
    for i, quality in enumerate(qualities):
        trial = search.ask({"i": str(i)})
        assert trial is not None
        for epoch in range(1, epochs + 1):
            spent += 1
            if search.report(trial.number, epoch, curve(quality, epoch)):
                search.tell(trial.number, state="pruned")
                break
        else:
            search.tell(trial.number, quality)
    assert search.best is not None and search.best.scores == (0.95,)
    assert spent <= len(qualities) * epochs / 2
    assert sum(t.state == "pruned" for t in search.trials) > 20


def test_hyperband_prunes_before_any_trial_is_complete_because_it_knows_the_epochs(tmp_path: Path) -> None:
    search = open_search(tmp_path, NUMBERS, pruner={"name": "hyperband"}, steps=9)
    said = [search.report(ask(search).number, 1, float(loss)) for loss in range(12)]
    assert any(said) and not said[0]


def prepared(tmp_path: Path, *, direction: str = "maximize", **settings: Any) -> Search:
    """A search whose five earlier trials reported 0.5 at every epoch."""
    search = open_search(tmp_path, {"x": "interval(0,1)"}, directions=[direction], steps=10, **settings)
    for _ in range(5):
        trial = search.ask()
        assert trial is not None
        for epoch in range(1, 11):
            search.report(trial.number, epoch, 0.5)
        search.tell(trial.number, 0.5)
    return search


def ask(search: Search) -> Trial:
    trial = search.ask()
    assert trial is not None
    return trial


@pytest.mark.parametrize(("direction", "worse"), [("maximize", 0.4), ("minimize", 0.6)])
def test_the_median_pruner_ends_what_is_worse_than_half_of_the_others(
    tmp_path: Path, direction: str, worse: float
) -> None:
    search = prepared(tmp_path, direction=direction, pruner={"name": "median", "n_warmup_steps": 2})
    bad, good = ask(search), ask(search)
    assert [search.report(bad.number, epoch, worse) for epoch in (1, 2, 3)] == [False, True, True]
    assert not any(search.report(good.number, epoch, 1.0 - worse) for epoch in range(1, 11))


def test_a_decision_to_prune_survives_a_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"pruner": {"name": "median", "n_warmup_steps": 2}}
    bad = ask(search := prepared(tmp_path, **settings))
    assert search.report(bad.number, 1, 0.6) is False
    assert search.report(bad.number, 2, 0.4) is False  # its best so far is above the median
    assert search.report(bad.number, 3, math.nan) is False
    worst = ask(search)
    assert [search.report(worst.number, epoch, 0.1) for epoch in (1, 2)] == [False, True]
    again = open_search(tmp_path, {"x": "interval(0,1)"}, directions=["maximize"], steps=10, **settings)
    assert [t.number for t in again.reap()] == [bad.number, worst.number]
    assert again.report(bad.number, 1, 0.6) is False and again.report(bad.number, 2, 0.4) is False
    assert [again.report(worst.number, epoch, 0.1) for epoch in (1, 2, 3)] == [False, True, True]
    again.tell(worst.number, state="pruned")
    assert again.trials[-1].state == "pruned" and again.trials[-1].reports == {1: 0.1, 2: 0.1, 3: 0.1}


def test_patience_runs_out_without_progress_and_thresholds_are_bounds(tmp_path: Path) -> None:
    search = prepared(tmp_path, pruner={"name": "patient", "patience": 2})
    trial = ask(search)
    said = [search.report(trial.number, epoch, 0.3 - 0.01 * epoch) for epoch in range(1, 6)]
    assert said == [False, False, False, True, True]
    other = prepared(tmp_path / "t", pruner={"name": "threshold", "lower": 0.2})
    low, high = ask(other), ask(other)
    assert other.report(low.number, 1, 0.1) and not other.report(high.number, 1, 0.3)


def test_wilcoxon_prunes_over_replicates_and_keeps_the_mean_as_an_estimate(tmp_path: Path) -> None:
    search = open_search(
        tmp_path, {"x": "interval(0,1)"}, directions=["maximize"], pruner={"name": "wilcoxon"}, replicates=8
    )
    best = ask(search)
    for replicate in range(8):
        assert not search.report(best.number, replicate, 0.9 + 0.001 * replicate)
    search.tell(best.number, 0.9035)
    bad, same, diverged = ask(search), ask(search), ask(search)
    said = [search.report(bad.number, replicate, 0.5 - 0.01 * replicate) for replicate in range(4)]
    assert said == [False, False, False, True]  # 2^-4 < 0.1 < 2^-3
    assert not any(search.report(same.number, r, 0.9 + 0.001 * r + (-1) ** r * 0.0005 * (r + 1)) for r in range(8))
    assert not any(search.report(diverged.number, r, math.nan) for r in range(8))
    search.tell(bad.number, 0.485, state="pruned")
    pruned = search.trials[bad.number]
    assert (pruned.state, pruned.scores) == ("pruned", (0.485,))
    assert search.best is not None and search.best.number == best.number
    assert search.study.trials[bad.number].state == optuna.trial.TrialState.COMPLETE  # so that samplers learn from it
