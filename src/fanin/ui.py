"""`fanin ui`: MLflow's own UI on this project's tracking store, with a link to each study's page."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from fanin.errors import ConfigError, require
from fanin.query import studies
from fanin.tracking import Tracker, sqlite_file

HOST = "127.0.0.1"
START = 120.0  # seconds the server has to answer
END = 3.0  # seconds it has to end: it would wait for every browser to close its page
SWITCHES = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONSAFEPATH": "1",  # a user's own mlflow.py or types.py in the project folder is not for the server
}


def serve(*, project: Path, port: int) -> int:
    """Serve the UI until Ctrl-C; with a server as tracking store, only say where it shows what.

    Raises ConfigError if there is nothing to show, the port is taken, or MLflow's server does not start.
    """
    tracker = Tracker(project=project)
    if tracker.uri.startswith("http"):
        print(*links(tracker, tracker.address), sep="\n")
        return 0
    file = sqlite_file(tracker.uri)
    if file and not file.exists():
        raise ConfigError(f"ui: there is no database {file} yet; `fanin sweep initializers` makes one")
    address = f"http://{HOST}:{check_port(port)}"
    there = links(tracker, address)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server would outlive us
        signal.signal(number, _interrupt)
    print("starting the MLflow UI (Ctrl-C ends it) ...", flush=True)
    try:
        with running(tracker.uri, address=address) as server:
            print(*there, sep="\n", flush=True)
            return 1 if server.wait() else 0
    except KeyboardInterrupt:
        print()  # after the terminal's ^C
        return 0


def links(tracker: Tracker, server: str) -> list[str]:
    """Where the UI at `server` shows each study, and all of them."""
    pages = [f"{name}: {tracker.page(name, server=server)}" for name in studies(project=tracker.project)]
    return [*pages, f"all studies: {server}"]


@contextmanager
def running(uri: str, *, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server over the store `uri`, once it answers at `address`; ended with all its workers."""
    host, port = address.removeprefix("http://").split(":")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", port, "--workers", "1"]
    store = {"MLFLOW_BACKEND_STORE_URI": uri}  # it may hold a password, and everybody can list commands
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C is for us, who end the server without its traceback.
        server = subprocess.Popen(
            command, env={**os.environ, **SWITCHES, **store}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(server, address, log)
            yield server
        finally:
            _end(server)


def check_port(port: int) -> int:
    """The port, or for 0 one that is free. Raises ConfigError if it cannot be had."""
    require(0 <= port < 1 << 16, "--port", "must be a number from 0 (any that is free) to 65535", port)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(f"--port: {port} cannot be had ({why}); --port 0 takes one that is free") from error
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urlopen(f"{address}/health", timeout=2).close()
            return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    said = [line for line in lines if "Error" in line or "Exception" in line][-1:] or lines[-1:]
    raise ConfigError(f"ui: MLflow's server did not start: {' '.join(said)}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started, however it takes that."""
    _signal(server, signal.SIGTERM)
    try:
        server.wait(END)
    except subprocess.TimeoutExpired:
        pass
    _signal(server, signal.SIGKILL)
    server.wait()


def _signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        pass


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
