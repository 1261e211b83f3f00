"""How MLflow's page of a study is arranged: its columns, their order, the grouping and the charts.

MLflow shows an experiment's runs folded under their parent, without metrics, and the charts by alphabet. A
*shared view* is an experiment tag that holds another arrangement, and a link that asks for it. The tag's
value is JSON in MLflow's own, undocumented vocabulary, seen to work with 3.17 (tools/screenshot.py); a
version that does not know it shows its usual page.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from urllib.parse import urlencode

NAME = "fanin"
TAG = f"mlflow.sharedViewState.{NAME}"
LONGEST = 5000  # characters MLflow keeps of an experiment tag
SECTION = "fanin"


def arrange(swept: Sequence[str], *, metric: str, direction: str) -> dict[str, object]:
    """The page of a study over the params `swept`: best first, replicates averaged, its metric on top."""
    curves = dict.fromkeys([metric, "train/loss", "val/loss"])
    shown = dict.fromkeys([metric, "test/accuracy", "train/loss", "diverged", "seconds"])
    charts = [_bars(metric), *(_lines(curve) for curve in curves)]
    return {
        "searchFilter": "tags.`fanin.variant` != ''",  # the runs, not the parent they would hide in
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"params.`{key}`" for key in swept] + [f"metrics.`{key}`" for key in shown],
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "param", "groupByData": key} for key in swept],
        },
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [_section()],
        "isAccordionReordered": True,  # else the sections are sorted by name, and ours is somewhere below
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def encode(view: dict[str, object]) -> str:
    """The value of TAG: compressed, because a tag is short."""
    packed = zlib.compress(json.dumps(view, separators=(",", ":")).encode(), 9)
    text = "deflate;" + base64.b64encode(packed).decode()
    assert len(text) <= LONGEST, f"a view of {len(text)} characters"
    return text


def link(server: str, experiment: str) -> str:
    """The address of the experiment's charts, arranged."""
    query = urlencode(
        {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": NAME}
    )
    return f"{server}/#/experiments/{experiment}/runs?{query}"


def _section() -> dict[str, object]:
    common = {"isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": SECTION, "name": "Comparison", "display": True, "columns": 2, "cardHeight": 272, **common}


def _bars(metric: str) -> dict[str, object]:
    return {**_chart(metric, kind="BAR"), "dataAccessKey": None}


def _lines(metric: str) -> dict[str, object]:
    axes = {
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "range": {},
    }
    return {**_chart(metric, kind="LINE"), **axes, "selectedMetricKeys": [metric], "lineSmoothness": 0}


def _chart(metric: str, *, kind: str) -> dict[str, object]:
    common = {"metricSectionId": SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    return {
        "uuid": f"{SECTION}-{kind}-{metric}",
        "type": kind,
        "metricKey": metric,
        "displayName": metric,
        **common,
    }
