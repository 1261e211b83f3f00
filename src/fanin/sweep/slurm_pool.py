"""Workers in Slurm jobs, submitted by submitit: one job is one worker, which connects to the coordinator.

The jobs see the project folder under the same path (submitit needs that, too), so they write the runs' spools and
read the data themselves. A job that ends (its time is up, its node fails, it is preempted) is a dead worker: its
run goes on in another job from the last checkpoint, and a new job is submitted in its place.

The coordinator listens on this machine for as long as the sweep lasts; whoever connects must prove to know a
secret that lies in the folder of the jobs for the user alone. The only module that imports submitit, which the extra
`fanin[slurm]` brings.
"""

import contextlib
import os
import queue
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge, wait
from pathlib import Path
from typing import Any

import submitit

from fanin.errors import ConfigError, unknown
from fanin.folders import MEMORY
from fanin.sweep.piped import Piped
from fanin.sweep.pool import Event
from fanin.sweep.slurm_worker import join

EXECUTORS = ("slurm", "local")  # of submitit
LOOK = 5.0  # seconds between two looks at the jobs that have not connected yet
GRACE = 5.0  # seconds an idle worker gets to leave
AGAIN = 0.2  # seconds until the next try to take a connection, after one that failed
GREETING = 10.0  # seconds for who connects to say who it is
LOST = 3  # jobs that may end without having connected, in a row
NAMES = {"partition": "slurm_partition", "account": "slurm_account"}


@dataclass(eq=False, kw_only=True)
class SlurmWorker(Piped):
    """The coordinator's handle of one job, which has no connection until it runs."""

    job: Any

    def kill(self, cause: str) -> None:
        self.ended = cause
        self.job.cancel()

    def cause_of_death(self) -> str:
        return self.ended or f"gone with its job {self.job.job_id} (now {self.job.state}; {self.job.paths.stderr})"


class SlurmPool:
    """A Pool (pool.py) of `size` jobs of `executor`."""

    def __init__(
        self, executor: Any, task: str, *, arguments: Mapping[str, Any], size: int, folder: Path, host: str
    ) -> None:
        self.size = size
        self.workers: list[SlurmWorker] = []
        self._executor, self._task, self._arguments = executor, task, dict(arguments)
        key = secrets.token_bytes(32)
        descriptor, path = tempfile.mkstemp(prefix="secret-", dir=folder)  # each sweep of a project has its own
        self._secret = Path(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
        self._key = key
        self._listener = Listener((host, 0), backlog=128)
        self._closed = False
        self._joined: queue.SimpleQueue[tuple[int, int, Connection]] = queue.SimpleQueue()
        self._bell, self._ring = Pipe(duplex=False)
        self._looked, self._lost = time.monotonic(), 0
        threading.Thread(target=self._accept, daemon=True, name="fanin-slurm").start()

    def fill(self, wanted: int) -> None:
        """All of them at once: the queue may let them wait."""
        taken = {worker.slot for worker in self.workers}
        for slot in sorted(set(range(self.size)) - taken):
            job = self._executor.submit(join, self._listener.address, self._secret, slot, self._task, self._arguments)
            self.workers.append(SlurmWorker(slot=slot, job=job))

    def free(self) -> list[SlurmWorker]:
        return [worker for worker in self.workers if worker.free and worker.connection and not worker.ended]

    def busy(self) -> list[SlurmWorker]:
        return [worker for worker in self.workers if not worker.free]

    def wait(self, timeout: float) -> list[Event]:
        connected = {worker.connection: worker for worker in self.workers if worker.connection}
        ready = wait([*connected, self._bell], timeout)
        events = [event for one in ready if one in connected for event in self._collect(connected[one])]
        if self._bell in ready:
            self._bell.recv_bytes()
            self._welcome(*self._joined.get())
        return events + list(self._look())

    def dismiss(self, worker: SlurmWorker) -> None:
        worker.ended = "dismissed"
        worker.leave()

    def close(self) -> None:
        """End all jobs: idle workers are asked to leave, and their jobs end with them; the others are cancelled."""
        for worker in self.workers:
            if worker in self.free():
                worker.leave()
            else:
                worker.job.cancel()
        deadline = time.monotonic() + GRACE
        left = {worker.connection: worker for worker in self.free() if worker.connection}
        while left and time.monotonic() < deadline:
            gone = wait(list(left), 0.1)
            left = {connection: worker for connection, worker in left.items() if connection not in gone}
        for worker in left.values():
            worker.job.cancel()
        for worker in self.workers:
            if worker.connection:
                worker.connection.close()
            while self._executor.cluster == "local" and not worker.job.done() and time.monotonic() < deadline + GRACE:
                time.sleep(0.02)  # its process is a child of ours, and must not stay behind as a zombie
        self.workers.clear()
        self._closed = True
        for end in (self._listener, self._bell, self._ring):
            end.close()
        self._secret.unlink(missing_ok=True)

    def _collect(self, worker: SlurmWorker) -> Iterator[Event]:
        assert worker.connection
        try:
            while worker.connection.poll():
                kind, payload = worker.connection.recv()
                worker.heard = time.monotonic()
                yield Event(worker, kind, payload)
        except (EOFError, OSError):
            worker.connection.close()
            yield self._bury(worker)

    def _bury(self, worker: SlurmWorker) -> Event:
        self.workers.remove(worker)
        return Event(worker, "died", worker.cause_of_death())

    def _look(self) -> Iterator[Event]:
        """Jobs that end without ever having connected. Raises ConfigError when it is always so."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for worker in [worker for worker in self.workers if not worker.connection and worker.job.done()]:
            self._lost += 1
            if self._lost > LOST:
                raise ConfigError(
                    f"hardware.cluster: {self._lost} jobs ended before they reached this machine at "
                    f"{self._listener.address}; the last one's words are in {worker.job.paths.stderr}"
                )
            yield self._bury(worker)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:  # the listener was closed, or this process has too many files open just now
                time.sleep(AGAIN)
                continue
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: Connection) -> None:
        """Both sides prove that they know the secret. On a thread of its own: whoever connects may keep silent."""
        patience = threading.Timer(GREETING, hang_up, [connection])
        patience.start()
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            slot, _, pid = connection.recv()
        except (AuthenticationError, EOFError, OSError):  # a stranger, or gone in the middle of its greeting
            patience.cancel()
            connection.close()
            return
        patience.cancel()
        self._joined.put((slot, pid, connection))
        with contextlib.suppress(OSError):  # the pool is closed
            self._ring.send_bytes(b"!")

    def _welcome(self, slot: int, pid: int, connection: Connection) -> None:
        waiting = [worker for worker in self.workers if worker.slot == slot and not worker.connection]
        if waiting:
            waiting[0].connection, self._lost = connection, 0
        else:
            connection.close()  # of a job that was given up


def hang_up(connection: Connection) -> None:
    """End a connection that another thread is waiting for: it hears that nobody is there."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cluster(hardware: Mapping[str, Any], *, runs: int, task: str, arguments: Mapping[str, Any]) -> Iterator[SlurmPool]:
    """Submit jobs, and have their workers until the end. Raises ConfigError."""
    wanted = hardware["workers"]
    if wanted == "auto":
        raise ConfigError("hardware.workers: must be the number of jobs that Slurm is to run at a time, got 'auto'")
    folder = Path.cwd() / MEMORY / "jobs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    executor = make_executor(hardware, folder)
    host = "127.0.0.1" if executor.cluster == "local" else socket.getfqdn()
    pool = SlurmPool(executor, task, arguments=arguments, size=min(wanted, runs), folder=folder, host=host)
    print(f"  {pool.size} jobs by {executor.cluster}; what they print is in {os.path.relpath(folder)}")
    try:
        yield pool
    finally:
        pool.close()


def make_executor(hardware: Mapping[str, Any], folder: Path) -> Any:
    """submitit's executor with the resources of one worker. Raises ConfigError."""
    options = hardware["slurm"]
    kind = options["executor"]
    if kind is not None and kind not in EXECUTORS:
        raise unknown("hardware.slurm.executor", kind, EXECUTORS)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=kind)
        gpus = hardware["gpus_per_run"] if hardware["device"] == "cuda" else 0
        executor.update_parameters(
            name="fanin",
            timeout_min=options["minutes"],
            mem_gb=options["memory"],
            cpus_per_task=hardware["threads"],
            gpus_per_node=max(1, int(gpus)) if gpus else 0,
            slurm_additional_parameters=dict(options["more"]),
            **{name: options[key] for key, name in NAMES.items() if options[key] is not None},
        )
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise ConfigError(f"hardware.slurm: {error}") from error
    return executor
