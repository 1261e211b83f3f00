"""Where a study is read from: MLflow's tables where we may and know them, else its server or its client.

The tables are those of MLFLOW_TRACKING_URI, or, beside a server, of a PostgreSQL that FANIN_READ_URI names.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fanin import postgres, sqlite
from fanin.client import Client
from fanin.database import Database, Tables
from fanin.errors import require
from fanin.server import Server
from fanin.tracking import Tracker, sqlite_file

Source = Database | Server | Client
READ_URI = "FANIN_READ_URI"
log = logging.getLogger(__name__)


@contextmanager
def opened(*, project: Path, uri: str | None) -> Iterator[Source]:
    """The fastest exact source of the project's studies, or of those at `uri`. Raises ConfigError for a place
    that cannot be right, TrackingDown or TrackingRefused for one that does not answer."""
    tracker = Tracker(project=project, uri=uri)
    found = _tables(tracker, mirror=None if uri else os.environ.get(READ_URI))
    if found is None:
        yield _asked(tracker)
        return
    with found as tables:
        database = Database(tables)
        if not (revision := database.untested):
            yield database
            return
    _tell(
        f"{tracker.address} has tables (revision {revision}) that this fanin does not know: read through MLflow, slower"
    )
    yield _asked(tracker)


def _tables(tracker: Tracker, *, mirror: str | None) -> AbstractContextManager[Tables] | None:
    file = sqlite_file(tracker.uri)
    if file is not None:
        return sqlite.tables(file)
    if tracker.uri.startswith("http") and mirror:
        known = mirror.startswith(("postgresql://", "postgresql+"))
        require(known, READ_URI, "must be a postgresql:// URI", mirror.split("@")[-1])
        return postgres.tables(mirror, key=READ_URI)
    if tracker.uri.startswith("postgresql") and find_spec("psycopg"):
        return postgres.tables(tracker.uri, key="MLFLOW_TRACKING_URI")
    return None


def _asked(tracker: Tracker) -> Server | Client:
    return Server(tracker) if tracker.uri.startswith("http") else Client(tracker)


@cache
def _tell(notice: str) -> None:
    """Once."""
    log.warning(notice)
