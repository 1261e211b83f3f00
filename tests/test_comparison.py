"""Comparisons of levels from tables of runs: what is paired, what is said, and what is refused."""

import itertools
import math

import numpy
import pandas
import pytest
from recorded import CONFIG, make_run, make_study, new_database, train
from scipy import stats

import fanin
from fanin.comparison import compare_runs
from fanin.errors import ConfigError
from fanin.shipping import sync
from fanin.spool import Spool
from fanin.sweep.verdicts import judge
from fanin.tracking import Tracker

NAN = math.nan


def runs_of(values, *, metric="test/accuracy", **columns):
    """A row per run; `values` maps an initializer to its values by replicate."""
    rows = [
        {"initializer": level, "replicate": replicate, metric: value, **columns}
        for level, series in values.items()
        for replicate, value in enumerate(series)
    ]
    state = {"status": "FINISHED", "diverged": False, "reason": None, "seconds": 2.0}
    table = pandas.DataFrame(rows).assign(**state)
    for column in ("initializer", "status"):
        table[column] = table[column].astype("category")
    return table


def compared(runs, **settings):
    defaults = {"by": "initializer", "metric": "test/accuracy", "direction": "maximize", "classes": 10}
    return compare_runs(runs, **(defaults | settings))


def noise(n=10, *, seed=0, scale=0.005):
    return numpy.random.default_rng(seed).normal(0, scale, n)


def three_levels(n=10):
    common = noise(n, seed=9)
    return {
        "he": 0.95 + common + noise(n, seed=1),
        "xavier": 0.94 + common + noise(n, seed=2),
        "zeros": numpy.full(n, 0.1),
    }


def row_of(table, level):
    return table[table["level"] == level].iloc[0]


# Pairs


def test_differences_are_paired_by_replicate_whatever_the_order_of_the_rows():
    values = three_levels()
    found = compared(runs_of(values).sample(frac=1, random_state=0))
    row, d = row_of(found.differences, "xavier"), values["xavier"] - values["he"]
    assert found.reference == "he" and row["n"] == 10 and row["missing"] == 0
    assert row["difference"] == pytest.approx(d.mean())
    assert row["p"] == pytest.approx(
        stats.permutation_test((d,), numpy.mean, permutation_type="samples", n_resamples=numpy.inf).pvalue
    )
    level = 1 - 2 * stats.norm.cdf(-math.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
    rng = numpy.random.default_rng(0)
    interval = stats.bootstrap((d,), numpy.mean, confidence_level=level, rng=rng).confidence_interval
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval), rel=2e-3)


def test_rho_is_what_pairing_saves():
    values = three_levels()
    he, xavier = values["he"], values["xavier"]
    rho = row_of(compared(runs_of(values)).differences, "xavier")["rho"]
    assert (he - xavier).var(ddof=1) == pytest.approx((he.var(ddof=1) + xavier.var(ddof=1)) * (1 - rho))
    assert rho > 0.3


def test_a_replicate_that_one_level_lacks_is_left_out_of_their_pairs_and_announced():
    values = three_levels()
    runs = runs_of(values | {"xavier": values["xavier"][:7]})
    found = compared(runs)
    row = row_of(found.differences, "xavier")
    assert (row["n"], row["missing"]) == (7, 3)
    assert row["difference"] == pytest.approx((values["xavier"] - values["he"])[:7].mean())
    assert "only one of xavier and he has all runs of 3 replicates" in found.notes[-1]


def two_factor_runs(n=8):
    """Learning rates make a large difference that is the same for all levels."""
    tables = []
    for i, lr in enumerate((0.1, 0.01, 0.001)):
        levels = {name: 0.5 + 0.1 * i + shift + noise(n, seed=10 * i + k) for k, (name, shift) in enumerate(SHIFTS)}
        tables.append(runs_of(levels, **{"optimizer.lr": lr}))
    return pandas.concat(tables, ignore_index=True)


SHIFTS = (("he", 0.02), ("xavier", 0.0))


def test_other_keys_are_blocks_within_which_levels_are_paired_and_over_which_they_are_averaged():
    runs = two_factor_runs()
    found = compared(runs, within=["optimizer.lr"])
    keys = ["replicate", "initializer", "optimizer.lr"]
    wide = runs.set_index(keys)["test/accuracy"].unstack(["initializer", "optimizer.lr"])
    d = (wide["xavier"] - wide["he"]).mean(axis=1)
    row = found.differences.iloc[0]
    assert row["n"] == 8, "a replicate counts once: its three runs share their seeds"
    assert row["difference"] == pytest.approx(d.mean()) and row["verdict"] == "worse"
    assert found.within == ("optimizer.lr",) and found.blocks.shape == (3, 2)
    assert any("equal values of optimizer.lr (3 values)" in note for note in found.notes)


def test_a_block_that_one_level_lacks_is_not_averaged_over():
    runs = two_factor_runs()
    runs = runs[~(runs["initializer"].eq("xavier") & runs["optimizer.lr"].eq(0.1))]
    found = compared(runs, within=["optimizer.lr"])
    assert found.reference == "he", "though xavier lacks the learning rate that is worst for all"
    assert found.differences["difference"][0] == pytest.approx(-0.02, abs=0.01)
    assert "Left out: 1 of 3 combinations of optimizer.lr, which not all levels have." in found.notes


def test_a_replicate_with_a_gap_in_a_block_is_left_out():
    runs = two_factor_runs().drop(index=0)
    row = compared(runs, within=["optimizer.lr"]).differences.iloc[0]
    assert (row["n"], row["missing"]) == (7, 1)


def test_a_search_without_common_points_has_no_pairs_and_says_so():
    runs = runs_of(three_levels())
    runs["optimizer.lr"] = noise(len(runs), scale=1)
    found = compared(runs, within=["optimizer.lr"])
    assert (found.differences["n"] == 0).all() and set(found.differences["verdict"]) == {"undecided"}
    assert "share no value of optimizer.lr" in found.notes[-1]
    assert "sure" not in str(found) and "each alone against he: undecided (no pairs): all" in str(found)
    assert found.best_of["tries"].eq("point").all() and found.best_of["expected"].notna().all()


def test_a_key_that_walks_in_step_with_the_levels_is_no_block():
    runs = runs_of(three_levels())
    runs["optimizer.lr"] = runs["initializer"].astype(str).map({"he": 0.1, "xavier": 0.2, "zeros": 0.3})
    found = compared(runs, within=["optimizer.lr"])
    assert found.within == () and (found.differences["n"] == 10).all()
    assert any("optimizer.lr changes with initializer" in note for note in found.notes)


def test_that_another_level_is_best_elsewhere_is_announced():
    runs = two_factor_runs()
    runs.loc[runs["initializer"].eq("he") & runs["optimizer.lr"].eq(0.1), "test/accuracy"] -= 0.04
    said = compared(runs, within=["optimizer.lr"]).sentences[-1]
    assert said == "the best mean changes with optimizer.lr: he with 0.001, 0.01; xavier with 0.1"
    losses = runs.rename(columns={"test/accuracy": "loss"}).assign(loss=-runs["test/accuracy"])
    assert compared(losses, metric="loss", direction="minimize", within=["optimizer.lr"]).sentences[-1] == said


# Outcomes


def test_diverged_runs_count_as_a_guess_and_are_never_dropped():
    runs = runs_of(three_levels())
    lost = runs["initializer"].eq("he") & runs["replicate"].lt(4)
    runs.loc[lost, "diverged"], runs.loc[lost, "test/accuracy"] = True, NAN
    found = compared(runs)
    level = row_of(found.levels, "he")
    kept = runs.loc[runs["initializer"].eq("he") & ~lost, "test/accuracy"]
    assert level["n"] == 10 and (level["diverged"], level["divergence"]) == (4, 0.4)
    assert level["mean"] == pytest.approx((4 * 0.1 + kept.sum()) / 10)
    assert found.reference == "xavier", "what mostly works better is not better"
    assert "4 diverged runs count as a guess would" in str(found)


def test_unfinished_runs_are_left_out_and_counted():
    runs = runs_of(three_levels())
    runs["status"] = runs["status"].astype(object)
    runs.loc[runs["replicate"].ge(8), "status"] = "RUNNING"
    found = compared(runs)
    assert (found.levels["unfinished"] == 2).all() and (found.differences["n"] == 8).all()
    assert "6 unfinished runs are left out" in str(found)


def test_a_level_without_a_finished_run_is_named():
    runs = runs_of(three_levels())
    runs["status"] = runs["status"].astype(object)
    runs.loc[runs["initializer"].eq("zeros"), "status"] = "FAILED"
    assert "No finished run: zeros." in compared(runs).notes


def test_less_is_better_where_a_metric_is_minimized():
    values = {name: 1 - series for name, series in three_levels().items()}
    found = compared(runs_of(values, metric="test/loss"), metric="test/loss", direction="minimize")
    more = compared(runs_of(three_levels()))
    assert found.levels["level"].tolist() == more.levels["level"].tolist() == ["he", "xavier", "zeros"]
    assert found.differences["verdict"].tolist() == ["worse", "worse"]
    assert found.differences["improvement"].tolist() == pytest.approx(more.differences["improvement"].tolist())
    assert "he beats zeros by 0.8" in found.verdict
    assert found.levels["best"].tolist() == more.levels["best"].tolist() == [True, False, False]


# Verdicts


def test_without_a_baseline_the_family_is_all_pairs_with_one_it_is_the_others():
    runs = runs_of(three_levels())
    best, baseline = compared(runs), compared(runs, baseline="zeros")
    assert (best.comparisons, baseline.comparisons) == (3, 2)
    assert row_of(best.differences, "zeros")["p"] == 2 / 2**10
    assert row_of(best.differences, "zeros")["holm"] == pytest.approx(3 * 2 / 2**10)
    assert row_of(baseline.differences, "he")["holm"] == pytest.approx(2 * 2 / 2**10)
    assert baseline.differences["verdict"].tolist() == ["better", "better"]
    assert len(best.pairs) == 3 and baseline.reference == "zeros"


def test_five_replicates_can_decide_no_pair_and_the_number_that_could_is_named():
    two = {name: series[:5] for name, series in three_levels().items() if name != "xavier"}
    found = compared(runs_of(two))
    assert found.differences["verdict"].tolist() == ["undecided"]
    assert "undecided (5 replicates can never reach p < .05; 6 could): zeros" in " ".join(found.verdict.split())


def test_more_levels_need_more_replicates_a_baseline_named_beforehand_fewer():
    nine = {f"level{i}": 0.9 - 0.1 * i + noise(5, seed=i) for i in range(9)}
    said = " ".join(compared(runs_of(nine)).verdict.split())
    assert "over 36 comparisons; 11 could, 9 against a baseline named beforehand" in said
    assert "95 % sure: the best is" in said, "but which ones are not the best is known"
    assert "(one test of all levels together) each alone against level0, which asks more: undecided (5 repl" in said
    with_baseline = " ".join(compared(runs_of(nine), baseline="level3").verdict.split())
    assert "over 8 comparisons; 9 could)" in with_baseline


def test_undecided_with_enough_replicates_needs_no_reason():
    alike = {"he": 0.9 + noise(6, scale=0.05), "xavier": 0.9 + noise(6, seed=1, scale=0.05)}
    found = compared(runs_of(alike))
    assert (found.differences["verdict"][0], found.differences["why"][0]) == ("undecided", "")
    assert "undecided: " in found.verdict


def test_the_t_test_can_decide_with_few_replicates_and_says_what_it_takes_for_granted():
    five = {name: series[:5] for name, series in three_levels().items()}
    found = compared(runs_of(five), test="t")
    assert row_of(found.differences, "zeros")["verdict"] == "worse"
    d = five["zeros"] - five["he"]
    assert row_of(found.differences, "zeros")["p"] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert "takes differences for normal" in " ".join(found.verdict.split())


def test_levels_that_differ_less_than_the_margin_are_called_equivalent():
    same = {"he": 0.94 + noise(scale=0.0005), "xavier": 0.94 + noise(seed=1, scale=0.0005)}
    found = compared(runs_of(same)).differences.iloc[0]
    assert found["verdict"] == "equivalent" and found["equivalence"] < 0.05 < found["holm"]
    assert compared(runs_of(same), margin=1e-5).differences["verdict"][0] == "undecided"
    assert "equals" in compared(runs_of(same)).verdict and "within 0.002" in compared(runs_of(same)).verdict


def test_a_certain_difference_below_the_margin_is_told_as_that():
    close = {"he": 0.9405 + noise(scale=0.0001), "xavier": 0.94 + noise(seed=1, scale=0.0001)}
    found = compared(runs_of(close)).differences.iloc[0]
    assert (found["verdict"], found["why"]) == ("worse", "but by less than 0.002")


def test_a_metric_without_a_usual_margin_has_no_claims_of_equivalence():
    same = {"he": noise(scale=1e-9), "xavier": noise(seed=1, scale=1e-9)}
    runs = runs_of(same, metric="seconds per epoch")
    found = compared(runs, metric="seconds per epoch", direction="minimize")
    assert found.differences["equivalence"][0] == 1.0 and found.differences["verdict"][0] == "undecided"


def test_the_sentence_has_the_size_the_interval_and_the_p():
    found = compared(runs_of(three_levels()))
    row = row_of(found.differences, "zeros")
    said = f"he beats zeros by {-row['difference']:.4f} [{-row['high']:.4f}, {-row['low']:.4f}], p .0059, n=10"
    assert said in found.verdict
    against_zeros = compared(runs_of(three_levels()), baseline="zeros").verdict
    assert f"he beats zeros by {-row['difference']:.4f} [{-row['high']:.4f}, {-row['low']:.4f}]" in against_zeros


# The whole


def test_the_text_fits_100_columns_and_has_everything():
    long = {f"a very long name of an initializer that goes on and on, number {i}": noise(8, seed=i) for i in range(20)}
    runs = pandas.concat([runs_of(long, **{"optimizer.lr": lr}) for lr in (0.1, 0.01)], ignore_index=True)
    text = str(compared(runs, within=["optimizer.lr"], title="initializers: Which?"))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "initializers: Which?",
        "P(better)",
        "undecided",
        "Shares of the variance",
        "averaged over them",
    ):
        assert part in text


def test_markdown_is_a_list_and_html_is_escaped():
    found = compared(runs_of({"<b>": 0.9 + noise(), "he|she": 0.5 + noise()}), title="a < b")
    head, blank, *items = found.markdown.splitlines()
    assert not blank and items and all(item.startswith("- ") for item in items)
    assert "he\\|she" in found.markdown and "&lt;b>" in found.markdown
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()


def test_shares_are_there_for_a_complete_grid_only():
    runs = two_factor_runs()
    shares = compared(runs, within=["optimizer.lr"]).shares
    assert shares["share"].sum() == pytest.approx(1) and shares["effect"][0] == "optimizer.lr"
    assert compared(runs.drop(index=0), within=["optimizer.lr"]).shares is None


def test_the_expected_best_of_n_tries_is_over_points_or_over_runs():
    runs = two_factor_runs()
    points = compared(runs, within=["optimizer.lr"]).best_of
    he = points[points["level"] == "he"]
    means = runs[runs["initializer"] == "he"].groupby("optimizer.lr")["test/accuracy"].mean()
    of_two = [max(pair) for pair in itertools.combinations(means, 2)]
    assert he["expected"].tolist() == pytest.approx([means.mean(), sum(of_two) / 3, means.max()])
    assert he["seconds"].tolist() == [16.0, 32.0, 48.0], "a point costs its 8 runs of 2 s"
    losses = {"he": [3.0, 1.0, 2.0], "xavier": [5.0, 5.0, 5.0]}
    runs = compared(runs_of(losses, metric="test/loss"), metric="test/loss", direction="minimize").best_of
    assert runs[runs["level"] == "he"]["expected"].tolist() == pytest.approx([2.0, 4 / 3, 1.0])
    assert runs["tries"].eq("run").all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "initialiser"}, "did you mean 'initializer'"),
        ({"metric": "test/acuracy"}, "did you mean 'test/accuracy'"),
        ({"within": ["optimizer"]}, "column: 'optimizer'"),
        ({"baseline": "xavir"}, "baseline: 'xavir'.*did you mean 'xavier'"),
        ({"test": "wilcox"}, "did you mean 'wilcoxon'"),
        ({"direction": "up"}, "direction: 'up'"),
        ({"margin": 0.0}, "margin: must be positive"),
        ({"confidence": 95}, "confidence: must be between"),
        ({"by": "seconds"}, "needs two levels"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        compared(runs_of(three_levels()), **settings)


def test_a_metric_that_no_finished_run_has_is_refused():
    runs = runs_of(three_levels()).assign(**{"test/accuracy": NAN, "status": "RUNNING"})
    with pytest.raises(ConfigError, match="no finished run has recorded it"):
        compared(runs)


# From the tracking store


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two initializers at two learning rates, 6 replicates each."""
    project = tmp_path_factory.mktemp("project")
    new_database(project / "mlflow.db")
    study = make_study(project, metric="val/accuracy", direction="maximize")
    for i, (level, lr) in enumerate(itertools.product(("he_normal", "zeros"), (0.1, 0.01))):
        config = CONFIG | {"optimizer": CONFIG["optimizer"] | {"lr": lr}}
        for r in range(6):
            run = make_run(study, variant=f"{i}" * 10, replicate=r, config=config, initializer=level)
            top = {"he_normal": 0.9, "zeros": 0.1}[level] + lr + r / 100
            train(run, last=0, metrics=lambda _, top=top: {"val/accuracy": top, "val/loss": -top})
    with Spool(project / ".fanin/initializers/spool.jsonl"):  # its coordinator lives
        sync(project, tracker=Tracker(project=project, uri="sqlite:///mlflow.db"))
    return project


def test_compare_reads_the_study_and_pairs_within_its_other_keys(project):
    found = fanin.compare("initializers", by="initializer", project=project)
    assert found.metric == "val/accuracy" and found.within == ("optimizer.lr",)
    row = found.differences.iloc[0]
    assert (row["level"], row["reference"], row["n"]) == ("zeros", "he_normal", 6)
    assert row["difference"] == pytest.approx(-0.8) and row["p"] == 2 / 2**6
    assert found.title == "initializers: Which one?"
    assert fanin.compare("initializers", by="optimizer.lr", project=project).reference == 0.1


def test_compare_stays_a_function_after_its_first_use(project):
    for _ in range(2):
        assert fanin.compare("initializers", by="initializer", project=project).reference == "he_normal"


def test_compare_takes_a_part_of_the_runs(project):
    one = fanin.compare("initializers", by="initializer", where={"optimizer.lr": 0.1}, project=project)
    assert one.within == () and one.levels["runs"].tolist() == [6, 6]


def test_the_direction_is_the_metrics_own(project):
    losses = fanin.compare("initializers", by="initializer", metric="val/loss", project=project)
    assert losses.direction == "minimize" and losses.reference == "he_normal"


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        ("initialisers", {}, "did you mean 'initializers'"),
        ("initializers", {}, "by: name one of the keys that were swept: initializer, optimizer.lr"),
        ("initializers", {"by": "initialiser"}, "by: .*did you mean 'initializer'"),
        (
            "initializers",
            {"by": "initializer", "metric": "val/acuracy"},
            "metric: .*did you mean 'val/accuracy'",
        ),
        ("initializers", {"by": "initializer", "where": {"epochs": 3}}, "no run has {'epochs': 3}"),
        ("initializers", {"by": "initializer", "where": {"epoch": 3}}, "where: .*did you mean 'epochs'"),
        ("initializers", {"by": "model"}, "needs two levels"),
    ],
)
def test_bad_questions_are_refused_with_the_nearest_good_one(project, study, settings, message):
    with pytest.raises(ConfigError, match=message):
        fanin.compare(study, project=project, **settings)


# At the end of a sweep


def judged(runs, **fields):
    defaults = {"swept": ["initializer"], "metric": "test/accuracy", "direction": "maximize", "classes": 10}
    return judge(runs, **(defaults | fields))


def test_a_sweep_of_one_key_ends_with_its_verdict():
    text, markdown = judged(runs_of(three_levels()))
    assert "he beats zeros by" in text and "- he beats zeros by" in markdown
    assert max(map(len, text.splitlines())) <= 100


def test_a_grid_ends_with_a_verdict_for_each_of_its_keys():
    values = three_levels()
    better = {level: some + 0.01 for level, some in values.items()}
    runs = pandas.concat([runs_of(values, optimizer="sgd"), runs_of(better, optimizer="adam")])
    text, markdown = judged(runs, swept=["initializer", "optimizer"])
    first, second = text.split("\n\n")
    assert first.startswith("initializer: test/accuracy against he (paired") and "he beats zeros by" in first
    assert second.startswith("optimizer: test/accuracy against adam (paired") and "adam beats sgd by 0.0100" in second
    assert "initializer: test/accuracy against" in markdown and "- adam beats sgd" in markdown


def test_without_replicates_and_without_partners_there_is_no_verdict():
    assert judged(runs_of({"he": [0.9], "zeros": [0.1]})) is None
    search = pandas.concat([runs_of({"he": [0.9 + i / 100] * 2}, lr=i) for i in range(30)])
    assert judged(search, swept=["lr"]) is None
    some = pandas.concat([runs_of({str(i): [0.9, 0.8]}, lr=i) for i in range(5)])
    assert judged(some, swept=["initializer", "lr"]) is None


def test_a_sweep_of_which_one_level_is_done_has_none_yet():
    assert judged(runs_of({"he": [0.9, 0.91]})) is None


def test_a_race_is_judged_by_its_own_tests():
    """It added replicates because of what it saw, which a test that counts them afterwards must not do."""
    values = three_levels()
    runs = runs_of({"he": values["he"], "xavier": values["he"] - 1e-4, "zeros": values["zeros"][:3]})
    text, _ = judged(runs, racing={"max_replicates": 10, "min_replicates": 3, "confidence": 0.95})
    assert "zeros: drop after 3 replicates: worse than he by 0.8" in text
    assert "risk of dropping a best one: 5 %" in text


def test_what_an_unfinished_run_had_reached_is_no_result_of_a_race():
    runs = runs_of({"he": [0.9, 0.91, 0.92], "xavier": [0.6, 0.61, 0.62]})
    runs["status"] = runs["status"].astype(object)
    runs.loc[runs["initializer"].eq("he"), "status"] = "KILLED"
    text, _ = judged(runs, racing={"max_replicates": 3, "min_replicates": 3})
    assert "xavier: drop" not in text and "he: drop" in text
