"""Workers on a Ray cluster of several nodes on this machine, one of which is killed."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from native_stack import SERVICES, environment
from processes import attempt, children, curves, folders, leaderboard, open_runs
from projects import new_project, write_study
from recorded import wait_until
from servers import free_port

from fanin import spool
from fanin.app import main
from fanin.errors import ConfigError

if not importlib.util.find_spec("ray"):
    pytest.skip("needs the extra fanin[ray]", allow_module_level=True)

# ray warns about itself, MLflow 3.17 about SQLAlchemy 2.1
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NODES = """
import json, os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:  # a line kills the second node, the end of the input the cluster
    cluster.remove_node(second, allow_graceful=False)
    print(json.dumps("killed"), flush=True)
cluster.shutdown()
"""


class Nodes:
    """Two Ray nodes of one CPU each, in processes of their own."""

    def __init__(self, home):
        environment = os.environ | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.address = self.answer()

    def answer(self):
        """The next line of JSON; Ray prints others."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith('"'):
                return json.loads(line)
        raise AssertionError("the cluster is gone")

    def kill_one(self):
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.answer() == "killed"

    def close(self):
        with self.process:  # closes both pipes, and waits
            self.process.stdin.close()
            self.process.stdout.read()


@pytest.fixture
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("home"))
    yield nodes
    nodes.close()


class Services:
    """ray-head and ray-worker of docker-compose.yml as processes of this machine, for want of containers: only the
    address of the head is another, and both nodes are on the loopback interface."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.running = []

    def variables(self, service):
        """What a shell in the service's container has as its environment."""
        secrets = {"RAY_AUTH_TOKEN": "a" * 64, "SWEEPER_PASSWORD": "none"}
        here = {"HOME": str(self.folder), "RAY_TMPDIR": str(self.folder)}
        return environment(service, secrets, RAY_ADDRESS=f"127.0.0.1:{self.port}", **here)

    def native(self, words):
        assert words[0] == "ray"
        words = [word.replace("ray-head:6379", f"127.0.0.1:{self.port}") for word in words[1:]]
        words = [f"--port={self.port}" if word == "--port=6379" else word for word in words]
        return [str(Path(sys.executable).with_name("ray")), *words]

    def start(self, service):
        command = [*self.native(SERVICES[service]["command"]), "--node-ip-address=127.0.0.1"]
        with (self.folder / f"{service}.log").open("w") as log:
            node = subprocess.Popen(
                command, env=self.variables(service), stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(node)
        wait_until(lambda: self.healthy(service), seconds=90)

    def healthy(self, service):
        check = self.native(SERVICES[service]["healthcheck"]["test"][1:])
        done = subprocess.run(check, env=self.variables(service), capture_output=True, check=False)
        return done.returncode == 0

    def stop(self):
        for node in reversed(self.running):
            node.terminate()
            node.wait(60)


@pytest.fixture
def services():
    with tempfile.TemporaryDirectory(prefix="fanin-ray-", ignore_cleanup_errors=True) as folder:  # a short path
        services = Services(Path(folder))
        try:
            services.start("ray-head")
            yield services
        finally:
            services.stop()


def project_in(folder):
    new_project(folder)
    write_study(folder, initializers="he_normal,xavier_uniform,orthogonal", replicates=2, epochs=40, images=1000)
    return folder


def test_a_sweep_outlives_a_node_and_equals_an_undisturbed_one(nodes, launch, tmp_path_factory, monkeypatch, capsys):
    project = project_in(tmp_path_factory.mktemp("ray"))
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    choice = ("sweep", "faults", "model=softmax", "model._target_=mine.Net")
    command = launch(project, *choice, "hardware=ray", "hardware.checkpoint=0")

    def both():
        runs = [r for _, r in open_runs(project) if r[-1]["kind"] == "epoch" and r[-1]["epoch"] > 3]
        return len({attempt(records)["pid"] for records in runs}) == 2 or not command.running

    wait_until(both, seconds=120)
    assert command.running, command.output
    nodes.kill_one()
    assert command.end(seconds=240) == 0, command.output
    assert "2 workers on a Ray cluster that has room for 2" in command.output
    assert "worker lost with its node; tried again (1 of 2)" in command.output, command.output
    assert "raylet" not in command.output  # Ray's own words take pages

    monkeypatch.chdir(undisturbed := project_in(tmp_path_factory.mktemp("here")))
    assert main(list(choice)) == 0
    here = capsys.readouterr().out
    assert children(project) == children(undisturbed) == {run.name: ["FINISHED"] for run in folders(undisturbed)}
    assert {len(values) for values in curves(project).values()} == {1}
    assert curves(project) == curves(undisturbed)
    assert leaderboard(command.output) == leaderboard(here)
    attempts = [spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)]
    assert sorted(attempts)[-2:] == [1, 2]


def test_a_cluster_that_is_not_there_or_too_small_is_refused_before_a_run(nodes, launch, tmp_path_factory, monkeypatch):
    project = project_in(tmp_path_factory.mktemp("ray"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nowhere = "127.0.0.1:1"
    for address, overrides, message in (
        (nodes.address, ["hardware.threads=3"], "no node has room for a worker of 3 CPUs and 0 GPUs (the nodes have 1"),
        (nowhere, [], f"no Ray cluster answers at RAY_ADDRESS={nowhere}"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        command = launch(project, "sweep", "faults", "hardware=ray", *overrides)
        assert command.end() == 2 and message in command.output, command.output
        assert "Traceback" not in command.output
        assert not (project / ".fanin" / "faults" / "runs").exists()


def test_a_cluster_that_a_sweep_starts_asks_strangers_for_a_token(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "own.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from fanin.sweep import ray_pool\n"
        "from fanin.sweep.ray_pool import ray\n"
        "modules = Path(sys.argv[1], 'modules'); modules.mkdir(); (modules / 'a.txt').write_text('a')\n"
        "ray_pool.connect(modules)\n"
        "assert ray.get(ray.remote(lambda: 7).remote()) == 7\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
    )
    stranger = "import sys, ray; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 7).remote()))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(program), str(tmp_path)], **pipes) as own:
        address = own.stdout.readline().strip()
        for known in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}):
            command = [sys.executable, "-c", stranger, address]
            tried = subprocess.run(command, env=os.environ | known, capture_output=True, text=True, timeout=120)
            assert tried.returncode and "7" not in tried.stdout.split(), tried.stdout
        own.stdin.close()
    assert own.returncode == 0


def test_runs_that_split_a_data_set_in_different_ways_share_its_place_on_the_cluster(monkeypatch):
    from fanin.sweep import ray_pool

    placed, digits = [], yaml.safe_load((ROOT / "conf/data/digits.yaml").read_text())
    monkeypatch.setattr(ray_pool.ray, "put", lambda dataset: placed.append(dataset) or len(placed))
    pool = ray_pool.RayPool("handlers:Handler", arguments={}, size=1, cpus=1, gpus=0)

    def place(**changes):
        return pool._place({"spec": {"config": {"data": digits | changes}}})

    assert [place(), place(n_train=50), place(val=20, scale="none")] == [1, 1, 1]
    assert len(placed) == 1 and len(placed[0].train) > 1000


def test_a_head_that_no_node_joins_is_refused(monkeypatch, capsys):
    from fanin.sweep import ray_pool

    nodes = [{"Alive": True, "Resources": {"memory": 4e9}}, {"Alive": False, "Resources": {"CPU": 2.0}}]
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_pool, "JOIN", 0.1)
    with pytest.raises(ConfigError, match="no node has room for a worker of 1 CPUs and 0 GPUs .the nodes have 0 CPUs"):
        ray_pool.capacity(cpus=1, gpus=0)
    assert capsys.readouterr().out.count("for one to join") == 1


def test_the_services_of_the_compose_file_are_a_cluster_that_sweeps_for_those_who_know_its_token(
    services, launch, tmp_path_factory, monkeypatch
):
    project = project_in(tmp_path_factory.mktemp("ray"))
    for name, value in services.variables("ray-head").items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    sweep = ("sweep", "faults", "model=softmax", "model._target_=mine.Net", "hardware=ray", "epochs=2")
    command = launch(project, *sweep)
    command.wait_for("no node of the Ray cluster has a CPU yet", seconds=90)
    services.start("ray-worker")
    assert command.end(seconds=240) == 0, command.output
    assert "2 workers on a Ray cluster that has room for 2" in command.output, "none on the head"
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)}

    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    stranger = launch(project_in(tmp_path_factory.mktemp("stranger")), *sweep)
    assert stranger.end(seconds=200) == 2, stranger.output
