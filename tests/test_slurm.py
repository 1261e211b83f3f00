"""Workers in jobs: what Slurm is asked for, and whole sweeps by submitit's local executor."""

import importlib.util
import os
import re
import resource
import signal
import socket
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
from processes import attempt, children, curves, folders, open_runs
from projects import new_project, write_study
from recorded import wait_until

from fanin import spool
from fanin.app import main

if not importlib.util.find_spec("submitit"):
    pytest.skip("needs the extra fanin[slurm]", allow_module_level=True)

import submitit.slurm.slurm as slurm

from fanin.errors import ConfigError
from fanin.sweep.slurm_pool import SlurmPool, make_executor

LOCAL = ("hardware=slurm", "hardware.slurm.executor=local", "hardware.workers=2")
OPTIONS = {
    "executor": "slurm",
    "partition": "gpu",
    "account": "physics",
    "minutes": 90,
    "memory": 8,
    "more": {"qos": "long"},
}
HARDWARE = {"threads": 4, "device": "cuda", "gpus_per_run": 2, "slurm": OPTIONS}


def project_in(folder):
    """A project with a study of four short runs."""
    new_project(folder)
    write_study(folder, epochs=30, images=600)
    return folder


@pytest.fixture
def study(tmp_path):
    return project_in(tmp_path)


def test_a_job_asks_slurm_for_what_one_worker_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.SlurmExecutor, "affinity", classmethod(lambda cls: 2))  # as where there is sbatch
    executor = make_executor(HARDWARE, tmp_path)
    text = executor._executor._make_submission_file_text("python -m work", "abc")
    for line in (
        "partition=gpu",
        "account=physics",
        "time=90",
        "mem=8GB",
        "cpus-per-task=4",
        "gpus-per-node=2",
        "qos=long",
    ):
        assert f"#SBATCH --{line}\n" in text, text
    assert re.search(r"python -m work", text) and "array" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"executor": "pbs"}, "hardware.slurm.executor: 'pbs' is not one of: local, slurm"),
        ({"more": {"no_such": 1, "time": 3}, "executor": "slurm"}, "hardware.slurm: "),
    ],
)
def test_what_cannot_be_submitted_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        make_executor({**HARDWARE, "slurm": OPTIONS | change}, tmp_path)


def test_a_sweep_by_jobs_gives_the_numbers_of_one_on_this_machine(study, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(study)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["sweep", "faults", "epochs=3", *LOCAL]) == 0
    assert "2 jobs by local; what they print is in .fanin/jobs" in capsys.readouterr().out
    by_jobs = children(study), curves(study)
    pids = {spool.read(run / "spool.jsonl")[0][0]["pid"] for run in folders(study)}
    assert len(folders(study)) == 4 and os.getpid() not in pids
    assert not [*(study / ".fanin/jobs").glob("secret*")]
    monkeypatch.chdir(other := project_in(tmp_path_factory.mktemp("here")))
    assert main(["sweep", "faults", "epochs=3"]) == 0
    here = children(other), curves(other)
    assert here == by_jobs and len(here[1]) > 4 * 4 * 4


def test_a_job_that_is_killed_is_replaced_and_its_run_goes_on(study, launch):
    command = launch(study, "sweep", "faults", "hardware.checkpoint=0", *LOCAL)
    met = []

    def find():
        met.extend(r for _, r in open_runs(study) if sum(one["kind"] == "epoch" for one in r) > 3)
        return met or not command.running

    wait_until(find, seconds=90)
    assert met, command.output
    os.kill(attempt(met[0])["pid"], signal.SIGKILL)
    assert command.end() == 0, command.output
    assert re.search(r"worker gone with its job \d+ \(now \w+; .*\); tried again \(1 of 2\)", command.output)
    attempts = sorted(spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(study))
    assert attempts == [1, 1, 1, 2]
    assert children(study) == {run.name: ["FINISHED"] for run in folders(study)}
    assert {len(values) for values in curves(study).values()} == {1}


def test_jobs_that_never_reach_the_coordinator_end_the_sweep_with_their_log(study, monkeypatch, capsys):
    monkeypatch.chdir(study)
    monkeypatch.setattr("fanin.sweep.slurm_pool.LOOK", 0.1)
    monkeypatch.setattr("fanin.sweep.slurm_pool.join", os._exit)  # whatever it is called with
    assert main(["sweep", "faults", *LOCAL]) == 2
    error = capsys.readouterr().err
    assert "jobs ended before they reached this machine at" in error and "_log.err" in error


def test_who_does_not_know_the_secret_is_not_listened_to(tmp_path):
    executor = make_executor({**HARDWARE, "device": "cpu", "slurm": OPTIONS | {"executor": "local"}}, tmp_path)
    pool = SlurmPool(executor, "handlers:Handler", arguments={}, size=1, folder=tmp_path, host="127.0.0.1")
    try:
        [secret] = tmp_path.glob("secret*")
        assert secret.stat().st_mode & 0o077 == 0
        with pytest.raises(AuthenticationError):
            Client(pool._listener.address, authkey=b"guessed")
        assert pool.wait(0.1) == [] and not pool.workers
    finally:
        pool.close()


@pytest.fixture
def pool(tmp_path):
    executor = make_executor({**HARDWARE, "device": "cpu", "slurm": OPTIONS | {"executor": "local"}}, tmp_path)
    pool = SlurmPool(executor, "handlers:Handler", arguments={}, size=1, folder=tmp_path, host="127.0.0.1")
    yield pool
    pool.close()


def test_who_connects_and_keeps_silent_holds_up_nobody_and_is_let_go(pool, monkeypatch):
    monkeypatch.setattr("fanin.sweep.slurm_pool.GREETING", 0.3)
    with socket.create_connection(pool._listener.address) as silent:
        with Client(pool._listener.address, authkey=pool._secret.read_bytes()) as friend:
            friend.send((0, "node", 1))
            assert pool._joined.get(timeout=60.0)[:2] == (0, 1)
        silent.settimeout(60.0)
        while silent.recv(1000):  # the challenge, and then the end
            pass


def test_too_many_open_files_are_waited_for(pool):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as early:
        free = os.dup(early.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))  # not one file more
        try:
            early.connect(pool._listener.address)
            time.sleep(0.1)  # while its turn comes and fails; it need not, the test is the same then
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        early.settimeout(60.0)
        assert early.recv(1), "the pool says nothing to who has connected"


def test_two_sweeps_of_one_project_do_not_take_each_others_secret(tmp_path):
    executor = make_executor({**HARDWARE, "device": "cpu", "slurm": OPTIONS | {"executor": "local"}}, tmp_path)
    how = {"arguments": {}, "size": 1, "folder": tmp_path, "host": "127.0.0.1"}
    first, second = (SlurmPool(executor, "handlers:Handler", **how) for _ in range(2))
    try:
        Client(first._listener.address, authkey=first._secret.read_bytes()).close()
        assert first._secret.read_bytes() != second._secret.read_bytes()
        second.close()
        assert first._secret.exists() and not second._secret.exists()
        Client(first._listener.address, authkey=first._secret.read_bytes()).close()
    finally:
        first.close()
