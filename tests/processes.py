"""Real sweeps as processes of their own, to be watched and killed, and what they leave in MLflow's database."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import psutil
from recorded import wait_until

from fanin import spool


class Command:
    """A `fanin` command in a session (and so a process group) of its own."""

    def __init__(self, project, *arguments):
        self.project = project
        self.began = time.monotonic()
        self.log = project / f"output-{time.time_ns()}.txt"
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fanin", *arguments],
                cwd=project,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.seen: dict[int, psutil.Process] = {}  # what we ever saw below the command
        self.seen_workers: dict[int, psutil.Process] = {}

    @property
    def output(self):
        return self.log.read_text()

    @property
    def running(self):
        return self.process.poll() is None

    def look(self):
        """The living processes below the command; the workers are those below its fork server."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        self.seen |= {one.pid: one for one in below}
        self.seen_workers |= {one.pid: one for one in below if _parent(one) != self.process.pid}
        return below

    @property
    def workers(self):
        return [one for one in self.look() if one.pid in self.seen_workers]

    @property
    def survivors(self):
        """The workers we ever saw that still run. (The fork server takes its time to leave.)"""
        return [one for one in self.seen_workers.values() if _runs(one)]

    def worker_of(self, condition=lambda run: True, *, seconds=60):
        """A worker that has recorded an epoch of a run without an end: (its process, the run's folder)."""
        found = []

        def find():
            pids = {one.pid: one for one in self.workers}
            for run, records in open_runs(self.project):
                if records[-1]["kind"] == "epoch" and condition(run) and attempt(records)["pid"] in pids:
                    found.append((pids[attempt(records)["pid"]], run))
            return found or not self.running

        wait_until(find, seconds=seconds)
        assert found, f"ended before a run was open:\n{self.output}"
        return found[0]

    def wait_for(self, text, *, seconds=60):
        wait_until(lambda: text in self.output or not self.running, seconds=seconds)
        assert text in self.output, self.output

    def end(self, *, seconds=120):
        """Wait for its end; returns the exit code."""
        self.look()
        return self.process.wait(seconds)

    def signal(self, number):
        """To the whole group, as a terminal does on Ctrl-C."""
        self.look()
        os.killpg(self.process.pid, number)

    def kill(self):
        """The whole group, unless it has ended; nothing of it is left when this returns."""
        if self.running:
            self.signal(signal.SIGKILL)
        for one in self.seen.values():
            if _runs(one):
                one.kill()
        self.process.wait(30)
        wait_until(lambda: not any(map(_runs, self.seen.values())))


def _runs(process):
    try:
        return process.is_running() and process.status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def _parent(process):
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def folders(project, study="faults"):
    return sorted((project / ".fanin" / study / "runs").glob("*"))


def open_runs(project, study="faults"):
    """(folder, records) of every run that was begun and has not ended."""
    for folder in folders(project, study):
        records, _ = spool.read(folder / "spool.jsonl")
        if records and spool.digest(records).end is None:
            yield folder, records


def attempt(records):
    """The latest start record."""
    return [record for record in records if record["kind"] == "start"][-1]


def epochs_of(project, study="faults"):
    """How many epochs all runs have recorded."""
    return sum(
        record["kind"] == "epoch"
        for folder in folders(project, study)
        for record in spool.read(folder / "spool.jsonl")[0]
    )


def pauses(project, *, since=0.0, until=float("inf")):
    """Seconds between the epochs of a run, of those recorded in this time."""
    found = []
    for run in folders(project):
        times = [record["time"] / 1000 for record in spool.read(run / "spool.jsonl")[0] if record["kind"] == "epoch"]
        found += [b - a for a, b in zip(times, times[1:], strict=False) if since <= b <= until]
    return found


def query(project, sql, *values):
    """Ask MLflow's database without any code of ours or MLflow's."""
    with closing(sqlite3.connect(project / "mlflow.db", timeout=30)) as connection:
        return connection.execute(sql, values).fetchall()


def statuses(project, study="faults"):
    """fanin.run -> the statuses of the active MLflow runs that bear it, the study's own included."""
    rows = query(
        project,
        "select k.value, r.status from runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'fanin.run'"
        " join experiments e on e.experiment_id = r.experiment_id"
        " where e.name = ? and r.lifecycle_stage = 'active'",
        study,
    )
    found: dict[str, list[str]] = {}
    for key, status in rows:
        found.setdefault(key, []).append(status)
    return found


def children(project, study="faults"):
    """The same without the study's own run."""
    return {key: found for key, found in statuses(project, study).items() if not key.startswith(study)}


def curves(project, study="faults"):
    """(fanin.run, metric, step) -> the list of values stored, `seconds` left out."""
    rows = query(
        project,
        "select k.value, m.key, m.step, case when m.is_nan then 'nan' else m.value end from metrics m"
        " join tags k on k.run_uuid = m.run_uuid and k.key = 'fanin.run'"
        " join runs r on r.run_uuid = m.run_uuid join experiments e on e.experiment_id = r.experiment_id"
        " where e.name = ? and r.lifecycle_stage = 'active'",
        study,
    )
    found: dict[tuple[str, str, int], list[object]] = {}
    for key, metric, step, value in rows:
        if metric != "seconds":
            found.setdefault((key, metric, step), []).append(value)
    return found


def leaderboard(output):
    """The rows of the table in a command's output, without the column of seconds."""
    lines = output.splitlines()
    rule = max(i for i, line in enumerate(lines) if line.startswith("-  --"))
    rows = []
    for line in lines[rule + 1 :]:
        if not line.strip():
            break
        rows.append(line.split()[:-1])
    return rows
