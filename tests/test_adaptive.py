"""The plan of a search, played with made-up outcomes: what is tried, what of it is repeated under which
seeds, and that a kill at any moment neither loses nor repeats a run."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import METRIC, Edited, Play, Result, make_study, open_folder

from fanin.errors import ConfigError
from fanin.sweep.adaptive import SearchPlan
from fanin.sweep.planning import open_search
from fanin.sweep.study import Budget, Objective, Study, Variant

PARAMS = {"a": "interval(0,1)", "b": "int(interval(1,9))"}
RANDOM = {"name": "random"}


def accuracy(values: dict[str, Any], replicate: int) -> float:
    return 1 - (values["a"] - 0.4) ** 2 - values["b"] / 100 + 0.001 * replicate


def search_study(params: Mapping[str, Any] = PARAMS, *, trials: int | None = 6, **fields: Any) -> Study:
    return make_study(params, **{"sampler": RANDOM, "budget": Budget(trials=trials)} | fields)


def open_plan(study: Study, tmp_path: Path, *, extend: bool = False, compose: Any = None) -> SearchPlan:
    """As after the start of a coordinator: the folder of a dead one is taken over."""
    folder = open_folder(tmp_path)
    folder.close()
    search = open_search(study, folder, defaults=study.default, extend=extend)
    return SearchPlan(study, search, folder, compose=compose or study.variant)


def ended(plan: SearchPlan) -> dict[str, float]:
    """Run name -> final value."""
    return {f"{one.variant.name} r{one.replicate}": one.result.metrics[METRIC] for one in plan.ended()}


def runs_of(plan: SearchPlan) -> list[list[int]]:
    """The replicates that each trial got, in the order of the trials."""
    found: dict[str, list[int]] = {}
    for one in plan.ended():
        found.setdefault(one.variant.key, []).append(one.replicate)
    keys = [plan.compose(trial.values).key for trial in plan.search.trials]
    return [sorted(found[key]) for key in keys]


def scores(plan: SearchPlan) -> list[float]:
    """What the search was told, sorted."""
    return sorted(trial.scores[0] for trial in plan.search.trials if trial.scores)


# ---- what is tried ----


def test_the_default_comes_first_and_a_trial_is_worth_the_mean_of_its_replicates(tmp_path: Path) -> None:
    plan = open_plan(search_study(replicates=3, trials=4), tmp_path)
    assert plan.total == 12 and plan.known == 0
    made = Play(accuracy).run(plan)
    assert made.names[:3] == ["a=1 b=1 r0", "a=1 b=1 r1", "a=1 b=1 r2"]  # as the base configuration has it
    assert plan.done and len(made.names) == 12 and len(set(made.names)) == 12
    for trial in plan.search.trials:
        values = {key: float(text) for key, text in trial.values.items()}
        mean = sum(accuracy(values, replicate) for replicate in range(3)) / 3
        assert trial.scores == pytest.approx((mean,)) and trial.state == "complete"
    assert plan.best == scores(plan)[-1] == max(filter(None, made.told))


def test_a_default_that_lies_outside_the_space_is_not_tried(tmp_path: Path) -> None:
    study = search_study({"a": "interval(2,3)", "c": "y,z"}, trials=2)
    made = Play(lambda values, _: 0.5).run(open_plan(study, tmp_path))
    assert len(made.names) == 2 and not any("a=1 " in name or "c=x" in name for name in made.names)


def test_a_slow_run_keeps_nobody_waiting(tmp_path: Path) -> None:
    plan = open_plan(search_study(trials=5), tmp_path)
    slow = plan.next()
    assert slow is not None
    made = Play(accuracy).run(plan)
    assert len(made.names) == 4 and not plan.done
    assert slow.name not in made.names


def test_a_search_of_few_points_ends_when_all_are_tried(tmp_path: Path) -> None:
    for workers in (1, 3):
        plan = open_plan(search_study({"b": "1,2,3", "c": "x,y"}, trials=None), tmp_path / str(workers))
        assert plan.total is None
        made = Play(lambda values, _: 0.5, workers=workers).run(plan)
        assert sorted(made.names) == sorted(f"b={b} c={c} r0" for b in (1, 2, 3) for c in "xy") and plan.done


def test_conditional_axes_are_asked_for_where_they_exist(tmp_path: Path) -> None:
    params = {"c": "x,y", "a": "interval(0,1)"}
    study = search_study(params, when={"a": {"c": ["y"]}}, trials=8, sampler={"name": "tpe"})
    plan = open_plan(study, tmp_path)
    Play(lambda values, _: 0.5 + (values["c"] == "y") * values["a"] / 2).run(plan)
    points = [trial.values for trial in plan.search.trials]
    assert {"c": "x"} in points and sum(set(point) == {"a", "c"} for point in points) == len(points) - 1
    assert all(point["c"] == "y" for point in points if "a" in point)


def test_two_trials_of_one_configuration_share_its_runs(tmp_path: Path) -> None:
    study = search_study({"a": "0.1,0.2,0.3"}, trials=None, replicates=2)

    def compose(values: Mapping[str, str]) -> Variant:
        return study.variant({"a": "0.1" if values["a"] == "0.2" else values["a"]})

    for workers in (1, 6):
        plan = open_plan(study, tmp_path / str(workers), compose=compose)
        made = Play(lambda values, replicate: values["a"] + replicate / 10, workers=workers).run(plan)
        assert sorted(made.names) == ["a=0.1 r0", "a=0.1 r1", "a=0.3 r0", "a=0.3 r1"]
        told = {trial.values["a"]: trial.scores for trial in plan.search.trials}
        assert {text: pytest.approx(score) for text, score in told.items()} == {
            "0.1": (0.15,), "0.2": (0.15,), "0.3": (0.35,),
        }  # fmt: skip


def test_a_point_that_cannot_be_composed_is_named_and_the_search_goes_on(tmp_path: Path) -> None:
    study = search_study({"b": "1,2,3"}, trials=None)

    def compose(values: Mapping[str, str]) -> Variant:
        if values["b"] == "2":
            raise ConfigError("b: 2 does not go with c")
        return study.variant(values)

    plan = open_plan(study, tmp_path, compose=compose)
    made = Play(lambda values, _: 0.5).run(plan)
    assert sorted(made.names) == ["b=1 r0", "b=3 r0"] and plan.done
    assert plan.refused == {"b=2": "b: 2 does not go with c"}
    assert {t.values["b"]: t.state for t in plan.search.trials}["2"] == "failed"


def test_several_objectives_are_told_each_by_its_mean(tmp_path: Path) -> None:
    objectives = (Objective(METRIC, "maximize"), Objective("val/accuracy", "minimize"))
    plan = open_plan(search_study(objectives=objectives, replicates=2, trials=3), tmp_path)
    Play(accuracy).run(plan)
    for trial in plan.search.trials:
        assert trial.scores is not None and trial.scores[0] == trial.scores[1]


# ---- death ----


@pytest.mark.parametrize("workers", [1, 3])
def test_whenever_the_coordinator_dies_the_next_one_does_exactly_the_rest(tmp_path: Path, workers: int) -> None:
    study = search_study(trials=4, replicates=2)
    whole = open_plan(study, tmp_path / "whole")
    Play(accuracy).run(whole)
    for stop in range(9):
        home = tmp_path / f"killed after {stop}"
        before = open_plan(study, home)
        Play(accuracy, workers=workers).run(before, stop=stop)
        finished = set(ended(before))
        plan = open_plan(study, home)
        rest = Play(accuracy, workers=workers).run(plan)
        assert len(finished) == stop and not finished & set(rest.names)
        assert len(rest.names) == 8 - stop == len(set(rest.names))
        assert ended(plan) == pytest.approx(ended(whole))  # the sampler goes on as if nothing had happened
        assert scores(plan) == pytest.approx(scores(whole))
        assert Play(accuracy).run(open_plan(study, home)).names == []


def test_what_failed_is_tried_again_by_the_next_session_and_counts_once(tmp_path: Path) -> None:
    def train(values: dict[str, Any], replicate: int) -> Any:
        return Result([], status="FAILED", reason="broken") if values["b"] == 2 else 0.5

    study = search_study({"b": "1,2,3"}, trials=3, replicates=2)
    first = open_plan(study, tmp_path)
    made = Play(train).run(first)
    assert [name for name in made.names if "b=2" in name] == ["b=2 r0"]  # its second run is not worth while
    assert sorted(trial.state for trial in first.search.trials) == ["complete", "complete", "failed"]
    again = open_plan(study, tmp_path)
    assert again.known == 4
    assert Play(lambda values, _: 0.7).run(again).names == ["b=2 r0", "b=2 r1"]
    assert sorted(t.state for t in again.search.trials) == ["complete", "complete", "complete", "failed"]
    assert again.best == pytest.approx(0.7)
    assert Play(accuracy).run(open_plan(study, tmp_path)).names == []


def test_more_trials_and_more_replicates_keep_the_runs_there_are(tmp_path: Path) -> None:
    first = open_plan(search_study(trials=2), tmp_path)
    Play(accuracy).run(first)
    plan = open_plan(search_study(trials=3, replicates=2), tmp_path, extend=True)
    made = Play(accuracy).run(plan)
    assert plan.known == 2 and len(made.names) == 4 and not set(ended(first)) & set(made.names)
    assert runs_of(plan) == [[0, 1]] * 3


# ---- divergence and pruning ----


def test_a_trial_ends_with_its_first_divergence_if_the_study_says_so(tmp_path: Path) -> None:
    def train(values: dict[str, Any], replicate: int) -> float:
        return math.nan if (values["b"], replicate) == (1, 1) else 0.5

    study = search_study({"b": "1,2"}, trials=None, replicates=3, on_divergence="stop")
    plan = open_plan(study, tmp_path)
    made = Play(train, workers=3).run(plan)
    assert sorted(made.names) == ["b=1 r0", "b=1 r1", "b=2 r0", "b=2 r1", "b=2 r2"]
    told = {trial.values["b"]: trial.scores for trial in plan.search.trials}
    assert told == {"1": pytest.approx(((0.5 + 1 / 10) / 2,)), "2": pytest.approx((0.5,))}


MEDIAN = {
    "name": "median",
    "n_startup_trials": 2,
    "n_warmup_steps": 0,
    "interval_steps": 1,
    "n_min_trials": 1,
}


def curve(values: dict[str, Any], replicate: int) -> list[float]:
    """The larger `b`, the worse from the first epoch on."""
    return [epoch / 10 - values["b"] / 100 for epoch in range(1, 5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pruned_trial_gets_no_further_replicates(tmp_path: Path, workers: int) -> None:
    study = search_study({"b": "1,2,5,6"}, trials=4, replicates=3, pruner=MEDIAN)
    plan = open_plan(study, tmp_path)
    plan.search.enqueue([{"b": b} for b in "1256"])
    assert plan.reports and plan.total == 12
    Play(curve, workers=workers).run(plan)
    states = {trial.values["b"]: trial.state for trial in plan.search.trials}
    assert states == {"1": "complete", "2": "complete", "5": "pruned", "6": "pruned"}
    assert runs_of(plan) == [[0, 1, 2], [0, 1, 2], [0], [0]] and plan.total == 8
    reasons = {one.result.reason for one in plan.ended() if one.result.pruned}
    assert reasons == {
        "pruned: median: val/accuracy 0.05 at epoch 1", "pruned: median: val/accuracy 0.04 at epoch 1",
    }  # fmt: skip
    assert Play(curve).run(open_plan(study, tmp_path)).names == []


def test_a_search_whose_journal_ends_in_any_record_prunes_as_an_undisturbed_one(tmp_path: Path) -> None:
    """As after a kill between any two records: of a draw, of a report and the verdict on it, of an end."""
    study = search_study(trials=8, pruner={"name": "median", "n_startup_trials": 2})
    made = Play(lambda values, replicate: Result([accuracy(values, 0) * step for step in (0.4, 0.8, 1.0)]))
    whole = open_plan(study, tmp_path / "whole")
    made.run(whole)
    assert {trial.state for trial in whole.search.trials} == {"complete", "pruned"}
    records = (tmp_path / "whole" / ".fanin" / "study" / "journal.log").read_bytes().splitlines(keepends=True)
    for cut in range(len(records) * 2 // 3, len(records)):
        journal = tmp_path / str(cut) / ".fanin" / "study" / "journal.log"
        journal.parent.mkdir(parents=True)
        journal.write_bytes(b"".join(records[:cut]))
        again = open_plan(study, tmp_path / str(cut))
        made.run(again)
        assert again.search.trials == whole.search.trials, cut


def test_the_first_replicate_must_survive_before_the_others_start(tmp_path: Path) -> None:
    study = search_study({"b": "1,2"}, trials=2, replicates=3, pruner=MEDIAN)
    made = Play(curve, workers=8).run(open_plan(study, tmp_path))
    assert sorted(made.names[:2]) == ["b=1 r0", "b=2 r0"]


@pytest.mark.parametrize("stop", [None, 3, 11, 14])
def test_wilcoxon_ends_a_trial_when_its_replicates_are_plainly_worse_than_the_best(
    tmp_path: Path, stop: int | None
) -> None:
    wilcoxon = {"name": "wilcoxon", "p_threshold": 0.1, "n_startup_steps": 4}
    study = search_study({"b": "1,2,5"}, trials=3, replicates=8, pruner=wilcoxon)

    def train(values: dict[str, Any], replicate: int) -> float:
        return 0.9 - 0.05 * values["b"] + 0.003 * ((replicate * 5 + values["b"]) % 7)

    plan = open_plan(study, tmp_path)
    assert not plan.reports  # epochs are not its business
    plan.search.enqueue([{"b": b} for b in "125"])
    Play(train).run(plan, stop=stop)
    if stop is not None:
        plan = open_plan(study, tmp_path)
        Play(train).run(plan)
    # By hand: all of 2's and 5's differences from 1 are positive, so that after n replicates the one-sided
    # p-value is 2^-n: 1/16 < 0.1 with the 4th, the first that may be judged (n_startup_steps).
    assert [len(replicates) for replicates in runs_of(plan)] == [8, 4, 4]
    states = {trial.values["b"]: trial.state for trial in plan.search.trials}
    assert states == {"1": "complete", "2": "pruned", "5": "pruned"}
    # what it had is a fair estimate, and the search is told so
    seen = [train({"b": 2}, replicate) for replicate in range(4)]
    (second,) = (trial.scores for trial in plan.search.trials if trial.values["b"] == "2")
    assert second == pytest.approx((sum(seen) / 4,)) and plan.total == 16


def test_a_search_whose_choices_were_edited_since_is_refused_and_goes_on_when_they_are_as_they_were(
    tmp_path: Path,
) -> None:
    study = search_study({"a": "1,2", "c": "p,q,r,s"}, trials=8)
    Play(lambda config, replicate: 0.5).run(open_plan(study, tmp_path), stop=6)
    with pytest.raises(ConfigError, match=r"(?s)holds another question: a=2 .* was run.*b: 1 -> 9"):
        open_plan(replace(study, composer=Edited()), tmp_path)
    plan = open_plan(study, tmp_path)
    Play(lambda config, replicate: 0.5).run(plan)
    assert plan.known == 6 and len(plan.search.trials) == 8
