import math
import sqlite3
import time

import numpy
import pandas
import pytest
from databases import lacking, postgres_copy
from recorded import CONFIG, accuracy, copy_database, make_run, make_study, new_database, train
from servers import mlflow_server

from fanin import query, source
from fanin.errors import ConfigError
from fanin.shipping import ship, sync
from fanin.spool import Spool
from fanin.tracking import Tracker


def with_lr(lr):
    return CONFIG | {"optimizer": CONFIG["optimizer"] | {"lr": lr}}


def fill(project):
    """Two variants: one of two replicates, one that diverged and one that is still running."""
    study = make_study(project)
    for replicate in range(2):
        train(make_run(study, replicate=replicate, config=with_lr(0.1)), metrics=full_metrics)
    diverged = make_run(study, variant="bbbbbbbbbb", initializer="zeros", config=with_lr(1e-5))
    values = {"val/loss": math.inf, "val/accuracy": math.nan, "diverged": 1.0, "low": -math.inf}
    train(diverged, last=0, metrics=lambda _: values, reason="diverged", tags={"fanin.diagnosis": "symmetric"})
    running = make_run(study, variant="bbbbbbbbbb", replicate=1, initializer="zeros", config=with_lr(1e-5))
    train(running, last=1, end=None)
    make_study(project, name="another")
    return study


def full_metrics(epoch):
    layers = {
        f"{kind}/layers.{i}/{name}": 10 * i + epoch
        for i in (0, 2, 10)
        for kind, name in (("weight", "std"), ("grad", "norm"))
    }
    values = {
        "val/accuracy": accuracy(epoch),
        "val/loss": 2.0 - epoch,
        "seconds": 0.5 * epoch,
        "diverged": 0.0,
    }
    return values | layers | ({"activation/layers.0/dead": 0.25} if epoch else {})


@pytest.fixture(scope="module")
def sqlite_project(tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    new_database(project / "mlflow.db")
    fill(project)
    tracker = Tracker(project=project, uri="sqlite:///mlflow.db")
    with Spool(project / ".fanin/initializers/spool.jsonl"):  # its coordinator lives
        sync(project, tracker=tracker)
    return project


@pytest.fixture(scope="module")
def server_uri(sqlite_project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with (
        sqlite3.connect(sqlite_project / "mlflow.db") as source,
        sqlite3.connect(folder / "server.db") as copy,
    ):
        source.backup(copy)
    source.close()
    copy.close()
    with mlflow_server(folder) as uri:
        yield uri


@pytest.fixture(scope="module")
def postgres(sqlite_project, tmp_path_factory):
    if lacking():
        pytest.skip(lacking())
    with postgres_copy(sqlite_project / "mlflow.db", tmp_path_factory.mktemp("postgres")) as copy:
        yield copy


@pytest.fixture(params=["sqlite", "postgres", "mirror", "server", "client"])
def place(request, sqlite_project, monkeypatch):
    """Keyword arguments that read the same study in five ways."""
    if request.param == "server":
        return {"uri": request.getfixturevalue("server_uri")}
    if request.param == "postgres":
        return {"uri": request.getfixturevalue("postgres").owner}
    if request.param == "mirror":  # beside a server, which is dead and must not be asked
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("FANIN_READ_URI", request.getfixturevalue("postgres").reader)
        return {}
    if request.param == "client":
        monkeypatch.setattr("fanin.database.TESTED_REVISIONS", {"another"})
    return {"project": sqlite_project, "uri": "sqlite:///mlflow.db"}


def test_runs_has_a_row_per_run_with_identity_params_and_metrics(place):
    table = query.runs("initializers", **place)
    assert table["variant"].tolist() == ["aaaaaaaaaa"] * 2 + ["bbbbbbbbbb"] * 2
    assert table["replicate"].tolist() == [0, 1, 0, 1]
    assert table["status"].tolist() == ["FINISHED", "FINISHED", "FINISHED", "RUNNING"]
    assert table["reason"].tolist()[2] == "diverged" and table["reason"].isna().tolist()[0]
    assert table["diagnosis"].tolist()[2] == "symmetric"
    assert table["initializer"].tolist() == ["he_normal"] * 2 + ["zeros"] * 2
    assert table["optimizer.lr"].tolist() == [0.1, 0.1, 1e-5, 1e-5]
    assert table["val/accuracy"].tolist()[:2] == [accuracy(2)] * 2
    assert table["best val/loss"].tolist()[:2] == [0.0, 0.0]
    assert table["test/accuracy"].tolist()[:3] == [0.5] * 3 and math.isnan(table["test/accuracy"][3])
    assert table["diverged"].tolist() == [False, False, True, False]
    assert table["seconds"].tolist()[:2] == [1.0, 1.0]  # the metric
    assert table["seconds"].tolist()[2] == 0.05  # from start to end where there is none
    assert table["start"][0] == pandas.Timestamp(10_000, unit="ms", tz="utc")
    assert not [column for column in table if column.startswith("weight/")]


def test_columns_have_the_types_of_what_is_in_them(place):
    types = query.runs("initializers", **place).dtypes
    assert types["replicate"] == types["epochs"] == numpy.int64
    assert types["optimizer.lr"] == types["val/loss"] == types["seconds"] == numpy.float64
    assert types["optimizer.fused"].kind == types["diverged"].kind == "b"
    for column in ("variant", "status", "initializer", "model.widths"):
        assert isinstance(types[column], pandas.CategoricalDtype)


def test_nan_and_infinity_come_back_as_they_were_logged(place):
    row = query.runs("initializers", where={"diverged": True}, **place).iloc[0]
    assert row["val/loss"] == math.inf and math.isnan(row["val/accuracy"]) and row["low"] == -math.inf
    points = query.curves("initializers", "val/loss", **place)
    assert points[points["variant"] == "bbbbbbbbbb"]["value"].tolist() == [math.inf, 2.0, 1.0]
    assert query.runs("initializers", **place)["optimizer.schedule"].isna().all()


def test_where_keeps_the_rows_that_equal(place):
    assert len(query.runs("initializers", where={"initializer": "zeros"}, **place)) == 2
    assert len(query.runs("initializers", where={"optimizer.lr": [0.1], "replicate": (1, 7)}, **place)) == 1
    with pytest.raises(ConfigError, match="did you mean 'optimizer.lr'"):
        query.runs("initializers", where={"optimizer.l": 1}, **place)


def test_curves_are_tidy_and_sorted_by_step(place):
    table = query.curves("initializers", ["val/*"], **place)
    first = ["run_id", "variant", "replicate", "step", "metric", "value"]
    assert list(table) == [*first, "initializer", "optimizer.lr"]
    assert len(table) == 2 * (3 + 3 + 1 + 2)
    one = table[(table["metric"] == "val/accuracy") & (table["replicate"] == 1)]
    assert one[one["variant"] == "aaaaaaaaaa"]["step"].tolist() == [0, 1, 2]
    assert one[one["variant"] == "aaaaaaaaaa"]["value"].tolist() == [accuracy(epoch) for epoch in range(3)]
    assert (table[table["variant"] == "bbbbbbbbbb"]["optimizer.lr"] == 1e-5).all()
    everything = query.curves("initializers", **place)["metric"].unique()
    assert {"weight/layers.10/std", "seconds", "test/accuracy"} <= set(everything)
    assert "best val/loss" not in everything


def test_layers_has_a_row_per_step_and_layer_in_natural_order(place):
    table = query.layers("initializers", **place)
    assert list(table)[:5] == ["run_id", "variant", "replicate", "step", "layer"]
    assert len(table) == 2 * 3 * 3
    assert table["layer"].tolist()[:3] == ["layers.0", "layers.2", "layers.10"]
    row = table[(table["layer"] == "layers.10") & (table["step"] == 2) & (table["replicate"] == 1)].iloc[0]
    assert (row["weight_std"], row["grad_norm"]) == (102, 102)
    dead = table[table["activation_dead"].notna()]
    assert set(dead["layer"]) == {"layers.0"} and set(dead["step"]) == {1, 2}


def test_an_unknown_study_is_refused_with_the_nearest_name(place):
    with pytest.raises(ConfigError, match="did you mean 'initializers'"):
        query.runs("initialisers", **place)
    assert query.studies(**place) == ["another", "initializers"]


def test_a_study_without_runs_gives_empty_tables_with_columns(place):
    assert len(query.runs("another", **place)) == 0
    assert {"run_id", "variant", "status"} <= set(query.runs("another", **place))
    assert len(query.curves("another", **place)) == len(query.layers("another", **place)) == 0


def test_reading_where_nothing_was_ever_tracked_says_so_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="no tracking database"):
        query.runs("initializers", project=tmp_path, uri="sqlite:///mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_of_two_studies_that_bore_one_name_the_newer_is_read(sqlite_project, tmp_path):
    copy_database(sqlite_project / "mlflow.db", tmp_path / "mlflow.db")
    study = make_study(tmp_path, identity="2", start=2_000)
    run = train(make_run(study, variant="cccccccccc"))
    ship(run, tracker=Tracker(project=tmp_path, uri="sqlite:///mlflow.db"))
    table = query.runs("initializers", project=tmp_path, uri="sqlite:///mlflow.db")
    assert table["variant"].tolist() == ["cccccccccc"]


def test_runs_that_are_not_ours_are_left_out(sqlite_project, tmp_path):
    copy_database(sqlite_project / "mlflow.db", tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("delete from tags where key = 'fanin.variant' and value = 'bbbbbbbbbb'")
    connection.close()
    assert len(query.runs("initializers", project=tmp_path, uri="sqlite:///mlflow.db")) == 2
    assert len(query.curves("initializers", "val/loss", project=tmp_path, uri="sqlite:///mlflow.db")) == 6


def test_a_point_that_is_there_twice_counts_once_the_later_one(sqlite_project, tmp_path):
    copy_database(sqlite_project / "mlflow.db", tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute(
            "insert into metrics select key, 9.0, timestamp + 5, run_uuid, step, is_nan from metrics "
            "where key = 'val/loss' and step = 1"
        )
    connection.close()
    table = query.curves("initializers", "val/loss", project=tmp_path, uri="sqlite:///mlflow.db")
    assert len(table) == 3 + 3 + 1 + 2
    assert set(table[table["step"] == 1]["value"]) == {9.0}


def test_a_database_of_an_untested_schema_is_left_to_mlflow_and_said_once(sqlite_project, monkeypatch, caplog):
    place = {"project": sqlite_project, "uri": "sqlite:///mlflow.db"}
    query.runs("initializers", **place)
    assert not caplog.messages
    monkeypatch.setattr("fanin.database.TESTED_REVISIONS", {"another"})
    monkeypatch.setattr("fanin.sqlite.SQLiteTables.points", None)  # must not be used
    source._tell.cache_clear()
    assert len(query.curves("initializers", "val/loss", **place)) == len(query.layers("initializers", **place)) // 2
    (notice,) = caplog.messages
    assert "mlflow.db" in notice and "dc11669786a5" in notice and "slower" in notice


def test_reading_does_not_wait_for_a_writer(sqlite_project):
    with sqlite3.connect(sqlite_project / "mlflow.db", isolation_level=None) as writer:
        writer.execute("begin immediate")
        writer.execute("update runs set name = name")
        begin = time.monotonic()
        query.runs("initializers", project=sqlite_project, uri="sqlite:///mlflow.db")
        assert time.monotonic() - begin < 10  # sqlite would wait 20 s for the lock
        writer.execute("rollback")
    writer.close()


def test_a_metric_that_no_run_has_is_refused_with_the_nearest(place):
    for read in (query.runs, query.curves):
        with pytest.raises(ConfigError, match="metrics: 'val/acuracy' is .*did you mean 'val/accuracy'"):
            read("initializers", "val/acuracy", **place)
    with pytest.raises(ConfigError, match=r"metrics: 'test/\*/x' is not one of"):
        query.curves("initializers", ["val/*", "test/*/x"], **place)
    with pytest.raises(ConfigError, match="metrics: 'weight/layers.1/std' is .*did you mean 'weight/layers.10/std'"):
        query.layers("initializers", "weight/layers.1/std", **place)


def test_where_and_metrics_give_what_one_would_pick_from_the_whole(place):
    whole = {read: read("initializers", **place) for read in (query.runs, query.curves, query.layers)}
    some = query.curves("initializers", ["val/loss", "weight/layers.0/*"], where={"initializer": "zeros"}, **place)
    table = whole[query.curves]
    picked = table[table["metric"].isin(["val/loss", "weight/layers.0/std"]) & table["initializer"].eq("zeros")]
    assert plain(some) == plain(picked) and len(some) == 3
    for where in ({"diverged": True}, {"variant": "bbbbbbbbbb", "replicate": [0]}, {"low": -math.inf}):
        table = whole[query.curves]
        run = query.runs("initializers", where=where, **place)["run_id"].tolist()
        assert len(run) == 1
        some = query.curves("initializers", where=where, **place)
        assert plain(some) == plain(table[table["run_id"].isin(run)]) and len(some)
    table = whole[query.layers]
    some = query.layers("initializers", "grad/*", where={"replicate": 1}, **place)
    assert list(some)[3:] == ["step", "layer", "grad_norm"]
    assert plain(some) == plain(table[table["replicate"] == 1][list(some)])
    short = query.runs("initializers", "val/*", where={"initializer": ["he_normal"]}, **place)
    assert "test/accuracy" not in short and short["seconds"].tolist() == [1.0, 1.0]
    pandas.testing.assert_frame_equal(short, whole[query.runs].iloc[:2][list(short)])
    with pytest.raises(ConfigError, match="where: 'optimizer.l' .*did you mean 'optimizer.lr'"):
        query.curves("initializers", where={"optimizer.l": 1}, **place)


def plain(table):
    return table.astype(object).where(table.notna(), None).to_dict("list")


def test_names_of_metrics_can_be_listed(place):
    names = query.metrics("initializers", **place)
    assert {"val/loss", "best val/loss", "weight/layers.10/std"} <= {*names} and names == sorted(names)


def test_a_million_points_are_kept_in_categories_and_numbers(place):
    kinds = query.curves("initializers", **place).dtypes
    for column in ("run_id", "variant", "metric", "initializer"):
        assert isinstance(kinds[column], pandas.CategoricalDtype)
    assert kinds["step"] == kinds["replicate"] == numpy.int64 and kinds["value"] == numpy.float64


def test_a_study_that_nobody_has_run_is_told_from_one_that_does_not_exist(tmp_path):
    new_database(tmp_path / "mlflow.db")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match="has not been run yet: fanin sweep mine"):
        query.runs("mine", project=tmp_path)
    with pytest.raises(ConfigError, match="is not there|not one of"):
        query.runs("yours", project=tmp_path)
