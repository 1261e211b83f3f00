"""A worker in a Slurm job: it connects to its coordinator, and is then a worker like those on one machine."""

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

from fanin.sweep.channel import serve
from fanin.sweep.workers import THREAD_VARIABLES


def join(address: tuple[str, int], secret: Path, slot: int, task: str, arguments: Mapping[str, Any]) -> None:
    """Work for the coordinator at `address` until it lets go. Both sides prove that they know the content of the
    file `secret`, which only their user may read, before either listens to the other."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(arguments.get("threads", 1))
    connection = Client(address, authkey=secret.read_bytes())
    connection.send((slot, os.environ.get("SLURMD_NODENAME", multiprocessing.current_process().name), os.getpid()))
    serve(connection, task, arguments, {})
