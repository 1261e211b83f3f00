"""The importance of axes in a search, and racing, against simulation."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from fanin.errors import ConfigError
from fanin.sweep import race
from fanin.sweep.grammar import parse
from fanin.sweep.importance import ped_anova, ped_anova_of
from fanin.sweep.search import Search


def searched(tmp_path: Path, trials: int, value: Callable[[dict[str, str]], float]) -> Search:
    space = parse({"strong": "interval(0,1)", "weak": "interval(0,1)", "name": "a,b"})
    search = Search(
        space,
        sampler={"name": "random"},
        directions=["maximize"],
        storage=tmp_path / "journal",
        name="s",
        seed=0,
    )
    for _ in range(trials):
        trial = search.ask()
        assert trial is not None
        search.tell(trial.number, value(trial.values))
    return search


def test_ped_anova_finds_the_axis_that_tells_the_best_trials_from_the_rest(tmp_path: Path) -> None:
    got = ped_anova(searched(tmp_path, 60, lambda v: -((float(v["strong"]) - 0.5) ** 2)))
    assert list(got)[0] == "strong" and got["strong"] > 0.6
    assert sum(got.values()) == pytest.approx(1.0)


def test_ped_anova_counts_diverged_trials_and_is_silent_about_few(tmp_path: Path) -> None:
    def value(v: dict[str, str]) -> float:
        return math.nan if float(v["strong"]) > 0.9 else float(v["weak"]) - 7

    assert list(ped_anova(searched(tmp_path / "a", 60, value)))[0] == "weak"
    assert ped_anova(searched(tmp_path / "b", 9, value)) == {}


# Racing


def race_out(
    draw: Callable[[str, int], float],
    names: str,
    *,
    min_replicates: int = 3,
    max_replicates: int = 10,
    confidence: float = 0.95,
    resolution: float = 0.0,
) -> tuple[dict[str, race.Verdict], int]:
    """Give every variant the replicates it is asked for until nothing is needed; returns the verdicts and the
    number of runs."""
    values: dict[str, dict[int, float]] = {name: {} for name in names}
    while True:
        verdicts = race.decide(
            values,
            direction="maximize",
            min_replicates=min_replicates,
            max_replicates=max_replicates,
            confidence=confidence,
            resolution=resolution,
        )
        wanted = [n for n, v in verdicts.items() if v.action == "continue" and len(values[n]) < v.needed]
        if not wanted:
            return verdicts, sum(map(len, values.values()))
        for name in wanted:
            values[name][len(values[name])] = draw(name, len(values[name]))


def test_a_study_that_is_made_to_ask_for_importances_is_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    runs = pd.DataFrame({"variant": range(20), "x": range(20), "value": [x / 20 for x in range(20)]})
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        assert ped_anova_of(runs, by=["x"], metric="value", direction="maximize") == {"x": 1.0}
        assert not caplog.records and optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(before)


@pytest.mark.parametrize(("names", "resolution"), [("ab", 0.0), ("abcdef", 0.0), ("abc", 0.05)])
def test_a_variant_as_good_as_the_best_is_rarely_dropped(names: str, resolution: float) -> None:
    generator = np.random.default_rng(0)
    races, confidence = 400, 0.9
    dropped = 0
    for _ in range(races):
        noise = generator.normal(size=(len(names), 11))
        block = generator.normal(size=11)  # what all share under one seed

        def draw(name: str, replicate: int, noise=noise, block=block) -> float:  # type: ignore[no-untyped-def]
            value = 5 * block[replicate] + noise[names.index(name), replicate]
            return round(value / resolution) * resolution if resolution else value

        verdicts, _ = race_out(draw, names, confidence=confidence, resolution=resolution)
        dropped += verdicts["a"].action == "drop"
    # a variant is dropped with probability at most 1 - confidence; allow three standard errors
    assert dropped / races <= (1 - confidence) + 3 * math.sqrt(0.1 * 0.9 / races)


def test_clearly_bad_variants_are_dropped_after_few_replicates_and_the_best_stays() -> None:
    generator = np.random.default_rng(0)
    quality = {"good": 0.95, "fair": 0.94, "bad": 0.5, "dead": 0.1}
    noise = generator.normal(scale=0.01, size=(4, 20))
    initials = {name[0]: name for name in quality}

    def draw(name: str, replicate: int) -> float:
        full = initials[name]
        return quality[full] + noise[list(quality).index(full), replicate]

    verdicts, spent = race_out(draw, "gfbd", max_replicates=12)
    assert verdicts["b"].action == verdicts["d"].action == "drop"
    assert max(verdicts[name].replicates for name in "bd") <= 4
    assert verdicts["g"].action == "done"
    assert spent < 4 * 12
    assert verdicts["b"].against in "gf" and (verdicts["b"].low or 0) > 0.2
    assert "worse than" in verdicts["b"].reason


def test_the_interval_is_the_one_sided_paired_t_interval() -> None:
    from scipy import stats

    values = {"a": dict(enumerate([0.9, 0.92, 0.94])), "b": dict(enumerate([0.8, 0.81, 0.85]))}
    verdict = race.decide(values, direction="maximize", min_replicates=3, max_replicates=3)["b"]
    low = stats.ttest_rel(list(values["a"].values()), list(values["b"].values()), alternative="greater")
    assert verdict.difference == pytest.approx(0.1)
    assert verdict.low == pytest.approx(low.confidence_interval(0.95).low)
    more = race.decide(values, direction="maximize", min_replicates=3, max_replicates=4)["b"]
    assert more.low == pytest.approx(low.confidence_interval(0.975).low)  # two looks share the error


def test_a_minimised_metric_turns_the_race_around() -> None:
    values = {"a": dict(enumerate([1.0, 1.1, 1.0, 1.1])), "b": dict(enumerate([9.0, 9.0, 9.1, 9.2]))}
    up = race.decide(values, direction="maximize", min_replicates=3, max_replicates=4)
    down = race.decide(values, direction="minimize", min_replicates=3, max_replicates=4)
    assert (up["a"].action, down["b"].action) == ("drop", "drop")
    assert (up["b"].action, down["a"].action) == ("done", "done")


def test_verdicts_depend_on_the_values_not_on_their_order_of_arrival() -> None:
    generator = np.random.default_rng(3)
    complete = {n: dict(enumerate(generator.normal(loc=i, scale=0.3, size=6))) for i, n in enumerate("abcd")}
    settings = {"direction": "maximize", "min_replicates": 2, "max_replicates": 6}
    final = race.decide(complete, **settings)  # type: ignore[arg-type]
    for _ in range(30):
        seen: dict[str, dict[int, float]] = {n: {} for n in "abcd"}
        arrivals = [(n, r) for n in "abcd" for r in range(6)]
        for i in generator.permutation(len(arrivals)):
            name, replicate = arrivals[i]
            seen[name][replicate] = complete[name][replicate]
            for other, verdict in race.decide(seen, **settings).items():  # type: ignore[arg-type]
                assert verdict.action != "drop" or verdict == final[other]


def test_a_race_waits_for_its_slowest_and_asks_for_one_round_at_a_time() -> None:
    values = {"a": dict(enumerate([0.9, 0.8, 0.95, 0.7])), "b": dict(enumerate([0.85, 0.9])), "c": {}}
    verdicts = race.decide(values, direction="maximize", min_replicates=3, max_replicates=5)
    assert {(v.action, v.needed) for v in verdicts.values()} == {("continue", 3)}
    values["b"][3] = 0.5  # a gap: replicate 2 is still missing
    assert race.decide(values, direction="maximize", min_replicates=3, max_replicates=5) == verdicts


def test_what_diverged_is_dropped_unless_everything_did() -> None:
    fine, broken = dict(enumerate([0.9, 0.91, 0.92])), dict(enumerate([0.9, math.nan, 0.92]))
    verdicts = race.decide({"a": broken, "b": fine}, direction="maximize", max_replicates=5)
    assert (verdicts["a"].action, verdicts["b"].action) == ("drop", "done")
    both = race.decide({"a": broken, "b": broken}, direction="maximize", max_replicates=3)
    assert {v.action for v in both.values()} == {"done"}


def test_differences_without_spread_decide_only_with_a_resolution() -> None:
    values = {"a": dict.fromkeys(range(3), 0.902), "b": dict.fromkeys(range(3), 0.9)}
    settings = {"direction": "maximize", "max_replicates": 9}
    assert race.decide(values, **settings)["b"].action == "continue"  # type: ignore[arg-type]
    # one image of 500 is no evidence, four hundred are
    assert race.decide(values, resolution=1 / 500, **settings)["b"].action == "continue"  # type: ignore[arg-type]
    values["b"] = dict.fromkeys(range(3), 0.1)
    assert race.decide(values, resolution=1 / 500, **settings)["b"].action == "drop"  # type: ignore[arg-type]


def test_a_single_variant_races_nobody() -> None:
    verdicts = race.decide({"a": dict(enumerate([1.0, 2.0, 3.0]))}, direction="maximize", max_replicates=9)
    assert verdicts["a"].action == "done" and verdicts["a"].replicates == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 0.3}, "study.racing.confidence"),
        ({"min_replicates": 1}, "study.racing.min_replicates: must be a whole number >= 2, for a paired interval"),
        ({"min_replicates": 5, "max_replicates": 4}, "study.racing.max_replicates: must be at least"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        race.decide({"a": {}}, direction="maximize", **({"max_replicates": 9} | settings))  # type: ignore[arg-type]
