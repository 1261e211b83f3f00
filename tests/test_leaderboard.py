import math

import pandas
import pytest
from scipy import stats

from fanin.errors import ConfigError
from fanin.leaderboard import half_width, lead, leaderboard, render, render_markdown

NAN = math.nan


def table_of(rows, metric="val/accuracy"):
    """Rows: (initializer, metric, diverged, status, reason)."""
    columns = ["initializer", metric, "diverged", "status", "reason"]
    table = pandas.DataFrame(rows, columns=columns)
    for column in ("initializer", "status", "reason"):
        table[column] = table[column].astype("category")
    return table.assign(seconds=2.0, variant=table["initializer"])


def finished(name, *values):
    return [(name, value, False, "FINISHED", None) for value in values]


def rank(table, metric="val/accuracy", direction="maximize", by=("initializer",), classes=10):
    return leaderboard(table, metric=metric, direction=direction, by=by, classes=classes)


def row_of(table, name):
    return table[table["initializer"] == name].iloc[0]


def test_the_interval_is_students():
    values = pandas.Series([0.9, 0.92, 0.97]).to_numpy()
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert math.isclose(half_width(values), (high - low) / 2)
    row = row_of(rank(table_of(finished("he", 0.9, 0.92, 0.97))), "he")
    assert math.isclose(row["low"], low) and math.isclose(row["high"], high) and row["n"] == 3


def test_with_two_values_the_interval_is_12_7_times_half_their_distance():
    assert math.isclose(half_width(pandas.Series([1.0, 3.0]).to_numpy()), 12.7062047, rel_tol=1e-8)


def test_one_replicate_has_no_interval_and_the_text_says_so():
    table = rank(table_of(finished("he", 0.9) + finished("xavier", 0.8)))
    assert table["low"].isna().all()
    assert "no interval" in render(table) and "±" not in render(table)


@pytest.mark.parametrize(("direction", "first"), [("maximize", "he"), ("minimize", "zeros")])
def test_the_best_comes_first(direction, first):
    table = rank(table_of(finished("zeros", 0.1, 0.1) + finished("he", 0.9, 0.8)), direction=direction)
    assert table["initializer"][1] == first and table.index.tolist() == [1, 2]


def test_diverged_runs_count_as_a_guess_and_are_not_dropped():
    lost = [("he", NAN, True, "FINISHED", "diverged"), ("he", 0.7, True, "FAILED", "diverged")]
    row = row_of(rank(table_of(finished("he", 0.9) + lost)), "he")
    assert math.isclose(row["mean"], (0.9 + 0.1 + 0.1) / 3)
    assert (row["n"], row["diverged"]) == (3, 2)
    lost = [("he", math.inf, True, "FINISHED", "diverged")]
    table = rank(table_of(finished("he", 0.5) + lost, "val/loss"), "val/loss", "minimize")
    assert math.isclose(row_of(table, "he")["mean"], (0.5 + math.log(10)) / 2)


def test_a_diverged_run_counts_as_the_worst_where_no_guess_is_known():
    lost = [("he", NAN, True, "FINISHED", "diverged")]
    table = rank(table_of(finished("he", 1.0) + finished("zeros", 5.0) + lost, "score"), "score", "minimize")
    assert row_of(table, "he")["mean"] == 3.0


def test_unfinished_runs_are_counted_but_not_averaged():
    others = [
        ("he", 0.2, False, "KILLED", "its process died"),
        ("he", 0.2, False, "FAILED", "out of memory"),
        ("he", 0.2, False, "RUNNING", None),
        ("he", 0.2, False, "FINISHED", "pruned: median"),
        ("zeros", 0.3, False, "KILLED", None),
    ]
    table = rank(table_of(finished("he", 0.9, 0.9) + others))
    assert row_of(table, "he")["mean"] == 0.9 and row_of(table, "he")["unfinished"] == 4
    zeros = row_of(table, "zeros")
    assert zeros["n"] == 0 and math.isnan(zeros["mean"]) and table["initializer"][2] == "zeros"
    assert "Unfinished" in render(table)


def test_variants_are_told_apart_by_all_keys_and_a_missing_value_is_a_value():
    table = table_of(finished("he", 0.9, 0.8, 0.7)).assign(**{"optimizer.momentum": [0.9, NAN, NAN]})
    ranked = rank(table, by=["initializer", "optimizer.momentum"])
    assert ranked["n"].tolist() == [1, 2]
    assert "-" in render(ranked).splitlines()[5]


def test_the_text_fits_into_its_width_and_shows_every_column():
    table = table_of(finished("h" * 80, 0.91, 0.92) + finished("zeros", 0.1, 0.1)).assign(
        **{"a_rather_long.parameter_name": "value" * 20, "optimizer.lr": 1e-05}
    )
    text = render(rank(table, by=["initializer", "a_rather_long.parameter_name", "optimizer.lr"]), width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "0.9150 ± 0.0635" in text and "1e-05" in text and "…" in text


def test_where_the_keys_are_too_wide_their_last_parts_stand_for_them_and_no_number_is_cut():
    keys = ["model", "model.depth", "model.width", "model.norm", "initializer", "optimizer.lr"]
    table = table_of(finished("xavier_uniform", 0.91, 0.92)).assign(
        **{"model": "cnn_small", "model.depth": 10, "model.width": 256, "model.norm": "batch", "optimizer.lr": 0.03}
    )
    wide, narrow = (render(rank(table, by=keys), width=width).splitlines() for width in (120, 100))
    assert wide[2].split() == ["#", *keys, "val/accuracy", "n", "seconds"]
    assert narrow[2].split() == ["#", *(key.split(".")[-1] for key in keys), "val/accuracy", "n", "seconds"]
    assert "0.9150 ± 0.0635" in narrow[4] and "…" not in narrow[4]
    tight = render(rank(table.assign(width=1), by=[*keys, "width"]), width=84).splitlines()
    assert "0.9150 ± 0.0635" in tight[4] and tight[2].count("model…") == 3  # two would be called width


def test_rows_beyond_the_limit_are_announced():
    table = rank(table_of([row for i in range(30) for row in finished(f"i{i}", i / 100)]))
    assert "10 more variants are not shown" in render(table, rows=20)


def test_markdown_is_a_table_with_a_cell_per_column():
    table = rank(table_of(finished("a|b", 0.91, 0.92) + finished("zeros", 0.1, 0.1)))
    lines = render_markdown(table).splitlines()
    assert lines[2:5] == [
        "| # &nbsp; | initializer &nbsp; | val/accuracy &nbsp; | n &nbsp; | seconds &nbsp; |",
        "| ---: | --- | ---: | ---: | ---: |",
        "| 1 &nbsp; | a\\|b &nbsp; | 0.9150 ± 0.0635 &nbsp; | 2 &nbsp; | 2.0 &nbsp; |",
    ]


def test_the_lead_is_one_sentence_with_the_best_variant():
    table = rank(table_of(finished("he", 0.9, 0.92) + finished("zeros", 0.1, 0.1)))
    assert lead(table) == "**initializer=he** leads with val/accuracy **0.9100 ± 0.1271**."
    assert lead(table.head(0)) == "" and lead(rank(table_of([("he", NAN, False, "RUNNING", None)]))) == ""


def test_unknown_columns_and_directions_are_refused():
    table = table_of(finished("he", 0.9))
    with pytest.raises(ConfigError, match="did you mean 'val/accuracy'"):
        rank(table, metric="val/acuracy")
    with pytest.raises(ConfigError, match="did you mean 'initializer'"):
        rank(table, by=["initialiser"])
    with pytest.raises(ConfigError, match="study.direction"):
        rank(table, direction="up")


def test_a_study_without_runs_has_an_empty_leaderboard():
    assert render(rank(table_of([]))).startswith("val/accuracy (higher is better)")


def test_a_study_in_which_nothing_finished_says_so():
    table = table_of([("he", 0.2, False, "FAILED", "out of memory")]).drop(columns="val/accuracy")
    ranked = rank(table)
    assert ranked["unfinished"].tolist() == [1] and ranked["mean"].isna().all()
    assert "Unfinished" in render(ranked)
