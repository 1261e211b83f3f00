import base64
import json
import math
import shutil
import zlib

import pytest
from recorded import (
    CONFIG,
    accuracy,
    make_run,
    make_study,
    new_database,
    params_of,
    stored,
    stored_runs,
    tags_of,
    train,
)
from servers import flaky_server, mlflow_server

from fanin.folders import Folder, declare_run, declare_study
from fanin.shipping import ship, sync
from fanin.spool import Spool
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

NAME = "initializer=he_normal r0"


@pytest.fixture
def database(tmp_path):
    return new_database(tmp_path / "mlflow.db")


@pytest.fixture
def tracker(database, tmp_path):
    return Tracker(project=tmp_path, uri="sqlite:///mlflow.db")


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, tags={"fanin.git": "abc123"})


def crash(*_, **__):
    raise KeyboardInterrupt("as if killed here")


def test_a_finished_run_arrives_whole(tracker, study, database):
    run = train(make_run(study), last=2)
    assert ship(run, tracker=tracker)
    assert stored_runs(database) == [(NAME, "FINISHED", 10_000, 10_250)]
    points = {(key, step): (value, time) for key, step, value, _, time in stored(database)}
    assert points == {
        **{("val/accuracy", epoch): (accuracy(epoch), 10_000 + 100 * epoch) for epoch in range(3)},
        **{("val/loss", epoch): (2.0 - epoch, 10_000 + 100 * epoch) for epoch in range(3)},
        ("best val/accuracy", 2): (accuracy(2), 10_200),
        ("best val/loss", 2): (0.0, 10_200),
        ("test/accuracy", 2): (0.5, 10_250),
    }


def test_params_are_the_flattened_config_as_yaml_spells_it(tracker, study, database):
    ship(train(make_run(study)), tracker=tracker)
    assert params_of(database, NAME) == {
        "epochs": "2",
        "seed": "0",
        "initializer": "he_normal",
        "initializer.gain": "1.4142135623730951",
        "initializer.bias": "zeros",
        "model": "mlp",
        "model.widths": "[256, 256]",
        "model.activation": "relu",
        "optimizer.lr": "1e-05",
        "optimizer.fused": "true",
        "optimizer.schedule": "null",
        "regularization.applied": "{}",
        "regularization.dropout": "0.0",
    }


def test_params_leave_out_what_decides_no_number_unless_it_is_swept(tracker, study, database):
    config = CONFIG | {
        "initializer": {"_target_": "mine.initialize", "bias": "zeros"},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-05},
        "tracking": {"uri": None, "artifacts": "mlartifacts"},
        "data": {"_target_": "fanin.data.mnist", "root": "/here", "download": True, "val": 500},
        "hardware": {"device": "cpu", "precision": "fp32", "workers": "auto", "checkpoint": 10},
    }
    ship(train(make_run(study, config=config)), tracker=tracker)
    assert set(params_of(database, NAME)) == {
        *("epochs", "seed", "initializer", "initializer._target_", "initializer.bias"),
        *("model", "model.widths", "model.activation", "optimizer.lr", "data.val"),
        *("hardware.device", "hardware.precision", "regularization.applied", "regularization.dropout"),
    }
    spec = make_run(study, variant="bbbbbbbbbb", config=config).spec()
    spec |= {"name": "swept", "overrides": {"hardware.workers": 1, "optimizer._target_": "torch.optim.Adam"}}
    ship(train(declare_run(study, spec)), tracker=tracker)
    assert {"hardware.workers", "optimizer._target_"} <= set(params_of(database, "swept"))


def test_a_run_names_its_data_and_another_split_of_them_is_another_data_set(tracker, study, database):
    data = {"_target_": "fanin.data.mnist", "root": "/here", "val": 500, "n_train": None}
    places = [data, data | {"root": "/there"}, data | {"n_train": 100}]
    for number, place in enumerate(places):
        spec = make_run(study, variant=str(number) * 10, config=CONFIG | {"data": place}).spec()
        run = train(declare_run(study, spec | {"choices": {"data": "mnist"}}))
        for _ in range(2):
            run.forget()
            ship(run, tracker=tracker)
    query = "select d.name, d.digest from inputs i join datasets d on i.source_id = d.dataset_uuid"
    (name, first), (_, second), (_, third) = stored(database, f"{query} order by i.rowid")
    assert name == "mnist" and first == second != third


def view_of(database):
    query = "select value from experiment_tags where key = 'mlflow.sharedViewState.fanin'"
    ((text,),) = stored(database, query)
    return json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))


def test_the_page_of_a_study_is_arranged_anew_at_its_end_with_the_variants_it_then_has(tracker, study, database):
    ship(study, tracker=tracker)
    assert view_of(database)["groupBy"] is None  # one replicate, so far
    ((parent,),) = stored(database, "SELECT run_uuid FROM runs")
    assert view_of(database)["searchFilter"].endswith(f"= '{parent}'")
    for initializer, variant in (("he_normal", "aaaaaaaaaa"), ("zeros", "bbbbbbbbbb")):
        for replicate in (0, 1):
            make_run(study, initializer=initializer, variant=variant, replicate=replicate)
    with Spool(study.spool) as spool:
        spool.append("end", status="FINISHED", metrics={})
    ship(study, tracker=tracker)
    assert view_of(database)["groupBy"] is not None
    assert view_of(database)["groupsExpanded"] == {
        "param.initializer.he_normal,param.optimizer.lr.1e-05": False,
        "param.initializer.zeros,param.optimizer.lr.1e-05": False,
    }


def test_the_experiment_says_its_question_and_leads_to_the_arranged_page(tracker, study, database):
    ship(study, tracker=tracker)
    ((text,),) = stored(database, "select value from experiment_tags where key = 'mlflow.note.content'")
    assert text.startswith("Which one? [") and "(#/experiments/1/runs?" in text


def test_a_run_is_a_child_of_its_study_and_bears_its_tags(tracker, study, database):
    ship(train(make_run(study, replicate=0), reason="early_stopping"), tracker=tracker)
    tags = tags_of(database, NAME)
    ((parent,),) = stored(database, "select run_uuid from runs where name = 'initializers'")
    expected = {
        "mlflow.parentRunId": parent,
        "mlflow.runName": NAME,
        "fanin.study": "initializers",
        "fanin.variant": "aaaaaaaaaa",
        "fanin.replicate": "0",
        "fanin.run": "aaaaaaaaaa-r0",
        "fanin.git": "abc123",
        "fanin.reason": "early_stopping",
        "fanin.attempts": "1",
    }
    assert expected.items() <= tags.items()
    assert tags_of(database, "initializers")["fanin.question"] == "Which one?"


def test_records_shipped_one_by_one_give_the_same_as_all_at_once(tracker, study, database, tmp_path):
    run = make_run(study)
    whole = train(make_run(study, variant="bbbbbbbbbb")).spool.read_bytes()
    for line in whole.splitlines(keepends=True):
        with run.spool.open("ab") as file:
            file.write(line)
        assert ship(run, tracker=tracker) == (b'"kind":"end"' in line)
    piecewise = stored(database)
    ship(Folder(study.path / "runs" / "bbbbbbbbbb-r0"), tracker=tracker)
    assert sorted(stored(database)) == sorted(piecewise + piecewise)


def test_shipping_everything_again_changes_nothing(tracker, study, database):
    odd = {"a": math.nan, "b": math.inf, "c": -math.inf, "val/loss": 0.1 + 0.2}
    run = train(make_run(study), metrics=lambda epoch: odd)
    ship(run, tracker=tracker)
    before = stored(database), stored_runs(database), params_of(database, NAME)
    run.forget()
    study.forget()
    assert ship(run, tracker=tracker)
    assert (stored(database), stored_runs(database), params_of(database, NAME)) == before
    assert len(stored(database, "select * from runs")) == 2  # the study and the run


def test_nan_and_infinities_are_stored_as_mlflow_stores_them(tracker, study, database):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    ship(train(make_run(study), last=0, metrics=lambda epoch: values, end=None), tracker=tracker)
    largest = 1.7976931348623157e308
    assert [row[:4] for row in stored(database)] == [
        ("a", 0, 0.0, 1),
        ("b", 0, largest, 0),
        ("c", 0, -largest, 0),
    ]


@pytest.mark.parametrize("step", ["create", "log", "upload", "end"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_crash_before_or_after_any_step_is_made_good_by_the_next_try(
    step, before, tracker, study, database, monkeypatch
):
    run = train(make_run(study))
    run.artifacts.mkdir()
    (run.artifacts / "config.yaml").write_text("a: 1")
    ship(study, tracker=tracker)
    real = getattr(tracker, step)
    with monkeypatch.context() as patch:
        patch.setattr(tracker, step, crash if before else lambda *a, **k: crash(real(*a, **k)))
        with pytest.raises(KeyboardInterrupt):
            ship(run, tracker=tracker)
    assert ship(run, tracker=tracker)
    assert stored_runs(database) == [(NAME, "FINISHED", 10_000, 10_250)]
    assert len(stored(database)) == 9
    assert len(params_of(database, NAME)) == 13
    assert len(list(tracker.project.glob("mlartifacts/**/config.yaml"))) == 1


def test_a_crash_before_shipped_json_is_written_creates_no_second_run(tracker, study, database, monkeypatch):
    run = train(make_run(study))
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remember", crash)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                ship(run, tracker=tracker)
    assert ship(run, tracker=tracker)
    assert len(stored(database, "select * from runs")) == 2
    assert len(stored(database)) == 9


def test_a_resumed_run_runs_again_and_ends_finished(tracker, study, database):
    run = train(make_run(study), last=1, end="KILLED", reason="killed by signal 9")
    assert ship(run, tracker=tracker)
    assert stored_runs(database) == [(NAME, "KILLED", 10_000, 10_150)]
    train(run, first=1, last=2, end=None, clock=50_000)  # epoch 1 once more, from a checkpoint
    assert not ship(run, tracker=tracker)
    assert stored_runs(database)[0][1] == "RUNNING"
    train(run, first=3, last=4, clock=90_000)
    assert ship(run, tracker=tracker)
    assert stored_runs(database) == [(NAME, "FINISHED", 10_000, 90_450)]
    points = [row[:2] for row in stored(database)]
    assert [step for key, step in points if key == "val/accuracy"] == [0, 1, 2, 3, 4]
    assert len(points) == len(set(points)), "a point is stored twice"
    assert tags_of(database, NAME)["fanin.reason"] == ""
    assert tags_of(database, NAME)["fanin.attempts"] == "3"


def test_a_run_resumed_before_its_end_was_shipped_never_shows_that_end(tracker, study, database):
    run = train(make_run(study), last=1, end="KILLED")
    train(run, first=2, last=2, clock=50_000)
    assert ship(run, tracker=tracker)
    assert stored_runs(database) == [(NAME, "FINISHED", 10_000, 50_250)]


def test_changed_settings_on_resuming_do_not_fight_the_params_that_are_logged(tracker, study, database):
    run = train(make_run(study), last=1, end="KILLED")
    ship(run, tracker=tracker)
    changed = CONFIG | {"epochs": 9, "new": 1}
    run = train(make_run(study, config=changed), first=2, last=2)
    run.forget()
    assert ship(run, tracker=tracker)
    params = params_of(database, NAME)
    assert (params["epochs"], params["new"]) == ("2", "1")


def test_odd_keys_and_long_values_arrive(tracker, study, database):
    metrics = {
        "weight/layer[0].w/std": 1.0,
        "weight/layer+0.w/std": 2.0,
        "../up": 3.0,
        "x" * 300: 4.0,
        "": 5.0,
    }
    long = "lorem " * 1500
    run = train(make_run(study, config=CONFIG | {"note": long, "k(1)": 1}), metrics=lambda _: metrics, last=0)
    assert ship(run, tracker=tracker)
    values = {value: key for key, _, value, _, _ in stored(database)}
    assert set(values) >= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert values[1.0].startswith("weight/layer_0_.w/std_")
    params = params_of(database, NAME)
    assert len(params["note"]) == 6000 and "9000 characters" in params["note"]
    assert any(key.startswith("k_1__") for key in params)
    (file,) = tracker.project.glob("mlartifacts/**/params/note.txt")
    assert file.read_text() == long


def test_2500_metrics_and_150_params_at_once_fit(tracker, study, database):
    run = make_run(study, config=CONFIG | {"many": {str(i): i for i in range(150)}})
    assert ship(train(run, last=0, metrics=lambda _: {f"m{i}": i for i in range(2500)}), tracker=tracker)
    assert len(stored(database)) == 2500 + 1
    assert len(params_of(database, NAME)) == 150 + 13


def test_artifacts_and_checkpoint_go_when_the_run_is_finished_and_not_before(tracker, study, tmp_path):
    run = train(make_run(study), last=1, end="KILLED")
    run.artifacts.mkdir()
    (run.artifacts / "best.pt").write_bytes(b"weights")
    run.checkpoint.write_bytes(b"to resume from")
    ship(run, tracker=tracker)
    assert run.checkpoint.exists() and run.artifacts.exists()
    ship(train(run, first=2, last=2), tracker=tracker)
    assert not run.checkpoint.exists() and not run.artifacts.exists()
    (file,) = tmp_path.glob("mlartifacts/initializers/*/artifacts/best.pt")
    assert file.read_bytes() == b"weights"


def test_a_database_that_was_deleted_is_filled_again_from_the_spools(tracker, study, database, tmp_path):
    run = train(make_run(study))
    ship(run, tracker=tracker)
    before = stored(database)
    for file in tmp_path.glob("mlflow.db*"):
        file.unlink()
    new_database(database)
    train(run, first=3, last=3)
    later = train(make_run(study, variant="bbbbbbbbbb"))
    fresh = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    fresh._client._tracking_client.store.engine.dispose()  # connects anew, as another process would
    assert ship(later, tracker=fresh) and ship(run, tracker=fresh)
    assert set(before) <= set(stored(database))
    assert len(stored_runs(database)) == 2
    parents = {tags_of(database, NAME)["mlflow.parentRunId"]}
    assert parents == {row[0] for row in stored(database, "select run_uuid from runs where name = 'initializers'")}


def test_sync_fills_a_database_that_was_removed_though_no_spool_has_anything_new(tracker, study, database, tmp_path):
    train(make_run(study))
    train(make_run(study, replicate=1))
    sync(tmp_path, tracker=tracker)
    before = stored(database)
    for file in tmp_path.glob("mlflow.db*"):
        file.unlink()
    new_database(database)
    fresh = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    fresh._client._tracking_client.store.engine.dispose()  # connects anew, as another process would
    assert sync(tmp_path, tracker=fresh).left == {}
    assert stored(database) == before and len(stored_runs(database)) == 2


def test_a_deleted_run_is_refused_not_created_anew(tracker, study, database):
    run = train(make_run(study), last=1, end=None)
    ship(run, tracker=tracker)
    tracker.delete(run.shipped(tracker.uri).run)
    train(run, first=2, last=2)
    with pytest.raises(TrackingRefused, match="deleted"):
        ship(run, tracker=tracker)


def test_a_deleted_experiment_is_refused_with_the_way_back(tracker, study, tmp_path):
    ship(study, tracker=tracker)
    tracker._client.delete_experiment(tracker._experiment("initializers"))
    other = Tracker(project=tmp_path, uri="sqlite:///mlflow.db")
    study.forget()
    with pytest.raises(TrackingRefused, match="mlflow experiments restore"):
        ship(study, tracker=other)


def test_a_study_with_another_identity_under_the_same_name_has_its_own_parent_and_runs(
    tracker, study, database, tmp_path
):
    ship(train(make_run(study)), tracker=tracker)
    shutil.rmtree(tmp_path / ".fanin")
    again = make_study(tmp_path, identity="22222")
    ship(train(make_run(again)), tracker=tracker)
    assert len(stored_runs(database)) == 2
    assert len(stored(database, "select * from runs where name = 'initializers'")) == 2


def test_the_end_of_a_study_sets_its_description_metrics_and_tags(tracker, study, database):
    with Spool(study.spool) as spool:
        note = {"note": "| leaderboard |", "tags": {"fanin.verdict": "he_normal"}}
        spool.append("end", status="FINISHED", metrics={"best": 0.98}, **note)
    assert ship(study, tracker=tracker)
    tags = tags_of(database, "initializers")
    assert (tags["mlflow.note.content"], tags["fanin.verdict"]) == ("| leaderboard |", "he_normal")
    assert [row[:3] for row in stored(database)] == [("best", 1, 0.98)]
    with Spool(study.spool) as spool:
        spool.append("start")
        spool.append("end", status="FINISHED", metrics={"best": 0.99}, note="better")
    assert ship(study, tracker=tracker)
    assert [row[:3] for row in stored(database)] == [("best", 1, 0.98), ("best", 2, 0.99)]
    assert tags_of(database, "initializers")["mlflow.note.content"] == "better"


def test_sync_ships_what_is_left_and_ends_what_died(tracker, study, database, tmp_path):
    train(make_run(study, variant="finished00"))
    train(make_run(study, variant="died000000"), last=1, end=None)
    make_run(study, variant="planned000")
    report = sync(tmp_path, tracker=tracker)
    assert (report.shipped, report.running, report.left) == (3, 0, {})
    assert [folder.path.name for folder in report.ended] == ["initializers", "died000000-r0"]
    statuses = stored(database, "select status from runs order by status")
    assert statuses == [("FINISHED",), ("KILLED",), ("KILLED",)]
    again = sync(tmp_path, tracker=tracker)
    assert (again.shipped, again.ended) == (3, ())


def test_sync_leaves_what_a_living_process_writes(tracker, study, database, tmp_path):
    run = train(make_run(study), last=1, end=None)
    with Spool(run.spool):  # a worker without its coordinator
        report = sync(tmp_path, tracker=tracker)
        assert report.running == 1 and run not in report.ended
    with Spool(study.spool) as spool:  # a coordinator between two attempts of a run
        spool.append("start")
        report = sync(tmp_path, tracker=tracker)
        assert report.running == 2 and report.ended == ()
    assert stored_runs(database)[0][1] == "RUNNING"


def test_sync_stops_knocking_at_a_store_that_is_down(study, tmp_path):
    train(make_run(study))
    report = sync(tmp_path, tracker=Tracker(project=tmp_path, uri="http://127.0.0.1:9"))
    assert report.shipped == 0 and len(report.left) == 2


def test_a_run_shipped_to_another_store_is_shipped_whole_to_this_one(tracker, study, tmp_path):
    run = train(make_run(study))
    ship(run, tracker=tracker)
    other = new_database(tmp_path / "other.db")
    assert ship(run, tracker=Tracker(project=tmp_path, uri="sqlite:///other.db"))
    assert stored(other) == stored(tmp_path / "mlflow.db")


def test_through_a_server_lost_replies_and_outages_lose_and_double_nothing(tmp_path):
    new_database(tmp_path / "server.db")
    study = make_study(tmp_path)
    odd = {"a": math.nan, "b": math.inf, "c": -math.inf}
    run = train(make_run(study), last=2, end=None, metrics=lambda epoch: odd | {"val/loss": 1 / (3 + epoch)})
    run.artifacts.mkdir()
    (run.artifacts / "samples.png").write_bytes(b"png")
    with mlflow_server(tmp_path) as server, flaky_server(server) as (uri, lost):
        tracker = Tracker(project=tmp_path, uri=uri)
        lost.add("experiments/create")  # made good at once: names of experiments are unique
        for path in ["runs/create"] * 2 + ["runs/log-batch"] * 2:  # the first run created is the study's
            lost.add(path)
            with pytest.raises(TrackingDown):
                ship(run, tracker=tracker)
            assert not lost, path
        assert not ship(run, tracker=tracker)
        train(run, first=3, last=3, metrics=lambda epoch: odd | {"val/loss": 0.1})
        for path in ["runs/log-batch", "samples.png", "runs/update"]:
            lost.add(path)
            with pytest.raises(TrackingDown):
                ship(run, tracker=tracker)
            assert not lost, path
        assert ship(run, tracker=tracker)
    database = tmp_path / "server.db"
    assert stored_runs(database) == [(NAME, "FINISHED", 10_000, 10_350)]
    assert len(stored(database, "select * from runs where lifecycle_stage = 'active'")) == 2
    steps = [(key, step) for key, step, *_ in stored(database)]
    assert len(steps) == len(set(steps)) == 4 * 4 + 2
    assert next(tmp_path.glob("server-artifacts/**/samples.png")).read_bytes() == b"png"


def test_a_study_name_must_name_a_folder(tmp_path):
    for name in ("", "a/b", "../up", ".hidden"):
        with pytest.raises(ValueError, match="study.name"):
            declare_study(tmp_path, name, question="?")
