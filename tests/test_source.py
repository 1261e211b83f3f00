"""Whatever is wrong with the place a study is read from is said in one message that names it and leads on."""

import sqlite3
import subprocess
import sys

import pandas
import pytest
from databases import lacking, postgres_copy
from recorded import make_run, make_study, new_database, train
from servers import free_port, mlflow_server

from fanin import query, source
from fanin.errors import ConfigError
from fanin.shipping import sync
from fanin.tracking import Tracker, TrackingDown, TrackingRefused


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    new_database(folder / "server.db")
    study = make_study(folder)
    for replicate in range(2):
        train(make_run(study, replicate=replicate), last=1)
    sync(folder, tracker=Tracker(project=folder, uri="sqlite:///server.db"))
    return folder


@pytest.fixture(scope="module")
def copy(project):
    if lacking():
        pytest.skip(lacking())
    with postgres_copy(project / "server.db", project) as copy:
        yield copy


@pytest.fixture
def nobody():
    """The address of a server that is not there."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def beside(monkeypatch):
    """Read from a PostgreSQL beside a server."""

    def read(mirror, server="http://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("FANIN_READ_URI", mirror)

    return read


def test_a_dead_server_is_named(nobody):
    with pytest.raises(TrackingDown, match=rf"^http://{nobody}: cannot be reached: .*refused$"):
        query.runs("initializers", uri=f"http://{nobody}")


def test_a_dead_postgres_is_named_without_its_password(nobody, beside):
    with pytest.raises(TrackingDown, match="Connection refused") as failed:
        query.runs("initializers", uri=f"postgresql+psycopg://ada:secret@{nobody}/mlflow")
    assert "MLFLOW_TRACKING_URI" in str(failed.value) and "secret" not in str(failed.value)
    beside(f"postgresql://ada:secret@{nobody}/mlflow")
    with pytest.raises(TrackingDown, match="^FANIN_READ_URI: ") as failed:
        query.runs("initializers")
    assert "secret" not in str(failed.value) and "\n" not in str(failed.value)


def test_a_wrong_password_is_a_refusal(copy, beside):
    beside(copy.reader.replace("reader:", "reader:x"))
    with pytest.raises(TrackingRefused, match='FANIN_READ_URI: .*password authentication failed for user "reader"'):
        query.runs("initializers")


def test_a_database_that_the_role_may_not_open_is_a_refusal(copy, beside):
    beside(copy.reader.replace("/mlflow", "/mlflow_auth"))
    with pytest.raises(TrackingRefused, match="permission denied"):
        query.runs("initializers")


def test_a_postgres_without_mlflows_tables_is_refused(copy, beside):
    beside(copy.reader.replace("/mlflow", "/optuna"))
    with pytest.raises(ConfigError, match="FANIN_READ_URI: there are no tables of MLflow at postgresql://127"):
        query.runs("initializers")


def test_the_mirror_must_be_postgres(beside):
    beside("mysql://ada:secret@127.0.0.1/mlflow")
    with pytest.raises(ConfigError, match="FANIN_READ_URI: must be a postgresql://") as failed:
        query.runs("initializers")
    assert "secret" not in str(failed.value)


def test_a_place_that_is_named_is_read_itself(copy, project, beside):
    beside(copy.reader)
    assert len(query.runs("initializers")) == 2
    with pytest.raises(TrackingDown, match="cannot be reached"):
        query.runs("initializers", uri="http://127.0.0.1:9")


def test_a_mirror_of_an_untested_schema_is_left_for_the_server_and_that_is_said(
    copy, project, beside, monkeypatch, caplog
):
    truth = query.curves("initializers", project=project, uri="sqlite:///server.db")
    monkeypatch.setattr("fanin.database.TESTED_REVISIONS", {"another"})
    source._tell.cache_clear()
    with mlflow_server(project) as uri:
        beside(copy.reader, server=uri)
        for _ in range(2):
            pandas.testing.assert_frame_equal(query.curves("initializers"), truth)
    (notice,) = caplog.messages
    assert "dc11669786a5" in notice and uri in notice


def test_postgres_is_read_by_a_role_that_cannot_write(copy):
    with source.opened(project=".", uri=copy.owner) as opened, pytest.raises(Exception, match="read-only transaction"):
        opened._tables.rows("delete from metrics returning key")


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_file_that_is_no_database_of_mlflow_is_named(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mlflow\.db: cannot be read as an MLflow database"):
        query.runs("initializers", project=tmp_path, uri="sqlite:///mlflow.db")


def test_a_locked_database_is_down_and_not_wrong(tmp_path, monkeypatch):
    path = new_database(tmp_path / "mlflow.db")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **options: connect(*a, **options | {"timeout": 0.1}))
    with connect(path, isolation_level=None) as writer:
        writer.execute("pragma journal_mode = delete")  # of a file that no tracker has opened
        writer.execute("begin exclusive")
        with pytest.raises(TrackingDown, match="database is locked"):
            query.runs("initializers", project=tmp_path, uri="sqlite:///mlflow.db")
        writer.execute("rollback")
    writer.close()


def test_an_experiment_that_is_no_study_is_told_from_one_that_is_not_there(tmp_path):
    path = new_database(tmp_path / "mlflow.db")
    with sqlite3.connect(path) as connection:
        connection.execute("insert into experiments (name, lifecycle_stage) values ('foreign', 'active')")
    connection.close()
    with pytest.raises(ConfigError, match="'foreign' has no run of a study"):
        query.runs("foreign", project=tmp_path, uri="sqlite:///mlflow.db")


@pytest.mark.parametrize(("command", "code"), [(["results", "initializers"], 1), (["report", "initializers"], 1)])
def test_a_command_says_in_one_line_that_the_server_is_dead(tmp_path, nobody, command, code, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{nobody}")
    run = [sys.executable, "-m", "fanin", *command]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith(f"fanin: http://{nobody}: cannot be reached") and done.stderr.count("\n") == 1
