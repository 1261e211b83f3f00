"""How MLflow's page of a study is arranged: its columns, their order, the grouping and the charts.

MLflow shows an experiment's runs folded under their parent, without metrics, and the charts by alphabet. A
*shared view* is an experiment tag that holds another arrangement, and a link that asks for it. The tag's
value is JSON in MLflow's own, undocumented vocabulary, seen to work with 3.17 (tools/screenshot.py); a
version that does not know it shows its usual page.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

NAME = "fanin"
TAG = f"mlflow.sharedViewState.{NAME}"
LONGEST = 5000  # characters MLflow keeps of an experiment tag
SECTION = "fanin"
HEIGHT = 330  # pixels of a chart: what nine bars need to have their values written on them


def arrange(
    swept: Sequence[str],
    *,
    metric: str,
    direction: str,
    replicated: bool = True,
    variants: Sequence[Sequence[str]] = (),
    parent: str | None = None,
) -> dict[str, object]:
    """The page of a study over the params `swept`: best first, its metric on top.

    Replicates are averaged, if there are any, and those of the `variants` (each a value per swept param)
    folded away, so that the list of runs is the charts' legend. `parent`: the id of the study's own run, whose
    children are shown; an experiment also holds those of a study that was put aside by --new.
    """
    grouped = replicated and bool(swept)
    columns = _columns(swept, metric, grouped=grouped)
    return {
        # the runs, not the parent they would hide in
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'" if parent else "tags.`fanin.variant` != ''",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns)[1:],
        "columnOrder": list(columns),
        "columnWidths": columns,
        "groupBy": _grouping(swept) if grouped else None,
        "groupsExpanded": {_group(swept, values): False for values in variants} if grouped else {},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "FIRST_20_RUNS",  # the best ones: more lines cannot be told apart
        "compareRunCharts": _charts(swept, metric, grouped=grouped),
        "compareRunSections": [_section()],
        "isAccordionReordered": True,  # else the sections are sorted by name, and ours is somewhere below
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def encode(view: Mapping[str, object]) -> str:
    """The value of TAG: compressed, because a tag is short. Too many groups to name are left unfolded."""
    for kept in ({**view}, {**view, "groupsExpanded": {}}):
        packed = zlib.compress(json.dumps(kept, separators=(",", ":")).encode(), 9)
        text = "deflate;" + base64.b64encode(packed).decode()
        if len(text) <= LONGEST:
            return text
    raise AssertionError(f"a view of {len(text)} characters")


def link(server: str, experiment: str, *, arranged: bool = True) -> str:
    """The address of the experiment's charts, arranged."""
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART"}
    query |= {"viewStateShareKey": NAME} if arranged else {}
    return f"{server}/#/experiments/{experiment}/runs?{urlencode(query)}"


def _columns(swept: Sequence[str], metric: str, *, grouped: bool) -> dict[str, int]:
    """Which columns the list of runs has, in this order, and their widths in pixels."""
    name = {"attributes.`Run Name`": min(140 + 120 * len(swept), 500) if grouped else 260}
    params = {} if grouped else {f"params.`{key}`": 110 for key in swept}  # a group has them in its name
    shown = dict.fromkeys([metric, "test/accuracy", "val/accuracy", "train/loss", "seconds", "diverged"])
    return name | params | {f"metrics.`{key}`": 120 for key in shown}


def _grouping(swept: Sequence[str]) -> dict[str, object]:
    return {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": key} for key in swept],
    }


def _group(swept: Sequence[str], values: Sequence[str]) -> str:
    """MLflow's name for the group of the runs that have these values."""
    return ",".join(f"param.{key}.{value}" for key, value in zip(swept, values, strict=True))


def _charts(swept: Sequence[str], metric: str, *, grouped: bool) -> list[dict[str, object]]:
    """How the variants end, how they get there, and what led to it."""
    kind = metric.rpartition("/")[2]
    curve = f"val/{kind}" if metric.startswith("test/") else metric  # the test set is looked at once
    lines = [_lines(key) for key in dict.fromkeys([curve, "train/loss", "val/loss"])]
    if len(swept) > 1 and not grouped:  # MLflow cannot draw these of groups
        lines.insert(1, _coordinates([*swept, metric]))
    return [_bars(metric), *lines]


def _section() -> dict[str, object]:
    common = {"isReordered": False, "deleted": False, "isGenerated": False}
    return {
        "uuid": SECTION,
        "name": "Comparison",
        "display": True,
        "columns": 2,
        "cardHeight": HEIGHT,
        **common,
    }


def _bars(metric: str) -> dict[str, object]:
    return {**_chart(metric, kind="BAR"), "dataAccessKey": None}


def _lines(metric: str) -> dict[str, object]:
    """A curve; a loss on a logarithmic axis, since one bad start would flatten all others on a linear one."""
    axes: dict[str, object] = {
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "log" if metric.endswith("loss") else "linear",
        "range": {},
    }
    return {**_chart(metric, kind="LINE"), **axes, "selectedMetricKeys": [metric], "lineSmoothness": 0}


def _coordinates(keys: Sequence[str]) -> dict[str, object]:
    *params, metric = keys
    chosen = {"selectedParams": params, "selectedMetrics": [metric], "showAllRuns": True}
    return {**_chart("", kind="PARALLEL"), **chosen}


def _chart(metric: str, *, kind: str) -> dict[str, object]:
    common = {"metricSectionId": SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    return {
        "uuid": f"{SECTION}-{kind}-{metric}",
        "type": kind,
        "metricKey": metric,
        "displayName": metric,
        **common,
    }
