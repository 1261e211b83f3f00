"""A tracking store is opened: MLflow's settings, its client, and the SQLite file that only one process may make."""

import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fanin.lock import exclusive
from fanin.tracking.address import sqlite_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Whoever ships retries with backoff; MLflow's own retries would hold a shut-down up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def open_client(uri: str, *, artifacts: Path) -> "MlflowClient":
    """MLflow's client. Two processes creating one SQLite store at once break it for good: one by one.

    `artifacts`: the folder for the files of runs outside any experiment, if the store is made now.
    """
    configure()
    from mlflow.tracking import MlflowClient
    from mlflow.utils import request_utils

    from fanin.connection import hasten

    hasten(request_utils)
    database = sqlite_file(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(database.with_name(database.name + ".lock")):
        if not database.exists():
            _create(database, artifacts=artifacts)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer never wait for each other
    return client


def configure() -> None:
    """Before MLflow is imported, which reads some of these then. What the user has set stays."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    for noisy in ("alembic", "mlflow.store.db.utils"):  # what fails is raised, and reported by whoever ships
        if logging.getLogger(noisy).level != logging.CRITICAL:  # to set it empties the caches of all loggers
            logging.getLogger(noisy).setLevel(logging.CRITICAL)


def _create(database: Path, *, artifacts: Path) -> None:
    """Make MLflow's SQLite file under another name, and give it its own when it is whole.

    MLflow takes dozens of steps, over seconds; a file that was left half-way (Ctrl-C in the first moments of
    the first sweep) could never be opened again.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = database.with_name(f"{database.name}.partial")
    for left in database.parent.glob(f"{partial.name}*"):  # with its journal, which would be played into ours
        left.unlink()
    SqlAlchemyStore(f"sqlite:///{partial}", artifacts.as_uri()).engine.dispose()
    for end in ("-wal", "-shm", "-journal"):  # of a database that was removed: SQLite would play it into this one
        database.with_name(database.name + end).unlink(missing_ok=True)
    os.replace(partial, database)


def settle(database: Path) -> None:
    """Bring what SQLite's write-ahead log holds into the database file: a copy of that file alone then has it
    all. Somebody else who is writing right now will do it."""
    if database.exists():
        with closing(sqlite3.connect(database, timeout=0.5)) as connection, suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
