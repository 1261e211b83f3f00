"""Batches for MLflow's server, against MLflow's own messages and limits."""

import math

import pytest
from mlflow.entities import Metric
from mlflow.protos.service_pb2 import LogBatch
from mlflow.utils.proto_json_utils import message_to_json, parse_dict
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from fanin.batches import bodies, entry
from fanin.points import Point


def points(number):
    return [Point(f"m{i % 7}", i / 3, 1_000 + i, i // 7) for i in range(number)]


def pairs(name, number):
    return {f"{name}{i}": str(i) for i in range(number)}


@pytest.mark.parametrize(
    ("metrics", "params", "tags", "requests"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (0, 3, 0, 1), (900, 60, 40, 1), (901, 60, 40, 2), (2000, 0, 0, 2), (10, 0, 250, 3)],
)
def test_batches_are_as_few_as_mlflow_allows_and_lose_nothing(metrics, params, tags, requests):
    given = {"points": points(metrics), "params": pairs("p", params), "tags": pairs("t", tags)}
    made = list(bodies("r1", **given))
    assert len(made) == requests
    for body in made:
        assert body["run_id"] == "r1"
        assert len(body["metrics"]) <= MAX_METRICS_PER_BATCH
        assert max(len(body["params"]), len(body["tags"])) <= MAX_PARAMS_TAGS_PER_BATCH
        assert sum(len(body[name]) for name in ("metrics", "params", "tags")) <= MAX_ENTITIES_PER_BATCH
    assert [one for body in made for one in body["metrics"]] == [entry(point) for point in given["points"]]
    for name in ("params", "tags"):
        assert {one["key"]: one["value"] for body in made for one in body[name]} == given[name]


def test_a_batch_says_to_the_server_what_mlflow_s_own_client_says():
    values = [0.1, -1e300, 5e-324, 3.0, math.nan, math.inf, -math.inf]
    every = [Point("val/loss", value, 1_790_000_000_000 + i, i) for i, value in enumerate(values)]
    [body] = bodies("r1", points=every, params={"a": "1"}, tags={"b": "x"})
    ours = LogBatch()
    parse_dict(body, ours)
    theirs = LogBatch(run_id="r1", metrics=[Metric(p.key, p.value, p.time, p.step).to_proto() for p in every])
    theirs.params.add(key="a", value="1")
    theirs.tags.add(key="b", value="x")
    assert message_to_json(ours) == message_to_json(theirs)
