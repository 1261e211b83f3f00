"""`fanin ui`: MLflow's own UI on this project's tracking store, with a link to each study's page."""

import os
import socket
import sys
from pathlib import Path

from fanin.errors import ConfigError, require
from fanin.query import studies
from fanin.tracking import Tracker, sqlite_file

HOST = "127.0.0.1"


def serve(*, project: Path, port: int) -> int:
    """Start the UI in place of this process; with a server as tracking store, only say where it is."""
    tracker = Tracker(project=project)
    if tracker.uri.startswith("http"):
        print(f"the tracking store is a server with a UI of its own: {tracker.uri}")
        return 0
    file = sqlite_file(tracker.uri)
    require(file is None or file.exists(), "ui", "needs results to show; `fanin sweep initializers` makes some, no", file)
    check_port(port)
    address = f"http://{HOST}:{port}"
    for name in studies(project=project):
        print(f"{name}: {tracker.page(name, server=address)}")
    print(f"starting the MLflow UI on {address} (Ctrl-C ends it)", flush=True)
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["-m", "mlflow", "ui", "--backend-store-uri", tracker.uri, "--host", HOST, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *command, "--workers", "1"], {**os.environ, **environment})


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port: {port} is taken by another program; try --port {port + 1}") from error
