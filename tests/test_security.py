"""Promises of SECURITY.md that need no server. Those of the server: test_compose_stack.py; of jobs: test_slurm.py."""

import ast
import re

import psutil
import pytest
from recorded import make_run, make_study, new_database, train
from servers import free_port
from test_policy import MODULES, ROOT, WITHOUT_TORCH, imports

from fanin import ui
from fanin.app import main
from fanin.errors import ConfigError
from fanin.shipping import ship
from fanin.sweep import delivery
from fanin.tracking import Tracker

PASSWORD = "hunter2-hunter2-hunter2"
UNPICKLERS = {
    "fanin.sweep.foreign": "a program's own function, on its way from its coordinator to its workers",
    "fanin.sweep.assembly": "a configuration, on the same way",
    "fanin.data.files": "CIFAR's batches, by an unpickler that makes arrays and nothing else",
}


def calls(path):
    """(dotted name, keyword arguments) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            keywords = {word.arg: word.value for word in node.keywords}
            yield ast.unparse(node.func), {name: ast.unparse(value) for name, value in keywords.items()}


def test_nothing_that_came_from_a_server_is_unpickled():
    pickles = {module for module, path in MODULES.items() if {"pickle", "cloudpickle"} & {*imports(path)}}
    assert pickles == {*UNPICKLERS}
    assert not {f"fanin.{name}" for name in WITHOUT_TORCH} & pickles, "who reads from a server"
    loads = [(name, given) for path in MODULES.values() for name, given in calls(path)]
    weights = [given for name, given in loads if name == "torch.load"]
    assert weights and all(given["weights_only"] == "True" for given in weights)
    arrays = [given for name, given in loads if name in ("np.load", "numpy.load")]
    assert arrays and all(given["allow_pickle"] == "False" for given in arrays)
    assert not [name for name, _ in loads if re.search(r"^mlflow\.\w+\.load", name)]


def test_nothing_in_the_sources_listens_on_every_interface():
    found = [path for path in MODULES.values() if re.search(r"0\.0\.0\.0|\[::\]|INADDR_ANY", path.read_text())]
    assert not found
    assert ui.HOST == "127.0.0.1"


def test_the_ui_listens_on_this_machine_only_and_its_command_has_no_address_of_a_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    new_database(tmp_path / "mlflow.db")
    uri = Tracker(project=tmp_path).uri
    with ui.running(uri, address=f"http://{ui.HOST}:{free_port()}") as server:
        server = psutil.Process(server.pid)
        family = [server, *server.children(recursive=True)]
        sockets = [one.laddr.ip for process in family for one in process.net_connections() if one.status == "LISTEN"]
        commands = [" ".join(process.cmdline()) for process in family]
    assert {*sockets} == {"127.0.0.1"}
    assert not [command for command in commands if uri in command]


@pytest.mark.parametrize("tracking", ["local", "server"])
def test_a_password_is_in_nothing_that_a_run_leaves_or_prints(tracking, tmp_path, monkeypatch, capfd):
    """Also not that of an address which holds one; the server is down, so that errors are told, too."""
    for name in ("conf", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{PASSWORD}@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery, "FLUSH", 0.1)
    assert main(["train", "epochs=1", "data.n_train=200", "model=softmax", f"tracking={tracking}"]) == 0
    assert main(["doctor"]) in (0, 1)
    said = capfd.readouterr()
    assert "not fully in MLflow" in said.out + said.err and "127.0.0.1" in said.out + said.err
    assert PASSWORD not in said.out + said.err
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 3
    assert not [path for path in left if PASSWORD in path.read_bytes().decode(errors="ignore")]


def test_what_was_shipped_is_remembered_without_the_password_and_whatever_it_is_by_now(tmp_path):
    new_database(tmp_path / "mlflow.db")
    tracker = Tracker(project=tmp_path)
    run = train(make_run(make_study(tmp_path)))
    ship(run, tracker=tracker)
    assert tracker.uri in (run.path / "shipped.json").read_text()
    before, after = (Tracker(project=tmp_path, uri=f"http://ada:{word}@127.0.0.1:1") for word in ("old", PASSWORD))
    assert before.address == after.address == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://ada:{PASSWORD}@db/mlflow",  # no driver
        f"postgres://ada:{PASSWORD}@db/mlflow",  # no such driver
        f"ftp://ada:{PASSWORD}@db",
        f"htp://ada:at@{PASSWORD}@db",
        f"postgresql://db/mlflow?user=ada&password={PASSWORD}&sslpassword={PASSWORD}",
    ],
)
def test_an_address_is_refused_without_saying_its_password(uri, tmp_path):
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as refused:
        Tracker(project=tmp_path, uri=uri)
    assert PASSWORD not in str(refused.value) and "db" in str(refused.value)


def test_what_security_md_promises_has_the_tests_it_names():
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 8
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}.py::{test}"
