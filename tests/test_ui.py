"""`fanin ui` with MLflow's real server. What its pages look like in a browser: tools/screenshot.py."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from recorded import make_run, make_study, new_database, train

from fanin import ui
from fanin.errors import ConfigError
from fanin.shipping import ship
from fanin.tracking import Tracker


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def project(tmp_path):
    """A finished study of ours beside an experiment of somebody else's."""
    new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path)
    ship(train(make_run(make_study(tmp_path))), tracker=tracker)
    with tracker.translated() as client:
        client.create_experiment("foreign")
    return tmp_path


def commands_with(text):
    """The commands of all processes that have `text` among their arguments."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if text in line]


def read_links(process):
    """What the command prints once MLflow's server answers: name -> address."""
    lines = iter(process.stdout.readline, "")
    assert next(lines).startswith("starting")
    found = {}
    while "all studies" not in found:
        name, _, address = next(lines).strip().partition(": ")
        found[name] = address
    return found


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_links_answer_once_they_are_printed_and_nothing_is_left_of_the_server_at_the_end(
    project, end, monkeypatch, capsys
):
    port = str(ui.check_port(0))
    command = [sys.executable, "-W", "ignore", "-m", "fanin", "ui", "--port", port]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        found = read_links(process)
        with urllib.request.urlopen(found["initializers"], timeout=30) as answer:
            assert answer.status == 200
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found["all studies"])
        assert ui.serve(project=project, port=-1) == 0  # a store that is a server: only says where it is
        assert commands_with(f"--port {port}")
        process.send_signal(end)
        assert process.wait(30) == 0
    assert set(found) == {"initializers", "foreign", "all studies"}
    assert f"http://127.0.0.1:{port}/#/experiments/" in found["initializers"]
    assert "viewStateShareKey=fanin" in found["initializers"]
    assert "viewStateShareKey" not in found["foreign"]  # MLflow would complain that there is no such view
    assert not commands_with(f"--port {port}")
    assert dict(line.split(": ") for line in capsys.readouterr().out.splitlines()) == found


def test_without_results_there_is_nothing_to_serve(tmp_path):
    with pytest.raises(ConfigError, match=r"no database .*mlflow\.db yet; `fanin sweep"):
        ui.serve(project=tmp_path, port=0)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_cannot_be_had_is_refused_before_anything_is_started(project):
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: {taken} cannot be had .*in use"):
            ui.serve(project=project, port=taken)
    for port in (-1, 65536):
        with pytest.raises(ConfigError, match="--port"):
            ui.serve(project=project, port=port)


def test_a_server_that_does_not_start_is_an_error_with_the_reason_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    address = f"http://{ui.HOST}:{ui.check_port(0)}"
    with pytest.raises(ConfigError, match="did not start: .*file is not a database"):
        with ui.running(f"sqlite:///{tmp_path}/mlflow.db", address=address):
            pass
    assert not commands_with(f"--port {address.rpartition(':')[2]}")
