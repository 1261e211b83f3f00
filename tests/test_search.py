"""The search: what is asked, what becomes of what is told, and that a kill at any moment loses and repeats nothing."""

import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import MIXED, NUMBERS, bowl, open_search, run

from fanin.errors import ConfigError
from fanin.sweep import samplers
from fanin.sweep.grammar import parse
from fanin.sweep.search import Search
from fanin.sweep.space import Space
from fanin.sweep.trial import Trial, pareto_front

ADAPTIVE = ["random", "tpe", "cmaes", "qmc", "nsgaii"]


def space_for(sampler: str) -> Space:
    return parse(NUMBERS if sampler == "cmaes" else MIXED)


@pytest.mark.parametrize("sampler", [*ADAPTIVE, "gp"])
def test_every_sampler_stays_in_the_space_and_repeats_itself_under_one_seed(tmp_path: Path, sampler: str) -> None:
    space, count = space_for(sampler), 13
    settings = {"sampler": {"name": sampler}}
    if sampler == "gp":
        pytest.importorskip("torch")
        space, settings, count = (
            parse({"x": NUMBERS["x"], "n": NUMBERS["n"], "lr": "0.01,0.1"}),
            {"sampler": {"name": "gp", "n_startup_trials": 3}},
            6,
        )
    runs = [
        run(open_search(tmp_path, space, storage=tmp_path / str(i), seed=seed, **settings), count)
        for i, seed in enumerate([0, 0, 1])
    ]
    assert (
        runs[0] == runs[1] != runs[2] or sampler == "qmc" and runs[0] == runs[1]
    )  # a plain Sobol sequence has no seed
    for values in runs[0] + runs[2]:
        assert {axis.name for axis in space.axes} == set(values)
        assert all(axis.locate(values) == values[axis.name] for axis in space.axes)


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_a_search_reopened_every_few_trials_asks_what_the_uninterrupted_one_asks(tmp_path: Path, sampler: str) -> None:
    settings = {"sampler": {"name": sampler}, "defaults": {"x": "0.5"}}
    whole = run(open_search(tmp_path, space_for(sampler), storage=tmp_path / "whole", **settings), 24)
    for trials in (5, 9, 17, 24):
        parts = run(open_search(tmp_path, space_for(sampler), storage=tmp_path / "parts", **settings), trials)
    assert parts == whole


@pytest.mark.parametrize(
    ("space", "sampler"),
    [
        ({"x": "1,2,3", "y": "range(0,4)"}, {"name": "tpe", "n_startup_trials": 3}),
        ({"x": "range(0,8)"}, {"name": "random"}),  # its last points are picked after many repeats
    ],
)
def test_a_kill_at_any_byte_of_the_journal_loses_and_repeats_no_trial(
    tmp_path: Path, space: dict[str, Any], sampler: dict[str, Any]
) -> None:
    def searched(name: str) -> tuple[Search, list[tuple[int, dict[str, str]]]]:
        settings: dict[str, Any] = {"sampler": sampler, "defaults": {"x": "2"}, "seed": 9}
        search = open_search(tmp_path, space, storage=tmp_path / name, **settings)
        run(search, 8, lambda values: sum(map(float, values.values())))
        return search, [(trial.number, trial.values) for trial in search.trials]

    uninterrupted, whole = searched("whole")
    marks = [mark for trial in uninterrupted.study.trials for mark in trial.user_attrs]
    assert "fanin.repeats" in marks and ("fanin.given" in marks or sampler["name"] == "tpe")
    journal = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(journal) if byte == ord("\n")]
    for cut in sorted({0, *ends, *(end - 7 for end in ends)}):  # between the records, and inside each
        (tmp_path / f"cut{cut}").write_bytes(journal[:cut])
        search, trials = searched(f"cut{cut}")
        assert trials == whole, cut
        assert [t.state for t in search.trials] == ["complete"] * 8
        assert search.reap() == []


def test_a_trial_whose_sampler_raised_is_failed_and_nothing_after_it_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    search = open_search(tmp_path, MIXED)
    with monkeypatch.context() as patch:
        patch.setattr("fanin.sweep.search.suggest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search.ask()
    run(search, 3)
    states = [trial.state for trial in open_search(tmp_path, MIXED).trials]
    assert states == ["failed", "complete", "complete", "complete"]


def test_a_torn_or_damaged_tail_is_cut_kept_aside_and_reported(tmp_path: Path, caplog: Any) -> None:
    run(open_search(tmp_path, MIXED), 3)
    journal = tmp_path / "journal.log"
    good = journal.read_bytes()
    for damage in (b'{"op_code":4,"stu', b"\0" * 100, b'{"op_c{"op_code":4}\n{"op_code":4}\n'):
        journal.write_bytes(good + damage)
        caplog.clear()
        assert open_search(tmp_path, MIXED).asked == 3
        assert journal.read_bytes() == good and (tmp_path / "journal.log.cut").read_bytes() == damage
        assert f"cut {len(damage)} unreadable bytes" in caplog.text


def test_optuna_itself_reads_the_journal(tmp_path: Path) -> None:
    search = open_search(tmp_path, MIXED, pruner={"name": "median"}, steps=5)
    trial = search.ask()
    assert trial is not None
    search.report(trial.number, 1, 0.5)
    search.tell(trial.number, 0.25)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == 0.25 and study.trials[0].intermediate_values == {1: 0.5}
    assert study.best_params["c"] == trial.values["c"]
    assert study.best_params["x"] == float(trial.values["x"])


def test_the_default_configuration_is_tried_first_as_far_as_the_space_has_it(tmp_path: Path) -> None:
    defaults = {"x": "0.25", "n": "99", "lr": "1e-2", "c": "[b,c]", "absent": "1"}
    first = open_search(tmp_path, MIXED, defaults=defaults).ask()
    assert first is not None
    assert (first.values["x"], first.values["lr"], first.values["c"]) == ("0.25", "0.01", "[b,c]")
    assert 1 <= int(first.values["n"]) <= 8  # 99 is outside: drawn


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "nsgaii"])
def test_a_finite_space_is_searched_without_repeats_and_ends(tmp_path: Path, sampler: str) -> None:
    space = parse({"a": "1,2,3", "b": "int(interval(1,2))"})
    search = open_search(tmp_path, space, sampler={"name": sampler})
    values = run(search, 1000, lambda v: float(v["a"]))
    assert sorted((v["a"], v["b"]) for v in values) == [(a, b) for a in "123" for b in "12"]
    assert search.ask() is None and search.asked == 6
    assert open_search(tmp_path, space, sampler={"name": sampler}).ask() is None


def test_a_repeated_point_is_told_to_optuna_with_the_earlier_result(tmp_path: Path) -> None:
    search = open_search(tmp_path, {"a": "1,2"}, seed=1)
    run(search, 2, lambda v: float(v["a"]))
    search.ask()
    repeats = [t for t in search.study.trials if "fanin.repeats" in t.user_attrs]
    assert repeats and all(t.value == float(t.params["a"]) for t in repeats)


def test_a_point_of_ones_own_can_be_tried_again(tmp_path: Path) -> None:
    search = open_search(tmp_path, MIXED)
    point = {"x": "0.5", "n": "2", "lr": "0.1", "r": "0.3", "c": "d"}
    first, second = search.ask(point), search.ask(point)
    assert first is not None and second is not None
    assert first.values == second.values == point and first.number != second.number
    again = open_search(tmp_path, MIXED)
    assert [t.number for t in again.reap()] == [first.number, second.number]
    assert (search.asked, search.points) == (again.asked, again.points) == (2, 1)


def test_a_conditional_axis_is_drawn_only_where_it_exists(tmp_path: Path) -> None:
    space = parse(
        {"optimizer": "sgd,momentum,adam", "momentum": "interval(0.5,0.99)", "x": "interval(0,1)"},
        when={"momentum": {"optimizer": "momentum"}},
    )
    for name in ("random", "tpe"):
        search = open_search(tmp_path, space, storage=tmp_path / name, sampler={"name": name})
        values = run(search, 30, lambda v: float(v["x"]) + float(v.get("momentum", 1)))
        assert {v["optimizer"] for v in values} == {"sgd", "momentum", "adam"}
        assert all(("momentum" in v) == (v["optimizer"] == "momentum") for v in values)


def test_tpe_models_axes_that_occur_together_as_one_group_where_there_are_conditions() -> None:
    plain = parse({"a": "1,2", "b": "interval(0,1)"})
    nested = parse({"a": "1,2", "b": "interval(0,1)"}, when={"b": {"a": 1}})

    def groups(space: Space, **options: Any) -> bool:
        sampler: Any = samplers.build_sampler({"name": "tpe"} | options, space, objectives=1, seed=0, number=0)
        return bool(sampler._group)

    assert groups(nested) and not groups(plain) and not groups(nested, multivariate=False)


def test_scrambled_points_of_qmc_are_spread_evenly(tmp_path: Path) -> None:
    sampler = {"name": "qmc", "scramble": True}
    values = run(open_search(tmp_path, {"x": "interval(0,8)"}, sampler=sampler), 9, lambda v: 0.0)
    # the first point is Optuna's random start; the next eight fall one into each eighth
    assert sorted(int(float(v["x"])) for v in values[1:]) == list(range(8))


def test_zipped_axes_are_one_decision_of_the_search(tmp_path: Path) -> None:
    space = parse({"a": "1,2,3", "b": "x,y,z"}, zipped=[["a", "b"]])
    assert {(v["a"], v["b"]) for v in run(open_search(tmp_path, space), 9, lambda v: 0.0)} == {
        ("1", "x"),
        ("2", "y"),
        ("3", "z"),
    }


def test_tpe_with_two_workers_beats_random_search(tmp_path: Path) -> None:
    def best(name: str, seed: int) -> float:
        search = open_search(tmp_path, NUMBERS, storage=tmp_path / f"{name}{seed}", sampler={"name": name}, seed=seed)
        open_trials = [search.ask()]
        for _ in range(39):
            open_trials.append(search.ask())
            oldest = open_trials.pop(0)
            assert oldest is not None
            search.tell(oldest.number, bowl(oldest.values))
        assert search.best is not None and search.best.scores is not None
        return search.best.scores[0]

    medians = {name: statistics.median(best(name, seed) for seed in range(10)) for name in ("tpe", "random")}
    assert medians["tpe"] < medians["random"] / 2


# Telling


def test_what_diverged_counts_as_the_worst_and_is_never_the_best(tmp_path: Path) -> None:
    search = open_search(tmp_path, MIXED, directions=["maximize"])
    for value in (math.nan, math.inf, 0.5, -math.inf):
        trial = search.ask()
        assert trial is not None
        search.tell(trial.number, value)
    assert [t.scores for t in search.trials] == [(-math.inf,), (-math.inf,), (0.5,), (-math.inf,)]
    assert search.best is not None and search.best.number == 2


def test_telling_twice_keeps_the_first_word_and_a_failure_is_no_result(tmp_path: Path) -> None:
    search = open_search(tmp_path, MIXED)
    first, second = search.ask(), search.ask()
    assert first is not None and second is not None
    search.tell(first.number, 1.0)
    search.tell(first.number, 2.0)
    search.tell(second.number, state="failed")
    assert [(t.state, t.scores) for t in search.trials] == [("complete", (1.0,)), ("failed", None)]
    assert search.best is not None and search.best.number == 0


def test_the_front_holds_what_nothing_beats_in_every_objective(tmp_path: Path) -> None:
    points = [(0.9, 10.0), (0.8, 5.0), (0.8, 6.0), (0.95, 30.0), (0.7, 5.0), (0.9, math.nan)]
    search = open_search(tmp_path, MIXED, directions=["maximize", "minimize"], sampler={"name": "nsgaii"})
    for point in points:
        trial = search.ask()
        assert trial is not None
        search.tell(trial.number, point)
    assert [t.scores for t in search.front] == [(0.9, 10.0), (0.8, 5.0), (0.95, 30.0)]
    assert {t.number for t in search.study.best_trials} >= {t.number for t in search.front}


def test_equal_trials_share_the_front() -> None:
    trials = [Trial(i, {}, "complete", (1.0,)) for i in range(2)] + [Trial(2, {}, "failed")]
    assert [t.number for t in pareto_front(trials, ["minimize"])] == [0, 1]


def test_a_warm_start_queues_the_best_points_of_another_study_once(tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    run(open_search(tmp_path, NUMBERS, storage=other, name="other"), 12)
    ranked = sorted(open_search(tmp_path, NUMBERS, storage=other, name="other").trials, key=lambda t: t.scores or ())
    search = open_search(tmp_path, {**NUMBERS, "c": "a,b"}, defaults={"x": "0.5"})
    assert search.warm_start(other, name="other", count=3) == 3
    assert search.warm_start(other, name="other", count=9) == 0
    asked = [search.ask() for _ in range(4)]
    assert [{k: v for k, v in t.values.items() if k != "c"} for t in asked[1:] if t] == [t.values for t in ranked[:3]]
    with pytest.raises(ConfigError, match="study.warm_start: 'othr' is not one of: other"):
        search.warm_start(other, name="othr")
    with pytest.raises(ConfigError, match="study.warm_start"):
        search.warm_start(tmp_path / "nothing.log", name="x")


def test_an_extended_space_keeps_the_trials_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    before = {"a": "1,2", "x": "interval(0,1)", "gone": "1,2"}
    search = open_search(tmp_path, before)
    left = search.ask()
    run(search, 5, lambda v: float(v["a"]))
    after = {"a": "1,2,3", "x": "interval(0,2)", "new": "p,q"}
    with pytest.raises(ConfigError, match="space has changed in a, gone, new, x; .*--extend"):
        open_search(tmp_path, after)
    extended = open_search(tmp_path, after, extend=True)
    assert left is not None and [t.number for t in extended.reap()] == [left.number]
    assert [t.state for t in extended.trials] == ["running", *["complete"] * 4]
    assert [t.scores for t in extended.trials[1:]] == [t.scores for t in search.trials[1:]]
    assert extended.trials[1].values == {k: v for k, v in search.trials[1].values.items() if k != "gone"}
    more = [extended.ask() for _ in range(12)]
    assert {t.values["a"] for t in more if t} == {"1", "2", "3"}
    with pytest.raises(ConfigError, match="lies outside the new space"):
        open_search(tmp_path, {"a": "3,4", "x": "interval(0,2)", "new": "p,q"}, extend=True)
    assert open_search(tmp_path, after).asked == 17


def test_optuna_writes_nothing_into_the_display_of_a_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    try:
        run(open_search(tmp_path, NUMBERS), 2)
        optuna.logging.get_logger("optuna._gp.batched_lbfgsb").warning("The 'greenlet' package is unavailable")
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records
