"""What PostgreSQL knows of a study, read beside whoever holds it: nothing is taken hold of, and nothing written."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fanin import spool
from fanin.folders import Folder
from fanin.shared.connection import connect, place_of, translated
from fanin.shared.copies import SHIPPED, SPOOL
from fanin.shared.exchange import mark_of
from fanin.shared.tables import PRESENT, check

if TYPE_CHECKING:
    from psycopg import Connection

END = 1 << 13  # bytes of a spool's end, which hold the last record of one that is done: a few hundred
LAST = """
select file, substring(data from greatest(1, length(data) + 1 - %s)) from fanin_piece join (
    select study, file, max(start) as start from fanin_piece where study = %s and file like 'runs/%%/spool.jsonl'
    group by study, file
) as last using (study, file, start)
"""
OWNED = "select generation from fanin_study where study = %s"
DIGEST = "select md5(string_agg(data, ''::bytea order by start)) from fanin_piece where study = %s and file = %s"
WHOLE = "select data from fanin_piece where study = %s and file = %s"


@contextmanager
def looking(address: str) -> Iterator["Connection | None"]:
    """A session that only reads; None if nobody has kept a study there yet. Raises ConfigError, TrackingRefused or
    TrackingDown."""
    with connect(address) as connection, translated(place_of(address)):
        (present,) = connection.execute(PRESENT).fetchone() or (False,)
        if present:
            check(connection, place=place_of(address))
        yield connection if present else None


def ended(address: str, study: str) -> frozenset[str]:
    """The keys of the study's runs for which nothing is left to do."""
    with looking(address) as connection:
        pieces = connection.execute(LAST, [END, study], binary=True).fetchall() if connection else []
    return frozenset(Path(file).parts[1] for file, data in pieces if _is_final(bytes(data)))


def is_taken_over(address: str, study: Path) -> bool:
    """Whether somebody else owns the study since a sweep of this folder did."""
    mark = mark_of(study)
    if mark is None:
        return False
    with looking(address) as connection:
        row = connection.execute(OWNED, [study.name]).fetchone() if connection else None
    return row is not None and row[0] != mark["generation"]


def twin(address: str, run: Folder) -> str:
    """MLflow's id of the run, if its study's owner has shipped to the end what is in this folder, byte for byte; else
    empty: it was done again elsewhere, or has not been shipped yet."""
    study, name = run.study.path.name, run.path.relative_to(run.study.path).as_posix()
    with looking(address) as connection:
        if connection is None:
            return ""
        digest = connection.execute(DIGEST, [study, f"{name}/{SPOOL}"]).fetchone()
        shipped = connection.execute(WHOLE, [study, f"{name}/{SHIPPED}"]).fetchone()
    state = json.loads(bytes(shipped[0])) if shipped else {}
    here = run.spool.read_bytes()
    same = digest == (hashlib.md5(here, usedforsecurity=False).hexdigest(),)
    return str(state["run"]) if same and state.get("offset") == len(here) else ""


def _is_final(piece: bytes) -> bool:
    """Whether the last record of a spool says so."""
    record = spool.decode(piece.rstrip(b"\n").rpartition(b"\n")[2]) or {}
    return record.get("kind") == "end" and spool.is_final(record["status"], record.get("reason"))
