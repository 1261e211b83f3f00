"""What the coordinator asks of its workers, wherever they run: in processes here (workers.py), on a Ray cluster
(ray_pool.py) or in Slurm jobs (slurm_pool.py). The messages are those of workers.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Worker(Protocol):
    """One worker: what it works on is `task`, when it was last heard `heard` (monotonic seconds), and `ended`
    the cause to name if we end it ourselves."""

    task: Any
    ended: str | None

    @property
    def slot(self) -> int: ...
    @property
    def heard(self) -> float: ...
    @property
    def free(self) -> bool: ...
    def do(self, kind: str, payload: Any, *, task: Any) -> None: ...
    def reply(self, value: Any) -> None: ...
    def stop(self, reason: str) -> None: ...
    def kill(self, cause: str) -> None: ...


@dataclass(frozen=True)
class Event:
    """What a worker said (`kind` record, done or failed) or suffered (died). `payload` as in the protocol;
    for died: the cause in words."""

    worker: Worker
    kind: str
    payload: Any


class Pool(Protocol):
    """`size` workers, replaced when they die."""

    size: int

    @property
    def workers(self) -> Sequence[Worker]: ...
    def fill(self, wanted: int) -> None:
        """Have at least min(`wanted`, size) workers; they need not be ready yet."""
        ...

    def free(self) -> Sequence[Worker]:
        """Those that are ready for a task."""
        ...

    def busy(self) -> Sequence[Worker]: ...
    def wait(self, timeout: float) -> list[Event]:
        """Events of the next `timeout` seconds, at once when there are any."""
        ...

    def dismiss(self, worker: Any) -> None:
        """End a free worker; the next one starts afresh in its place."""
        ...

    def close(self) -> None: ...
