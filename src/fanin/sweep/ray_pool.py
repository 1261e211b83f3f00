"""Workers on a Ray cluster: an actor each, with its CPUs and its share of GPUs (remote.py is what runs in it).

The cluster is that of RAY_ADDRESS (`auto`: of a `ray start` on this machine), or else one that starts here and
ends with the sweep. fanin must be installed on its nodes; the project's own Python files are sent there. Data are
read on this machine and placed once per node, in Ray's object store. A lost node's workers are reported dead,
their runs go on elsewhere from the last checkpoint that had arrived, and new workers wait for the room they need.

The only module that imports ray, which the extra `fanin[ray]` brings.
"""

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanin.errors import ConfigError, require
from fanin.sweep.display import waiting
from fanin.sweep.pool import Event
from fanin.sweep.remote import Mirror, Remote
from fanin.sweep.workers import THREAD_VARIABLES

# Read by Ray when it is imported. What its daemons print into our terminal goes over pages, in the middle of the
# display; the causes that matter are named by us.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}
for key, value in SETTINGS.items():
    os.environ.setdefault(key, value)
# A cluster of our own listens on every interface, and does what whoever reaches it says, unless it asks for a token.
if not os.environ.get("RAY_ADDRESS") and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray  # noqa: E402
from ray.exceptions import ActorUnavailableError, RayError  # noqa: E402

HEAR = 10.0  # seconds a worker waits for something to say before it answers with nothing
CALLS = 4  # of the coordinator that an actor serves at once: it hears, is replied to and is stopped
KNOCK = 10.0  # seconds for the cluster's head to take a connection
JOIN = 60.0  # seconds for a first node with a CPU to join a head that trains nothing
TAKEN_THERE = ("val", "n_train", "scale")  # of the data group: what a worker makes of one and the same data set
DEEPEST = 3  # folders below the project's in which the user's own modules are looked for


@dataclass(eq=False)
class RayWorker:
    """The coordinator's handle of one actor. It is ready once it has answered for the first time: before, it may
    wait for room on the cluster."""

    slot: int
    actor: Any
    hearing: Any  # the answer we wait for, an ObjectRef
    place: Callable[[Any], Any]  # payload -> where its data are, an ObjectRef
    ready: bool = False
    task: Any = None
    number: int = 0  # of its task: the actor may hear of a stop before it hears of what to do
    heard: float = field(default_factory=time.monotonic)
    ended: str | None = None
    mirror: Mirror | None = None

    @property
    def free(self) -> bool:
        return self.task is None

    def do(self, kind: str, payload: Any, *, task: Any) -> None:
        self.task, self.heard, self.number = task, time.monotonic(), self.number + 1
        self.mirror = Mirror(Path(payload["folder"])) if kind == "run" else None
        files = self.mirror.files() if self.mirror else {}
        self.actor.do.remote(self.number, kind, payload, files, self.place(payload) if kind == "run" else None)

    def reply(self, value: Any) -> None:
        self.actor.reply.remote(value)

    def stop(self, reason: str) -> None:
        self.actor.stop.remote(self.number, reason)

    def kill(self, cause: str) -> None:
        self.ended = cause
        ray.kill(self.actor)

    def hear(self) -> Iterator[Event]:
        """Its messages, once `hearing` is answered; then it is asked again. Raises RayError if it is lost."""
        messages = ray.get(self.hearing)
        self.ready = True
        self.hearing = self.actor.hear.remote(HEAR)
        for kind, payload, files in messages:
            self.heard = time.monotonic()
            if self.mirror:
                self.mirror.apply(files)
            if kind != "record":
                self.release()
            yield Event(self, kind, payload)

    def release(self) -> None:
        """Nobody else writes the run now: its end, if it has none, is ours to write."""
        if self.mirror:
            self.mirror.close()
        self.mirror = None


class RayPool:
    """A Pool (pool.py) of actors with `cpus` cores and `gpus` of a GPU each."""

    def __init__(self, task: str, *, arguments: Mapping[str, Any], size: int, cpus: int, gpus: float) -> None:
        self.size = size
        self.workers: list[RayWorker] = []
        self._task, self._arguments = task, dict(arguments)
        self._placed: dict[str, Any] = {}
        variables = {name: str(cpus) for name in THREAD_VARIABLES}
        self._actor: Any = ray.remote(Remote).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=CALLS,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )

    def fill(self, wanted: int) -> None:
        """All of them at once: it takes seconds, and the cluster starts them side by side."""
        taken = {worker.slot for worker in self.workers}
        for slot in set(range(self.size)) - taken:
            actor = self._actor.remote(self._task, self._arguments)
            self.workers.append(RayWorker(slot, actor, actor.hear.remote(0.0), self._place))

    def free(self) -> list[RayWorker]:
        return [worker for worker in self.workers if worker.free and worker.ready and not worker.ended]

    def busy(self) -> list[RayWorker]:
        return [worker for worker in self.workers if not worker.free]

    def wait(self, timeout: float) -> list[Event]:
        answers = {worker.hearing: worker for worker in self.workers}
        if not answers:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(answers), num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
        return [event for answer in ready for event in self._collect(answers[answer])]

    def dismiss(self, worker: RayWorker) -> None:
        worker.kill("dismissed")

    def close(self) -> None:
        for worker in self.workers:
            worker.kill("not needed any more")
            worker.release()
        self.workers.clear()

    def _collect(self, worker: RayWorker) -> Iterator[Event]:
        try:
            yield from worker.hear()
        except RayError as error:
            self.workers.remove(worker)
            worker.release()
            yield Event(worker, "died", worker.ended or cause_of_loss(error))
        except OSError as error:
            worker.kill(f"ended, since what it records cannot be kept here: {error}")

    def _place(self, payload: Mapping[str, Any]) -> Any:
        """Where the cluster has the data of a run; read here and sent there when first asked for."""
        from fanin.build import load_dataset  # with torch, which the coordinator can do without elsewhere

        config = payload["spec"]["config"]
        key = repr(sorted((name, value) for name, value in config["data"].items() if name not in TAKEN_THERE))
        if key not in self._placed:
            self._placed[key] = ray.put(load_dataset(config))
        return self._placed[key]


def cause_of_loss(error: Exception) -> str:
    """Why an actor is gone, in a few words; Ray's own take a page."""
    if isinstance(error, ActorUnavailableError) or "node" in str(error).partition("Worker exit")[0]:
        return "lost with its node"
    return "killed (out of memory, or by hand), or crashed in native code"


@contextmanager
def cluster(hardware: Mapping[str, Any], *, runs: int, task: str, arguments: Mapping[str, Any]) -> Iterator[RayPool]:
    """Connect to a cluster (or start one here), and have workers there until the end. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="fanin-modules-") as modules:
        gather_modules(Path.cwd(), Path(modules))
        with waiting("connecting to the Ray cluster"):
            connect(Path(modules))
    try:
        cpus, gpus = hardware["threads"], hardware["gpus_per_run"] if hardware["device"] == "cuda" else 0
        room = capacity(cpus=cpus, gpus=gpus)
        wanted = hardware["workers"]
        size = min(room if wanted == "auto" else wanted, runs)
        pool = RayPool(task, arguments=arguments, size=size, cpus=cpus, gpus=gpus)
        print(f"  {size} workers on a Ray cluster that has room for {room}", flush=True)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        ray.shutdown()


def connect(modules: Path) -> None:
    """To RAY_ADDRESS, else to a cluster of our own. Workers can import what is in the folder `modules`. Raises
    ConfigError."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        knock(address)
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            include_dashboard=None if address else False,
            runtime_env={"working_dir": str(modules)},
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(f"hardware.cluster: no Ray cluster answers at RAY_ADDRESS={address}: {first}") from error


def knock(address: str | None) -> None:
    """Raise OSError if nobody listens at host:port: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def gather_modules(project: Path, target: Path) -> None:
    """Copy the user's own Python files: all else in the project folder may be large, and is not needed."""
    (target / "fanin_project.txt").write_text(f"{project}\n")  # Ray takes no empty folder
    for folder, folders, files in os.walk(project):
        place = Path(folder).relative_to(project)
        hidden = [name for name in folders if name.startswith((".", "__")) or len(place.parts) >= DEEPEST]
        folders[:] = [name for name in folders if name not in hidden]
        for name in files:
            if name.endswith(".py"):
                (target / place).mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(folder, name), target / place / name)


def capacity(*, cpus: int, gpus: float) -> int:
    """How many workers the cluster has room for. Raises ConfigError if none."""
    nodes = resources()
    room = sum(_on_node(node, cpus=cpus, gpus=gpus) for node in nodes)
    has = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    rule = f"no node has room for a worker of {cpus} CPUs and {gpus:g} GPUs (the nodes have {has})"
    require(room > 0, "hardware", rule + "; set hardware.threads, hardware.gpus_per_run", f"cluster={len(nodes)} nodes")
    return room


def resources() -> list[Mapping[str, float]]:
    """Of each node. A head that trains nothing answers before the nodes that do have joined it: the first of these is
    waited for."""
    deadline = None
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU") for node in nodes) or (deadline and time.monotonic() > deadline):
            return nodes
        if not deadline:
            deadline = time.monotonic() + JOIN
            print(f"  no node of the Ray cluster has a CPU yet: waiting up to {JOIN:g} s for one to join", flush=True)
        time.sleep(0.5)


def _on_node(node: Mapping[str, float], *, cpus: int, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    have = node.get("GPU", 0)
    by_gpu = int(have * int(1 / gpus + 1e-9)) if gpus <= 1 else int(have // gpus)
    return min(by_cpu, by_gpu)
