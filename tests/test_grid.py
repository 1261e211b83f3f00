"""The grid's plan, played with made-up outcomes: which runs there are, in which order, and that a kill at any
moment neither loses nor repeats one."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import METRIC, Edited, Play, Result, grid, make_study, open_folder

from fanin.errors import ConfigError
from fanin.sweep import race
from fanin.sweep.checks import check_held
from fanin.sweep.grid import GridPlan
from fanin.sweep.planning import open_search
from fanin.sweep.study import Budget, Study

PARAMS = {"a": "1,2,3", "b": "1,2"}


def accuracy(values: dict[str, Any], replicate: int) -> float:
    return 0.1 * values["a"] + 0.01 * values["b"] + 0.001 * replicate


def open_plan(study: Study, tmp_path: Path, *, judge: bool = False) -> GridPlan:
    """As after the start of a coordinator: the folder of a dead one is taken over."""
    folder = open_folder(tmp_path)
    folder.close()
    return GridPlan(study, grid(study), folder, judge=open_search(study, folder) if judge else None)


def ended(plan: GridPlan) -> dict[str, float]:
    """Run name -> final value."""
    return {f"{one.variant.name} r{one.replicate}": one.result.metrics[METRIC] for one in plan.ended()}


# ---- which runs, in which order ----


def test_every_variant_is_tried_once_before_any_is_repeated(tmp_path: Path) -> None:
    plan = open_plan(make_study({"a": "1,2", "b": "1,2"}, replicates=2), tmp_path)
    assert plan.total == 8 and plan.known == 0
    made = Play(accuracy).run(plan)
    assert made.names == [
        *("a=1 b=1 r0", "a=1 b=2 r0", "a=2 b=1 r0", "a=2 b=2 r0"),
        *("a=1 b=1 r1", "a=1 b=2 r1", "a=2 b=1 r1", "a=2 b=2 r1"),
    ]
    assert plan.done and plan.next() is None


@pytest.mark.parametrize(("workers", "late"), [(1, False), (3, False), (3, True), (50, True)])
def test_each_run_is_done_once_whoever_works_and_in_whatever_order(tmp_path: Path, workers: int, late: bool) -> None:
    plan = open_plan(make_study(PARAMS, replicates=3), tmp_path)
    made = Play(accuracy, workers=workers, late=late).run(plan)
    wanted = {f"a={a} b={b} r{r}": 0.1 * a + 0.01 * b + 0.001 * r for a in (1, 2, 3) for b in (1, 2) for r in range(3)}
    assert sorted(made.names) == sorted(wanted) and ended(plan) == pytest.approx(wanted)


def test_points_that_come_to_the_same_configuration_are_one_variant(tmp_path: Path) -> None:
    points = [{"a": 1}, {"a": 1, "b": 1}, {"b": 2}]  # a and b are 1 where nothing is said
    made = Play(accuracy).run(open_plan(make_study({}, points=points), tmp_path))
    assert len(made.names) == 2


def test_zipped_axes_walk_in_step_and_conditional_ones_exist_where_they_should(tmp_path: Path) -> None:
    zipped = make_study({"a": "1,2", "b": "3,4", "c": "x,y"}, zipped=[["a", "b"]])
    made = Play(accuracy).run(open_plan(zipped, tmp_path / "zip"))
    assert made.names == ["a=1 b=3 c=x r0", "a=1 b=3 c=y r0", "a=2 b=4 c=x r0", "a=2 b=4 c=y r0"]
    conditional = make_study({"c": "x,y", "a": "1,2"}, when={"a": {"c": ["y"]}})
    made = Play(accuracy).run(open_plan(conditional, tmp_path / "when"))
    assert made.names == ["c=x r0", "c=y a=1 r0", "c=y a=2 r0"]


def test_a_budget_of_trials_takes_the_first_of_the_grid(tmp_path: Path) -> None:
    plan = open_plan(make_study(PARAMS, replicates=2, budget=Budget(trials=2)), tmp_path)
    assert plan.total == 4
    assert Play(accuracy).run(plan).names == ["a=1 b=1 r0", "a=1 b=2 r0", "a=1 b=1 r1", "a=1 b=2 r1"]


# ---- values ----


def test_a_variant_is_worth_the_mean_of_its_replicates_once_all_are_in(tmp_path: Path) -> None:
    plan = open_plan(make_study({"a": "1,2"}, replicates=2), tmp_path)
    made = Play(accuracy).run(plan)
    assert made.told == [None, None, pytest.approx(0.1105), pytest.approx(0.2105)]
    assert plan.best == pytest.approx(0.2105)


def test_a_diverged_run_counts_as_a_guess_and_a_failed_one_leaves_its_variant_without_a_value(
    tmp_path: Path,
) -> None:
    def train(values: dict[str, Any], replicate: int) -> Any:
        if values["a"] == 1:
            return math.nan if replicate else 0.5
        return Result([0.9], status="FAILED" if replicate else "FINISHED", reason="broken")

    plan = open_plan(make_study({"a": "1,2"}, replicates=2), tmp_path)
    made = Play(train).run(plan)
    assert made.told == [None, None, pytest.approx((0.5 + 1 / 10) / 2), None]
    assert plan.best == pytest.approx(0.3)


# ---- death ----


def test_a_run_whose_worker_died_goes_out_next_but_no_more_than_twice_again(tmp_path: Path) -> None:
    plan = open_plan(make_study({"a": "1,2"}), tmp_path)
    first = plan.next()
    assert first is not None and plan.retry(first)
    again = plan.next()
    assert again is first and plan.retry(again) and plan.next() is first
    assert not plan.retry(first)


@pytest.mark.parametrize("workers", [1, 2])
def test_whenever_the_coordinator_dies_the_next_one_does_exactly_the_rest(tmp_path: Path, workers: int) -> None:
    study = make_study(PARAMS, replicates=2)
    whole = Play(accuracy).run(open_plan(study, tmp_path / "whole"))
    for stop in range(len(whole.names) + 1):
        home = tmp_path / f"killed after {stop}"
        before = open_plan(study, home)
        done = Play(accuracy, workers=workers).run(before, stop=stop)
        finished = set(ended(before))
        plan = open_plan(study, home)
        rest = Play(accuracy, workers=workers).run(plan)
        assert plan.known == len(finished) == stop and plan.total == len(whole.names)
        assert not finished & set(rest.names) and finished | set(rest.names) == set(whole.names)
        assert set(done.names) - finished <= set(rest.names)  # what ran when it died is done again
        assert set(ended(plan)) == set(whole.names)


def test_a_resumed_study_repeats_what_failed_or_was_interrupted_and_nothing_else(tmp_path: Path) -> None:
    ends = {
        1: Result([0.5]),
        2: Result([math.nan], reason="diverged"),
        3: Result([0.5], status="KILLED", reason="pruned: by hand"),
        4: Result([0.5], status="FAILED", reason="ValueError: broken"),
        5: Result([0.5], status="KILLED", reason="interrupted"),
    }
    study = make_study({"a": "1,2,3,4,5"})
    first = open_plan(study, tmp_path)
    Play(lambda values, _: ends[values["a"]]).run(first)
    assert len(first.ended()) == 5
    plan = open_plan(study, tmp_path)
    assert plan.known == 3
    assert Play(accuracy).run(plan).names == ["a=4 r0", "a=5 r0"]
    assert {one.result.status for one in plan.ended()} == {"FINISHED", "KILLED"}


def test_more_replicates_and_more_points_keep_the_runs_there_are(tmp_path: Path) -> None:
    Play(accuracy).run(open_plan(make_study({"a": "1,2"}), tmp_path))
    plan = open_plan(make_study({"a": "1,2,3"}, replicates=2), tmp_path)
    assert Play(accuracy).run(plan).names == ["a=3 r0", "a=1 r1", "a=2 r1", "a=3 r1"]


# ---- divergence ----


def test_a_variant_of_which_a_replicate_diverged_gets_no_more_if_the_study_says_so(tmp_path: Path) -> None:
    def train(values: dict[str, Any], replicate: int) -> float:
        return math.nan if (values["a"], replicate) == (1, 1) else 0.5

    for workers in (1, 4):
        study = make_study({"a": "1,2"}, replicates=3, on_divergence="stop")
        plan = open_plan(study, tmp_path / str(workers))
        made = Play(train, workers=workers).run(plan)
        assert sorted(made.names) == ["a=1 r0", "a=1 r1", "a=2 r0", "a=2 r1", "a=2 r2"]
        assert plan.total == 5 and plan.value(plan.variants[0]) == pytest.approx((0.5 + 0.1) / 2)
        assert Play(train).run(open_plan(study, tmp_path / str(workers))).names == []
    everything = open_plan(make_study({"a": "1,2"}, replicates=3), tmp_path / "continue")
    assert len(Play(train).run(everything).names) == 6


# ---- pruning ----


def curves(values: dict[str, Any], replicate: int) -> list[float]:
    """The larger `a`, the worse from the first epoch on."""
    return [epoch / 10 - values["a"] / 100 for epoch in range(1, 5)]


PRUNER = {
    "name": "median",
    "n_startup_trials": 2,
    "n_warmup_steps": 0,
    "interval_steps": 1,
    "n_min_trials": 1,
}


@pytest.mark.parametrize("stop", [None, 0, 1, 2, 3, 4, 5, 6])
def test_a_variant_pruned_in_its_first_replicate_gets_no_others(tmp_path: Path, stop: int | None) -> None:
    study = make_study({"a": "1,2,5,6"}, replicates=2, pruner=PRUNER)
    plan = open_plan(study, tmp_path, judge=True)
    assert plan.reports and plan.total == 8
    made = Play(curves).run(plan, stop=stop)
    if stop is not None:
        plan = open_plan(study, tmp_path, judge=True)
        finished = {f"{one.variant.name} r{one.replicate}" for one in plan.ended()}
        assert len(finished) == stop
        made = Play(curves).run(plan)
        assert not finished & set(made.names)
    # by hand: 5 and 6 lie below the median of 1 and 2 (and whoever follows) at every epoch
    ends = {f"{one.variant.name} r{one.replicate}": one.result for one in plan.ended()}
    assert sorted(ends) == ["a=1 r0", "a=1 r1", "a=2 r0", "a=2 r1", "a=5 r0", "a=6 r0"]
    assert {name for name, result in ends.items() if result.pruned} == {"a=5 r0", "a=6 r0"}
    assert ends["a=5 r0"].reason == "pruned: median: val/accuracy 0.05 at epoch 1"
    assert plan.total == 6
    assert plan.judge is not None
    assert sorted(trial.state for trial in plan.judge.trials) == ["complete", "complete", "pruned", "pruned"]
    assert Play(curves).run(open_plan(study, tmp_path, judge=True)).names == []


# ---- racing ----


NOISE = [0.000, 0.004, -0.003, 0.002, -0.004, 0.001, 0.003, -0.002]


def racing(values: dict[str, Any], replicate: int) -> float:
    """1 and 2 are the same but for a little noise; 3 is plainly worse."""
    own = 0.001 * ((replicate * 7 + values["a"] * 3) % 5 - 2)
    return {1: 0.9, 2: 0.9, 3: 0.8}[values["a"]] + NOISE[replicate] + own


@pytest.mark.parametrize("workers", [1, 5])
def test_a_race_gives_replicates_to_those_that_are_not_shown_to_be_worse(tmp_path: Path, workers: int) -> None:
    settings = {"min_replicates": 3, "confidence": 0.95}
    study = make_study({"a": "1,2,3"}, replicates=8, racing=settings)
    plan = open_plan(study, tmp_path)
    assert plan.total == 9
    Play(racing, workers=workers).run(plan)
    values = {a: {r: racing({"a": a}, r) for r in range(8)} for a in (1, 2, 3)}
    verdicts = race.decide(
        {str(a): seen for a, seen in values.items()}, direction="maximize", max_replicates=8, **settings
    )
    assert [verdicts[str(a)].action for a in (1, 2, 3)] == ["done", "done", "drop"]
    made = {a: sum(one.variant.shown["a"] == a for one in plan.ended()) for a in (1, 2, 3)}
    assert made == {a: verdicts[str(a)].replicates for a in (1, 2, 3)} and made[3] < 8
    assert plan.total == sum(made.values())
    (reason,) = plan.dropped.values()
    assert reason.startswith(f"racing: drop after {made[3]} replicates: worse than a=1 by 0.1")


def test_a_race_that_was_killed_anywhere_ends_with_the_same_runs(tmp_path: Path) -> None:
    study = make_study({"a": "1,2,3"}, replicates=6, racing={"min_replicates": 3, "confidence": 0.9})
    whole = open_plan(study, tmp_path / "whole")
    Play(racing).run(whole)
    for stop in range(0, len(whole.ended()), 2):
        home = tmp_path / str(stop)
        Play(racing, workers=2).run(open_plan(study, home), stop=stop)
        plan = open_plan(study, home)
        assert plan.known == stop
        Play(racing, workers=2).run(plan)
        assert ended(plan) == pytest.approx(ended(whole)) and plan.dropped == whole.dropped


def test_a_choice_that_was_edited_since_its_runs_is_refused_with_what_changed(tmp_path: Path) -> None:
    study, folder = make_study({"a": "1,2"}), open_folder(tmp_path)
    Play(lambda config, replicate: 0.5).run(GridPlan(study, grid(study), folder))
    check_held(study, grid(study), folder.path / "runs")
    edited = replace(study, composer=Edited())
    assert edited.identity() == study.identity()
    with pytest.raises(
        ConfigError, match="(?s)'study' holds another question: a=2 r0 was run.*b: 1 -> 9\\n  --new puts"
    ):
        check_held(edited, grid(edited), folder.path / "runs")
