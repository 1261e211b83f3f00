"""Where noise comes from: variance components against statsmodels and simulated truth, and seeds of one purpose."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from statsmodels.formula.api import ols
from trained import SMALL, configuration, train

from fanin import noise
from fanin.app import main
from fanin.comparison import compare_runs
from fanin.errors import ConfigError
from fanin.leaderboard import leaderboard
from fanin.randomness import Streams, check_seeds
from fanin.sweep.identity import identity_of


def crossed(sd: dict[str, float], *, count: int, rest: float, rng: numpy.random.Generator) -> pandas.DataFrame:
    """Runs of `count` seeds of each purpose, all with all; each seed's luck has the standard deviation `sd`."""
    luck = {purpose: rng.normal(0, spread, count) for purpose, spread in sd.items()}
    rows = []
    for seeds in itertools.product(range(count), repeat=len(sd)):
        score = sum(luck[purpose][seed] for purpose, seed in zip(sd, seeds, strict=True)) + rest * rng.normal()
        named = {f"seeds.{purpose}": seed for purpose, seed in zip(sd, seeds, strict=True)}
        rows.append(named | {"replicate": 0, "score": score})
    return pandas.DataFrame(rows)


def finished(runs: pandas.DataFrame, **columns: Any) -> pandas.DataFrame:
    state = {"status": "FINISHED", "diverged": False, "reason": None, "seconds": 1.0}
    return runs.assign(variant=[str(i) for i in range(len(runs))], **state, **columns)


def test_components_are_those_of_the_textbooks_from_statsmodels_mean_squares() -> None:
    runs = crossed({"init": 2.0, "order": 1.0}, count=6, rest=0.5, rng=numpy.random.default_rng(0))
    formula = "score ~ C(Q('seeds.init')) + C(Q('seeds.order'))"
    table = sm.stats.anova_lm(ols(formula, runs).fit())
    squares = (table["sum_sq"] / table["df"]).to_list()  # init, order, residual
    init, order = ((square - squares[2]) / 6 for square in squares[:2])
    found = noise.split(runs, by=[], metric="score")
    assert found is not None
    wanted = [math.sqrt(variance) for variance in (init, order, squares[2], init + order + squares[2])]
    assert found.table["source"].to_list() == ["init", "order", "only together", "all"]
    assert found.table["sd"].to_list() == pytest.approx(wanted)
    assert max(map(len, noise.render(found).splitlines())) <= 100
    assert found.table["share"].to_list() == pytest.approx([(one / wanted[3]) ** 2 for one in wanted])


def test_three_sources_are_told_apart_and_what_none_has_is_only_together() -> None:
    rng = numpy.random.default_rng(0)
    found = noise.split(
        crossed({"init": 3.0, "order": 0.0, "dropout": 1.0}, count=12, rest=1.0, rng=rng), by=[], metric="score"
    )
    assert found is not None
    sd = dict(zip(found.table["source"], found.table["sd"], strict=True))
    assert sd["init"] == pytest.approx(3, rel=0.5) and sd["dropout"] == pytest.approx(1, rel=0.5)
    assert sd["order"] < 0.15 and sd["only together"] == pytest.approx(1, rel=0.1)
    assert "1728 runs, 12 init x 12 order x 12 dropout seeds" in found.what


def test_variants_are_pooled_and_their_difference_is_no_noise() -> None:
    rng = numpy.random.default_rng(0)
    some = [crossed({"init": 1.0, "order": 1.0}, count=5, rest=0.5, rng=rng).assign(lr=lr) for lr in (0.1, 0.2)]
    shifted = [some[0], some[1].assign(score=some[1]["score"] + 100)]
    near, far = (noise.split(pandas.concat(runs), by=["lr"], metric="score") for runs in (some, shifted))
    assert near is not None and far is not None
    assert near.table["sd"].to_list() == pytest.approx(far.table["sd"].to_list())


def test_intervals_of_shares_and_of_means_cover_the_truth() -> None:
    """init has 4 of 5.25 parts of the variance; 3 deviations of the binomial around 95 %."""
    rng = numpy.random.default_rng(0)
    shares = means = 0
    for _ in range(400):
        runs = crossed({"init": 2.0, "order": 1.0}, count=5, rest=0.5, rng=rng)
        found = noise.split(runs, by=[], metric="score")
        assert found is not None
        low, high = found.table.loc[0, ["low", "high"]]
        shares += low <= 4 / 5.25 <= high
        means += abs(runs["score"].mean()) <= noise.half_width(runs, "score")
    assert 0.92 <= shares / 400 <= 0.985 and 0.92 <= means / 400 <= 0.985


def test_crossed_runs_are_not_counted_as_independent() -> None:
    """All luck is the initial weights': 5 x 5 runs are then worth 5, and the interval is that of the 5 means."""
    runs = crossed({"init": 1.0, "order": 0.0}, count=5, rest=1e-9, rng=numpy.random.default_rng(0))
    means = runs.groupby("seeds.init")["score"].mean()
    half = stats.t.ppf(0.975, 4) * means.std() / math.sqrt(5)
    assert noise.half_width(runs, "score") == pytest.approx(half, rel=1e-3)
    board = leaderboard(finished(runs), metric="score", direction="maximize", by=[], classes=10)
    assert not noise.independent(runs) and len(board) == 25
    pooled, by = noise.pooled(finished(runs), ["seeds.init", "seeds.order"])
    board = leaderboard(pooled, metric="score", direction="maximize", by=by, classes=10)
    assert len(board) == 1 and board["high"].iloc[0] - board["mean"].iloc[0] == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("damage", ["hole", "double", "nan", "one source"])
def test_seeds_that_do_not_cross_completely_are_not_split(damage: str) -> None:
    runs = crossed({"init": 1.0, "order": 1.0}, count=3, rest=0.5, rng=numpy.random.default_rng(0))
    if damage == "hole":
        runs = runs.drop(index=4)
    elif damage == "double":
        runs = pandas.concat([runs, runs.tail(1)])
    elif damage == "nan":
        runs.loc[4, "score"] = math.nan
    else:
        runs = runs[runs["seeds.order"] == 0]
    assert noise.split(runs, by=[], metric="score") is None
    if damage != "one source":
        assert math.isnan(noise.half_width(runs, "score"))


def test_seeds_in_step_are_replicates_of_a_comparison_and_crossed_ones_are_averaged() -> None:
    rng = numpy.random.default_rng(0)
    luck = rng.normal(size=6)
    rows = [
        {"initializer": level, "seeds.init": s, "seeds.order": s, "replicate": 0, "score": plus + luck[s]}
        for level, plus in (("a", 1.0), ("b", 0.0))
        for s in range(6)
    ]
    settings: dict[str, Any] = {"by": "initializer", "metric": "score", "direction": "maximize"}
    keys = ["seeds.init", "seeds.order"]
    found = compare_runs(finished(pandas.DataFrame(rows)), within=keys, **settings)
    assert found.differences["n"].to_list() == [6] and found.within == () and found.rho == pytest.approx(1)

    tables = [crossed({"init": 1.0, "order": 1.0}, count=3, rest=1, rng=rng).assign(initializer=one) for one in "ab"]
    found = compare_runs(finished(pandas.concat(tables)), within=keys, **settings)
    assert found.differences["n"].to_list() == [1]
    assert any("no independent repetitions" in note for note in found.notes)


# Seeds of one purpose


def test_a_seed_changes_its_own_purpose_only() -> None:
    plain, other = Streams(0, 0), Streams(0, 0, {"init": 3, "order": None})
    assert other.derive("init", "x") == Streams(0, 3).derive("init", "x") != plain.derive("init", "x")
    assert other.derive("order") == plain.derive("order") and other.derive("split") == plain.derive("split")


def test_a_run_takes_the_seeds_it_is_given(project: Path) -> None:
    """The same initial weights under another order; and all seeds of replicate 1 are replicate 1."""
    small = (*SMALL, "regularization=dropout", "epochs=1")
    every = [f"seeds.{purpose}=1" for purpose in ("split", "init", "order", "dropout")]
    found = {}
    for name, overrides in {"a": [], "b": ["seeds.order=1"], "c": ["replicate=1"], "d": every}.items():
        digest = train(configuration(*small, *overrides), project / name)
        found[name] = (
            [record["metrics"] for record in digest.epochs],
            torch.load(project / name / "artifacts" / "last.pt", weights_only=True),
        )
    layers = [key for key in found["a"][0][0] if key.startswith("weight/")]
    assert [found["a"][0][0][key] for key in layers] == [found["b"][0][0][key] for key in layers]
    assert found["a"][0][1]["val/loss"] != found["b"][0][1]["val/loss"]
    for key, tensor in found["c"][1].items():
        assert torch.equal(tensor, found["d"][1][key])


def test_seeds_that_are_not_set_leave_a_variants_identity_as_it_was(project: Path) -> None:
    config = configuration(*SMALL)
    without = {key: value for key, value in config.items() if key != "seeds"}
    assert identity_of(config) == identity_of(without)
    assert identity_of(configuration(*SMALL, "seeds.init=1")) != identity_of(config)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [({"ordre": 1}, "order"), ({"init": -1}, "seeds.init"), ({"init": True}, "seeds.init"), ({"init": 0.5}, ">= 0")],
)
def test_bad_seeds_are_refused(seeds: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_seeds(seeds)


def test_a_sweep_of_seeds_ends_with_where_the_noise_comes_from(project: Path, capsys: Any) -> None:
    small = ["model=softmax", "data=digits", "epochs=1", "stats=off", "study.name=luck"]
    assert main(["train", "-m", *small, "initializer=normal_002", "seeds.init=0,1", "seeds.order=0,1,2"]) == 0
    first = capsys.readouterr().out
    assert main(["results", "luck"]) == 0
    second = capsys.readouterr().out
    table = first[first.index("Where the noise") : first.index("\nThis session")].strip()
    assert "6 runs, 2 init x 3 order seeds" in table and table in second
    assert "1  default" in first
    assert main(["report", "luck"]) == 0
    page = (project / "reports" / "luck.html").read_text()
    assert "Of the variance between runs with other seeds: init " in page and 'id="noise"' in page
