"""The arrangement of MLflow's page. That MLflow understands it was seen in a browser: tools/screenshot.py."""

import base64
import json
import zlib

import pytest

from fanin import view


def test_the_best_variant_comes_first_whatever_the_direction():
    assert view.arrange(["initializer"], metric="val/loss", direction="minimize")["orderByAsc"] is True
    assert view.arrange(["initializer"], metric="val/accuracy", direction="maximize")["orderByAsc"] is False


def test_runs_are_averaged_over_replicates_by_what_the_study_varies():
    grouping = view.arrange(["model", "optimizer.lr"], metric="val/loss", direction="minimize")["groupBy"]
    assert [key["groupByData"] for key in grouping["groupByKeys"]] == ["model", "optimizer.lr"]


def test_a_metric_that_is_also_a_standard_curve_is_drawn_once():
    charts = view.arrange(["model"], metric="val/loss", direction="minimize")["compareRunCharts"]
    lines = [chart["metricKey"] for chart in charts if chart["type"] == "LINE"]
    assert sorted(lines) == ["train/loss", "val/loss"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)


def test_mlflow_can_unpack_the_tag_and_a_wide_study_fits_into_one():
    swept = [f"optimizer.some_long_option_{number}" for number in range(30)]
    arranged = view.arrange(swept, metric="val/accuracy", direction="maximize")
    head, _, packed = view.encode(arranged).partition(";")
    assert head == "deflate" and json.loads(zlib.decompress(base64.b64decode(packed))) == arranged
    assert len(view.encode(arranged)) <= 5000


@pytest.mark.parametrize(
    "part", ["/#/experiments/7/runs?", "viewStateShareKey=fanin", "compareRunsMode=CHART"]
)
def test_the_link_leads_to_the_arranged_charts(part):
    assert part in view.link("http://127.0.0.1:5000", "7")
