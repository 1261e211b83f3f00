"""The arrangement of MLflow's page. That MLflow understands it was seen in a browser: tools/screenshot.py."""

import base64
import json
import zlib

import pytest

from fanin import view


def test_the_best_variant_comes_first_whatever_the_direction():
    assert view.arrange(["initializer"], metric="val/loss", direction="minimize")["orderByAsc"] is True
    assert view.arrange(["initializer"], metric="val/accuracy", direction="maximize")["orderByAsc"] is False


def test_the_children_of_the_studys_own_run_are_shown_and_not_those_of_one_that_was_put_aside():
    arranged = view.arrange(["initializer"], metric="val/loss", direction="minimize", parent="abc")
    assert arranged["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"


def test_runs_are_averaged_over_replicates_by_what_the_study_varies():
    grouping = view.arrange(["model", "optimizer.lr"], metric="val/loss", direction="minimize")["groupBy"]
    assert [key["groupByData"] for key in grouping["groupByKeys"]] == ["model", "optimizer.lr"]


def test_a_metric_that_is_also_a_standard_curve_is_drawn_once():
    charts = view.arrange(["model"], metric="val/loss", direction="minimize")["compareRunCharts"]
    lines = [chart["metricKey"] for chart in charts if chart["type"] == "LINE"]
    assert sorted(lines) == ["train/loss", "val/loss"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)


def lines(metric, **options):
    charts = view.arrange(["model"], metric=metric, direction="maximize", **options)["compareRunCharts"]
    return {chart["metricKey"]: chart["scaleType"] for chart in charts if chart["type"] == "LINE"}


def test_for_a_test_metric_which_is_one_point_the_validation_curve_is_drawn():
    assert list(lines("test/accuracy")) == ["val/accuracy", "train/loss", "val/loss"]
    assert "test/loss" not in lines("test/loss")


def test_losses_are_drawn_on_a_logarithmic_axis_and_accuracies_on_a_linear_one():
    scales = {"val/accuracy": "linear", "train/loss": "log", "val/loss": "log"}
    assert lines("test/accuracy") == scales


def test_replicates_are_folded_under_the_names_that_mlflow_gives_to_groups():
    swept, variants = ["model", "optimizer.lr"], [("mlp", "0.1"), ("cnn", "null")]
    arranged = view.arrange(swept, metric="val/loss", direction="minimize", variants=variants)
    assert arranged["groupsExpanded"] == {
        "param.model.mlp,param.optimizer.lr.0.1": False,
        "param.model.cnn,param.optimizer.lr.null": False,
    }


def test_without_replicates_runs_stand_for_themselves_with_their_params_and_parallel_coordinates():
    swept = ["model", "optimizer.lr"]
    arranged = view.arrange(swept, metric="val/loss", direction="minimize", replicated=False)
    assert arranged["groupBy"] is None
    assert {"params.`model`", "params.`optimizer.lr`"} <= set(arranged["selectedColumns"])
    (chart,) = [chart for chart in arranged["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert (chart["selectedParams"], chart["selectedMetrics"]) == (swept, ["val/loss"])


def test_a_run_that_belongs_to_no_sweep_is_not_grouped():
    assert view.arrange([], metric="val/accuracy", direction="maximize")["groupBy"] is None


def test_a_study_of_very_many_variants_fits_into_the_tag_unfolded():
    variants = [(f"some_name_{number * 7919 % 10007}",) for number in range(2000)]
    arranged = view.arrange(["model"], metric="val/loss", direction="minimize", variants=variants)
    head, _, packed = view.encode(arranged).partition(";")
    stored = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert stored == arranged | {"groupsExpanded": {}}


def test_mlflow_can_unpack_the_tag_and_a_wide_study_fits_into_one():
    swept = [f"optimizer.some_long_option_{number}" for number in range(30)]
    arranged = view.arrange(swept, metric="val/accuracy", direction="maximize")
    head, _, packed = view.encode(arranged).partition(";")
    assert head == "deflate" and json.loads(zlib.decompress(base64.b64decode(packed))) == arranged
    assert len(view.encode(arranged)) <= 5000


@pytest.mark.parametrize("part", ["/#/experiments/7/runs?", "viewStateShareKey=fanin", "compareRunsMode=CHART"])
def test_the_link_leads_to_the_arranged_charts(part):
    assert part in view.link("http://127.0.0.1:5000", "7")
