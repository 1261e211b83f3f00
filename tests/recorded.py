"""Studies and runs as a coordinator and its workers leave them on disk, and real MLflow servers."""

import http.client
import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from fanin.folders import declare_run, declare_study
from fanin.spool import Spool
from fanin.tracking import Tracker

CONFIG = {
    "epochs": 2,
    "seed": 0,
    "initializer": {"_target_": "fanin.initializers.he_normal", "gain": 2**0.5, "bias": "zeros"},
    "model": {"widths": [256, 256], "activation": "relu"},
    "optimizer": {"lr": 1e-05, "fused": True, "schedule": None},
    "regularization": {"applied": {}, "dropout": 0.0},
    "study": {"question": "not a param"},
}


def make_study(project, name="initializers", *, start=1_000, **fields):
    fields = {"question": "Which one?", "swept": ["initializer", "optimizer.lr"]} | fields
    study = declare_study(project, name, **fields)
    with Spool(study.spool) as spool:
        spool.append("start", time=start)
    return study


def make_run(study, *, variant="aaaaaaaaaa", replicate=0, config=CONFIG, initializer="he_normal"):
    overrides = {"initializer": initializer, "optimizer.lr": config["optimizer"]["lr"]}
    spec = {"key": f"{variant}-r{replicate}", "variant": variant, "replicate": replicate}
    spec |= {"name": f"initializer={initializer} r{replicate}", "overrides": overrides}
    spec |= {"choices": {"initializer": initializer, "model": "mlp"}, "config": config}
    return declare_run(study, spec)


def accuracy(epoch):
    return 0.1 + epoch / 7


def train(folder, *, first=0, last=2, end="FINISHED", clock=10_000, metrics=None, **fields):
    """Write a spool as one attempt does: a start, the epochs, an end unless `end` is None."""
    with Spool(folder.spool) as spool:
        spool.append("start", time=clock + first)
        for epoch in range(first, last + 1):
            values = metrics(epoch) if metrics else {"val/accuracy": accuracy(epoch), "val/loss": 2.0 - epoch}
            spool.append("epoch", epoch=epoch, metrics=values, time=clock + 100 * epoch)
        if end:
            results = {"test/accuracy": 0.5} if end == "FINISHED" else {}
            fields = {"metrics": results, "step": last, "reason": None} | fields
            spool.append("end", status=end, time=clock + 100 * last + 50, **fields)
    return folder


def stored(database, query="select key, step, value, is_nan, timestamp from metrics order by key, step"):
    """Read the database without any code of ours or MLflow's."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def stored_runs(database):
    """The children in the database: (name, status, start, end), deleted ones left out."""
    children = "select run_uuid from tags where key = 'mlflow.parentRunId'"
    rule = f"lifecycle_stage = 'active' and run_uuid in ({children})"
    return stored(database, f"select name, status, start_time, end_time from runs where {rule} order by name")


def tags_of(database, name):
    query = f"select t.key, t.value from tags t join runs r using (run_uuid) where r.name = '{name}'"
    return dict(stored(database, query))


def params_of(database, name):
    query = f"select p.key, p.value from params p join runs r using (run_uuid) where r.name = '{name}'"
    return dict(stored(database, query))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def mlflow_server(folder, *, port=None, workers=1):
    """A real server on a database in `folder`; yields its URI."""
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, env=os.environ | switches, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: healthy(uri), seconds=120)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def healthy(uri):
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(condition, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.02)


@contextmanager
def flaky_server(uri, *, refusal=lambda: None):
    """A proxy before a server that loses replies when told to: yields (its URI, the set of lost paths).

    A request whose path ends in one of the set is carried out, once, and its reply is thrown away. While
    `refusal` returns a status, that is the answer, and the server hears nothing.
    """
    lost: set[str] = set()
    target = uri.removeprefix("http://")

    class Relay(http.server.BaseHTTPRequestHandler):
        def relay(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status := refusal():
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with closing(http.client.HTTPConnection(target, timeout=30)) as server:
                headers = dict(self.headers) | {"Host": target, "Connection": "close"}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
            self.close_connection = True
            for ending in [ending for ending in lost if self.path.endswith(ending)]:
                lost.remove(ending)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type") or "")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay

        def log_message(self, *_):
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", lost
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def copy_database(source, target):
    """With what is still in the write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    return target


@cache
def empty_database():
    """The bytes of a database that MLflow has just made, which takes it seconds of migrations."""
    with tempfile.TemporaryDirectory() as folder:
        Tracker(project=folder, uri="sqlite:///mlflow.db").connect()
        return copy_database(f"{folder}/mlflow.db", Path(folder) / "copy.db").read_bytes()


def new_database(path):
    path.write_bytes(empty_database())
    return path
