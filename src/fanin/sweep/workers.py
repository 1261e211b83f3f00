"""Worker processes on this machine: cheap to start, watched, and unable to outlive their coordinator.

A fork server that has imported the task's module (torch included) gives a new worker in about 10 ms. A worker
talks to the coordinator over one pipe; whatever kills either side closes it:

    coordinator -> worker   ("do", kind, payload)   ("reply", value)   ("stop", reason)   ("leave",)
    worker -> coordinator   ("record", payload)     ("done", result)   ("failed", Failure)

The same protocol serves training runs, the check of planned configurations, and functions of foreign Hydra
apps.

What a busy worker sends is short (a record has only what the coordinator looks at), so that it passes the
pipe in one piece: a worker that froze half-way through a message would freeze its reader. channel.py has the
worker's side.
"""

import multiprocessing
import os
import signal
import sys
import time
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from fanin.sweep.channel import SHIELDED, serve
from fanin.sweep.piped import Piped
from fanin.sweep.pool import Event

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PAUSES = tuple(0.01 * 2**k for k in range(8))  # seconds, between tries to start a worker while the fork server dies


@dataclass(eq=False, kw_only=True)
class Worker(Piped):
    """The coordinator's handle of one worker process."""

    process: Any
    connection: Connection

    def kill(self, cause: str) -> None:
        self.ended = cause
        self.process.kill()


class Pool:
    """`size` workers, restarted when they die. `task` is the dotted path of a callable that makes the
    worker's handler, `handler(kind, payload, channel)`; `environments` gives each slot its own variables
    (devices)."""

    def __init__(
        self,
        task: str,
        *,
        arguments: Mapping[str, Any],
        size: int,
        threads: int,
        environments: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.task, self.arguments, self.size = task, dict(arguments), size
        self.environments: Sequence[Mapping[str, str]] = list(environments) or [{}]
        self.workers: list[Worker] = []
        weakref.finalize(self, _kill_all, self.workers)  # also at exit, should nobody have closed the pool
        self._context = warm_up(task.partition(":")[0], threads=threads)

    def fill(self, wanted: int) -> None:
        """Have at least min(`wanted`, size) workers."""
        taken = {worker.slot for worker in self.workers}
        for slot in [s for s in range(self.size) if s not in taken][: max(0, min(wanted, self.size) - len(taken))]:
            self.workers.append(self._start(slot))

    def free(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.free and not worker.ended]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.free]

    def wait(self, timeout: float) -> list[Event]:
        """Events of the next `timeout` seconds, at once when there are any."""
        sources: dict[Any, Worker] = {worker.connection: worker for worker in self.workers}
        sources |= {worker.process.sentinel: worker for worker in self.workers}
        ready = {id(sources[s]): sources[s] for s in wait(list(sources), timeout)}
        events = []
        for worker in sorted(ready.values(), key=lambda w: w.slot):
            events += list(self._collect(worker))
        return events

    def dismiss(self, worker: Worker) -> None:
        """End a free worker; the next one starts afresh in its place."""
        worker.ended = "dismissed"
        worker.leave()

    def close(self, grace: float = 1.0) -> None:
        """End all workers: the busy ones, and those that do not leave within `grace` seconds, are killed."""
        for worker in self.workers:
            worker.leave()
            if not worker.free:
                worker.kill("not needed any more")
        deadline = time.monotonic() + grace
        while self.workers:
            _bury(self.workers[-1], grace=max(0.0, deadline - time.monotonic()))
            self.workers.pop()

    def _start(self, slot: int) -> Worker:
        for pause in PAUSES:
            try:
                return self._launch(slot)
            except (EOFError, OSError):
                # The fork server died just now. It listens no more, but is replaced only once it has an exit status:
                # that may take a while.
                time.sleep(pause)
        return self._launch(slot)

    def _launch(self, slot: int) -> Worker:
        start_fork_server()
        environment = dict(self.environments[slot % len(self.environments)])
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve,
            args=(theirs, self.task, self.arguments, environment),
            name=f"fanin-worker-{slot}",
            daemon=False,  # a daemon may have no children, and a data loader has some
        )
        try:
            with _no_main_module():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Worker(slot=slot, process=process, connection=ours)

    def _collect(self, worker: Worker) -> Iterator[Event]:
        dead = worker.process.exitcode is not None
        while worker.connection.poll():
            try:
                kind, payload = worker.connection.recv()
            except (EOFError, OSError):
                dead = True
                break
            worker.heard = time.monotonic()
            yield Event(worker, kind, payload)
        if dead:
            self.workers.remove(worker)
            yield Event(worker, "died", _bury(worker, grace=2.0))


def _bury(worker: Worker, *, grace: float) -> str:
    """Wait for a worker's end, after `grace` seconds by force, and let go of it. Returns the cause in
    words."""
    worker.process.join(grace)
    if worker.process.is_alive():
        worker.kill(worker.ended or "neither worked nor left")
        worker.process.join()
    cause = worker.ended or cause_of_death(worker.process.exitcode)
    worker.connection.close()
    worker.process.close()
    return cause


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.kill()


def cause_of_death(exitcode: int | None) -> str:
    """An exit code in words: signals by name, with their usual reason."""
    if exitcode is None or exitcode == 255:
        return "vanished together with its fork server"
    if exitcode >= 0:
        return f"left with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    reasons = {
        "SIGKILL": " (out of memory, or killed by hand)",
        "SIGSEGV": " (crash in native code)",
        "SIGABRT": " (crash in native code)",
        "SIGBUS": " (crash in native code, or no space left for shared memory)",
        "SIGILL": " (a processor instruction this machine lacks)",
        "SIGFPE": " (arithmetic crash in native code)",
    }
    return f"killed by {name}{reasons.get(name, '')}"


def warm_up(module: str, *, threads: int) -> Any:
    """Start the fork server in the background, with `module` imported and `threads` per worker; returns its
    multiprocessing context. Idempotent; the first call decides the module."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    start_fork_server()
    return context


def start_fork_server() -> None:
    """Unless it runs. SIGINT and SIGTERM, which reach a whole process group, are blocked in it from its first
    moment: it ends with its last client, and workers must be able to finish."""
    resource_tracker.ensure_running()  # would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        with _no_main_module():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """A worker must not import the program's main module again: it costs time, and a script without an
    `if __name__ == "__main__"` guard would run in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
