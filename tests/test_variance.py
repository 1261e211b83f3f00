"""The analysis of variance, against sums worked out by hand and ordinary least squares."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fanin.errors import ConfigError
from fanin.variance import anova


def runs(levels: dict[str, int], replicates: int, value: Callable[..., float]) -> pd.DataFrame:
    """One row per combination and replicate; `value` takes the level numbers, then the replicate."""
    rows = [
        {**dict(zip(levels, cell, strict=True)), "replicate": r, "y": value(*cell, r)}
        for cell in itertools.product(*map(range, levels.values()))
        for r in range(replicates)
    ]
    return pd.DataFrame(rows)


def shares(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["effect"], table["share"], strict=True))


def test_a_two_by_two_grid_splits_as_by_hand() -> None:
    # cells 1 2 / 3 8 with replicates +-1: grand mean 3.5, effects of a: +-2, of b: +-1.5, of both: +-1
    cells = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 8.0}
    sign = {(0, 0): 1, (0, 1): -1, (1, 0): -1, (1, 1): 1}  # of the replicates, so that they share nothing
    table = anova(
        runs({"a": 2, "b": 2}, 2, lambda a, b, r: cells[a, b] + sign[a, b] * (1 - 2 * r)),
        by=["a", "b"],
        metric="y",
    )
    total = 4.0 + 2.25 + 1.0 + 1.0
    assert shares(table) == pytest.approx(
        {"a": 4 / total, "b": 2.25 / total, "a x b": 1 / total, "noise": 1 / total, "replicate": 0.0}
    )
    assert table["share"].sum() == pytest.approx(1.0) == table["corrected"].sum()
    # by hand: SS = 8 runs * variance; MS noise = 8 / 3; omega^2(a) = (32 - 8/3) / (66 + 8/3)
    corrected = dict(zip(table["effect"], table["corrected"], strict=True))
    assert corrected["a"] == pytest.approx((32 - 8 / 3) / (66 + 8 / 3))
    assert dict(zip(table["effect"], table["freedom"], strict=True)) == {
        "a": 1,
        "b": 1,
        "a x b": 1,
        "noise": 3,
        "replicate": 1,
    }


def test_what_every_variant_shares_under_one_seed_is_no_noise() -> None:
    table = anova(runs({"a": 3}, 4, lambda a, r: a + 10.0 * r), by=["a"], metric="y")
    assert shares(table)["noise"] == pytest.approx(0.0, abs=1e-12)
    assert shares(table)["replicate"] == pytest.approx(125 / (125 + 2 / 3))


def test_the_split_equals_that_of_least_squares_with_dummies() -> None:
    generator = np.random.default_rng(0)
    table = runs({"a": 3, "b": 2, "c": 4}, 3, lambda *_: generator.normal())
    got = shares(anova(table, by=["a", "b", "c"], metric="y"))

    def explained(*terms: tuple[str, ...]) -> float:
        """The sum of squares explained by dummies for every combination of levels in each term."""
        columns = [np.ones((len(table), 1))]
        for term in terms:
            columns.append(pd.get_dummies(table[list(term)].astype(str).agg("-".join, axis=1)).to_numpy(float))
        design = np.hstack(columns)
        fit = design @ np.linalg.lstsq(design, table["y"].to_numpy(), rcond=None)[0]
        return float(((fit - table["y"].mean()) ** 2).sum())

    total = float(((table["y"] - table["y"].mean()) ** 2).sum())
    assert got["b"] == pytest.approx(explained(("b",)) / total)
    pair = explained(("a",), ("c",), ("a", "c")) - explained(("a",), ("c",))
    assert got["a x c"] == pytest.approx(pair / total)
    assert got["replicate"] == pytest.approx(explained(("replicate",)) / total)
    assert got["noise"] == pytest.approx(1 - explained(("a", "b", "c"), ("replicate",)) / total)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert got["higher order"] == pytest.approx((explained(("a", "b", "c")) - explained(*pairs)) / total)


def test_pure_noise_has_no_corrected_importance_on_average() -> None:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(100):
        table = anova(runs({"a": 5, "b": 4}, 2, lambda *_: generator.normal()), by=["a", "b"], metric="y")
        found.append(table.set_index("effect")[["share", "corrected"]].loc["a"])
    mean = pd.DataFrame(found).mean()
    assert mean["share"] == pytest.approx(4 / 39, abs=0.02)  # its degrees of freedom, no more
    assert mean["corrected"] == pytest.approx(0.0, abs=0.02)


def test_one_replicate_leaves_noise_unknown() -> None:
    table = anova(runs({"a": 2, "b": 2}, 1, lambda a, b, r: a * b), by=["a", "b"], metric="y")
    assert set(table["kind"]) == {"main", "interaction"}
    assert table["share"].sum() == pytest.approx(1.0) and table["corrected"].isna().all()


def test_a_constant_metric_gives_nobody_a_share() -> None:
    table = anova(runs({"a": 2, "b": 2}, 2, lambda *_: 0.1), by=["a", "b"], metric="y")
    assert shares(table) == {effect: 0.0 for effect in table["effect"]}


def test_list_choices_and_categoricals_are_levels_like_any_other() -> None:
    table = runs({"a": 2, "b": 3}, 2, lambda a, b, r: a + b)
    table["a"] = pd.Categorical.from_codes(table["a"].to_numpy(), ["none", "dropout"])
    table["b"] = [["x"] * (1 + b) for b in table["b"]]
    assert shares(anova(table, by=["a", "b"], metric="y"))["a"] == pytest.approx(0.25 / (0.25 + 2 / 3))


@pytest.mark.parametrize("damage", ["missing", "twice", "nan"])
def test_a_grid_with_a_hole_a_double_or_a_nan_is_refused(damage: str) -> None:
    table = runs({"a": 2, "b": 2}, 2, lambda a, b, r: a + b)
    if damage == "missing":
        table = table.iloc[1:]
    elif damage == "twice":
        table = pd.concat([table, table.iloc[:1]])
    else:
        table.loc[0, "y"] = math.nan
    with pytest.raises(ConfigError, match="every combination of a, b with the same replicates.*for 8 places"):
        anova(table, by=["a", "b"], metric="y")
