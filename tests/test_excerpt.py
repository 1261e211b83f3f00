"""TPE on an excerpt: Optuna's own draws while the history is short, Optuna's own choice of the best when it is long."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe import sampler as optunas
from optuna.trial import FrozenTrial, TrialState, create_trial

from fanin.errors import ConfigError
from fanin.sweep.excerpt import BELOW, Excerpt, Excerpts
from fanin.sweep.grammar import parse
from fanin.sweep.samplers import build_sampler, excerpts_for
from fanin.sweep.search import Search
from fanin.sweep.space import Space

MIXED = parse({"x": "interval(0,1)", "lr": "tag(log,interval(1e-4,1))", "r": "range(0,0.5,0.1)", "c": "a,[b,c],d"})
NESTED = parse({"x": "interval(0,1)", "c": "a,b,d", "m": "interval(0,1)"}, when={"m": {"c": "b"}})
WINDOW = 5
AXIS = {"x": FloatDistribution(0, 1)}


def opened(path: Path, space: Space, **options: Any) -> Search:
    return Search(
        space,
        sampler={"name": "tpe", **options},
        pruner={"name": "threshold", "lower": -9},
        steps=9,
        directions=["minimize"],
        storage=path,
        name="study",
        seed=0,
    )


def searched(path: Path, space: Space, trials: int, *, reopen: int = 1000, **options: Any) -> list[dict[str, str]]:
    """The points of a search with three trials running at a time, of which some are pruned and some fail. The journal
    is opened anew after every `reopen` trials."""
    search, running = opened(path, space, **options), []
    while search.asked < trials:
        while len(running) < 3:
            trial = search.ask()
            assert trial is not None
            running.append(trial)
        trial = running.pop(search.asked % 3)
        value = (float(trial.values["x"]) - 0.3) ** 2 + 0.1 * "ab[b,c]d".index(trial.values["c"])
        search.report(trial.number, 1 + trial.number % 2, value)
        search.tell(trial.number, value, state=("complete", "complete", "pruned", "failed")[trial.number % 11 % 4])
        if search.asked % reopen == 0:
            search = opened(path, space, **options)
            assert {trial.number for trial in search.reap()} == {trial.number for trial in running}
    return [trial.values for trial in search.trials]


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (MIXED, {}),
        (MIXED, {"multivariate": False}),
        (MIXED, {"constant_liar": False}),
        (NESTED, {}),
    ],
)
def test_every_draw_is_optunas_own_until_the_history_is_longer_than_the_excerpt(
    tmp_path: Path, space: Space, options: dict[str, Any]
) -> None:
    whole = searched(tmp_path / "whole", space, 60, **options)
    short = searched(tmp_path / "short", space, 60, window=WINDOW, **options)
    assert short[: WINDOW + BELOW] == whole[: WINDOW + BELOW]
    assert short != whole


def test_a_search_reopened_with_a_long_history_asks_what_the_uninterrupted_one_asks(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", MIXED, 60, window=WINDOW)
    parts = searched(tmp_path / "parts", MIXED, 60, window=WINDOW, reopen=4)
    assert parts == whole


def test_optuna_models_the_excerpt_only_and_as_many_of_the_best_as_of_the_whole_history(
    tmp_path: Path, monkeypatch: Any
) -> None:
    searched(tmp_path / "journal", MIXED, 100, window=WINDOW)
    search = opened(tmp_path / "journal", MIXED, window=WINDOW)
    finished = sum(trial.state in ("complete", "pruned") for trial in search.trials)
    build, modelled = optunas.TPESampler._build_parzen_estimator, []

    def spied(sampler: Any, study: Any, space: Any, trials: list[FrozenTrial], handle_below: bool) -> Any:
        modelled.append(len(trials))
        return build(sampler, study, space, trials, handle_below)

    monkeypatch.setattr(optunas.TPESampler, "_build_parzen_estimator", spied)
    monkeypatch.setattr(optuna.Study, "_get_trials", lambda *_, **__: pytest.fail("TPE asked for the whole history"))
    assert search.ask() is not None
    best = math.ceil(finished / 10)
    assert modelled == [best, BELOW - best + WINDOW + len(search.reap())]


def test_optuna_never_takes_more_trials_for_the_best_than_an_excerpt_has() -> None:
    assert max(map(optunas.default_gamma, range(5000))) == BELOW


def test_a_window_is_never_shorter_than_the_random_start_nor_there_for_several_objectives() -> None:
    def window(sampler: dict[str, Any], *directions: str) -> int | None:
        excerpts = excerpts_for(sampler, directions=directions)
        return excerpts and excerpts.window

    assert window({"name": "tpe", "window": 9}, "minimize") == 9
    assert window({"name": "tpe", "window": 9, "n_startup_trials": 60}, "minimize") == 60
    assert window({"name": "tpe", "window": 9}, "minimize", "maximize") is None
    assert window({"name": "tpe"}, "minimize") is window({"name": "random"}, "minimize") is None


def test_a_window_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="^hydra.sweeper.sampler.window: must be at least 1 .*, or null: all of them, got 0"
    ):
        opened(tmp_path / "journal", MIXED, window=0)
    assert not (tmp_path / "journal").exists()


def history(count: int, *, seed: int) -> list[FrozenTrial]:
    """Trials of every kind, with ties in their values and in how far they came."""
    draw = random.Random(seed)
    states = [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 3 + [TrialState.FAIL, TrialState.RUNNING]
    return [made(number, draw.choice(states), draw) for number in range(count)]


def made(number: int, state: TrialState, draw: random.Random) -> FrozenTrial:
    complete, reports = state == TrialState.COMPLETE, {}
    if state == TrialState.PRUNED and draw.random() < 0.9:
        reports = {1: 0.5, draw.choice([2, 3]): draw.choice([0.1, 0.2, math.nan])}
    value = draw.choice([0.0, 1.0, 2.0, math.inf]) if complete else None
    trial = create_trial(
        state=state, value=value, params={"x": draw.random()}, distributions=AXIS, intermediate_values=reports
    )
    trial.number = number
    return trial


def numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_those_that_optuna_takes_from_all_and_the_others_the_most_recent(
    direction: str, seed: int
) -> None:
    trials = history(150, seed=seed)
    seen = [trial for trial in trials if trial.state != TrialState.FAIL]
    running = [trial.number for trial in seen if trial.state == TrialState.RUNNING]
    study = optuna.create_study(direction=direction)
    below, above = optunas._split_trials(study, seen, BELOW)
    others = [number for number in numbers(above) if number not in running][-WINDOW:]
    excerpt = Excerpts(WINDOW, direction=direction).of(trials)
    assert numbers(excerpt.trials) == sorted([*numbers(below), *others, *running])
    assert excerpt.finished == len(seen) - len(running)
    best, rest = optunas._split_trials(study, seen, optunas.default_gamma(excerpt.finished))
    split = excerpt.split(running=True)
    assert numbers(split[0]) == numbers(best) and set(numbers(split[1])) < set(numbers(rest))
    assert numbers(split[1]) == sorted(set(numbers(excerpt.trials)) - set(numbers(best)))
    assert set(numbers(split[1])) - set(numbers(excerpt.split(running=False)[1])) == set(running)


def branched(count: int) -> list[FrozenTrial]:
    """Trials of which only early, bad ones took the branches that have axes of their own."""
    names = [("x", "m"), ("x", "n", "k"), ("x", "n")] + [("x",)] * (count - 3)
    kind, trials = FloatDistribution(0, 1), []
    for number, axes in enumerate(names):
        params, kinds = dict.fromkeys(axes, 0.5), dict.fromkeys(axes, kind)
        trials.append(create_trial(value=1 / (number + 1), params=params, distributions=kinds))
        trials[-1].number = number
    return trials


@pytest.mark.parametrize("space", [NESTED, MIXED], ids=["conditional", "plain"])
def test_axes_are_grouped_as_in_the_whole_history(space: Space) -> None:
    trials, study = branched(60), optuna.create_study()
    study.add_trials(trials)
    asked = study.ask()._cached_frozen_trial
    excerpt = Excerpts(WINDOW, direction="minimize").of(trials)
    assert not any("m" in trial.params for trial in excerpt.trials)

    def groups(excerpt: Excerpt | None) -> tuple[Any, Any]:
        sampler: Any = build_sampler({"name": "tpe"}, space, objectives=1, seed=0, number=60, excerpt=excerpt)
        axes = sampler.infer_relative_search_space(study, asked)
        return list(axes.items()), sampler._search_space_group and sampler._search_space_group.search_spaces

    assert groups(excerpt) == groups(None)
    assert [name for name, _ in groups(excerpt)[0]] == (["x", "m", "n", "k"] if space is NESTED else ["x"])


def test_the_order_in_which_trials_end_and_are_looked_at_is_no_matter() -> None:
    final = [trial for trial in history(120, seed=1) if trial.state != TrialState.RUNNING]
    for number, trial in enumerate(final):
        trial.number = number
    draw = random.Random(0)
    trials: list[FrozenTrial] = []
    excerpts = Excerpts(WINDOW, direction="minimize")
    while trials != final:
        trials += [
            made(number, TrialState.RUNNING, draw) for number in range(len(trials), min(len(trials) + 7, len(final)))
        ]
        for number in draw.sample(range(len(trials)), k=len(trials) // 3 + 1):
            trials[number] = final[number]
        grown = excerpts.of(trials[excerpts.start :])
        assert grown == Excerpts(WINDOW, direction="minimize").of(trials)
