"""Who owns a study: one coordinator, on whatever machine.

It holds an advisory lock of its database session, which PostgreSQL drops when the session ends, however it ends.
A lock alone is not enough: a machine that is cut off does not know that it lost it. So each new owner also counts
the study's generation up, and each write (`fence`) is made under the generation of its own hold: after another one
took over, the row is not there any more. A sweep that is refused (another question, say) has counted nothing.
"""

import getpass
import os
import socket
import time
from collections.abc import Collection
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from fanin.errors import ConfigError
from fanin.shipping import StudyBusy, StudyLost

if TYPE_CHECKING:
    from psycopg import Connection

WAIT = 1.0  # s for a session to end that its client has just left
LOCK = "select pg_try_advisory_lock(hashtextextended('fanin study ' || %s, 0))"
WHO = "select generation, holder, to_char(since, 'YYYY-MM-DD HH24:MI TZ') from fanin_study where study = %s"
KNOW = "insert into fanin_study (study, generation, holder) values (%s, 0, %s) on conflict (study) do nothing"
OWN = """
update fanin_study set generation = generation + 1, holder = %s, since = now()
where study = %s and generation = %s returning generation
"""
FENCE = "select from fanin_study where study = %s and generation = %s for share"
TAKEN = "select from fanin_study where study = %s"
ASIDE = "update fanin_study set study = %s where study = %s and generation = %s"
ANEW = "insert into fanin_study (study, generation, holder) values (%s, %s, %s)"


def take(connection: "Connection", study: str) -> int:
    """Keep everybody else off the study; returns its generation so far. Raises ConfigError, naming the owner, if one
    lives."""
    if not _locked(connection, study):
        raise ConfigError(f"study {study!r} is in use by {who(connection, study)}; wait for it, or stop it there")
    connection.execute(KNOW, [study, myself()])
    return int(_row(connection, WHO, study)[0])


def own(connection: "Connection", study: str, generation: int) -> int:
    """Be the owner of the study that was taken; returns the generation from now on. Raises StudyLost if the session
    was lost meanwhile, and the study with it."""
    row = connection.execute(OWN, [myself(), study, generation]).fetchone()
    if row is None:
        raise _lost(connection, study)
    return int(row[0])


def retake(connection: "Connection", study: str, generation: int) -> None:
    """Own the study again after a session was lost. Raises StudyLost if it went to somebody else meanwhile, StudyBusy
    while the other session lives."""
    locked = _locked(connection, study)
    found = connection.execute(WHO, [study]).fetchone()
    if not found or found[0] != generation:
        raise _lost(connection, study)
    if not locked:
        raise StudyBusy(f"study {study!r}: a session of {who(connection, study)} still holds it")


def fence(connection: "Connection", study: str, generation: int) -> None:
    """To be called in the transaction of every write. Raises StudyLost unless the hold is still ours."""
    if connection.execute(FENCE, [study, generation]).fetchone() is None:
        raise _lost(connection, study)


def put_aside(connection: "Connection", study: str, generation: int, *, aside: str, taken: Collection[str] = ()) -> str:
    """Rename what there is of the study that was taken to `aside`, or to aside-2 and so on if there is such a study
    or the name is `taken`; returns the name. Its last owner may still add what it has, and no earlier generation is one
    of the new study."""
    with connection.transaction():
        fence(connection, study, generation)
        names = chain([aside], (f"{aside}-{i}" for i in count(2)))
        free = (name for name in names if name not in taken)
        name = next(name for name in free if connection.execute(TAKEN, [name]).fetchone() is None)
        connection.execute(ASIDE, [name, study, generation])
        connection.execute(ANEW, [study, generation, myself()])
    return name


def who(connection: "Connection", study: str) -> str:
    """The owner, or the last one if nobody holds the study."""
    found = connection.execute(WHO, [study]).fetchone()
    return f"{found[1]}, since {found[2]}" if found else "somebody who put it aside"


def _lost(connection: "Connection", study: str) -> StudyLost:
    return StudyLost(f"study {study!r} was taken over by {who(connection, study)}")


def myself() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def _locked(connection: "Connection", study: str) -> bool:
    """Whether the lock is ours: PostgreSQL may take a moment to end a session, also one of our own, that was left."""
    deadline = time.monotonic() + WAIT
    while not (ours := bool(_row(connection, LOCK, study)[0])) and time.monotonic() < deadline:
        time.sleep(0.1)
    return ours


def _row(connection: "Connection", query: str, *values: object) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return row
