"""MLflow's tables in a SQLite file. Reading never locks out the writer for longer than a query."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fanin.errors import ConfigError
from fanin.history import Columns, numbered
from fanin.tracking import TrackingDown

CACHE = 200_000  # KiB, at most
CHUNK = 10_000  # rows that are in memory as Python objects at a time
# The index is named because SQLite, which has no statistics, may choose to read every run's point of a metric.
POINTS = """
select m.run_uuid, m.key, m.step, case when m.is_nan then null else m.value end, m.timestamp
from json_each(:runs) r cross join metrics m indexed by index_metrics_run_uuid_key_step
on m.run_uuid = r.value and m.key in (select value from json_each(:keys))
"""


class SQLiteTables:
    """The tables as of the first query."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def rows(self, query: str, **parameters: object) -> list[tuple]:
        return self._execute(query, parameters).fetchall()

    def each(self, name: str) -> str:
        return f"(select value from json_each(:{name}))"

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> Iterator[Columns]:
        run_number = {run: number for number, run in enumerate(runs)}
        key_number = {key: number for number, key in enumerate(keys)}
        cursor = self._execute(POINTS, {"runs": [*runs], "keys": [*keys]})
        while rows := cursor.fetchmany(CHUNK):
            yield numbered(rows, run_number, key_number)

    def _execute(self, query: str, parameters: dict[str, object]) -> sqlite3.Cursor:
        lists = {name: json.dumps(value) for name, value in parameters.items() if isinstance(value, list)}
        return self._connection.execute(query, parameters | lists)


@contextmanager
def tables(file: Path) -> Iterator[SQLiteTables]:
    """The tables in a file. Raises ConfigError if it is not there, or has none; TrackingDown if it is locked."""
    if not file.exists():
        raise ConfigError(f"there is no tracking database {file}; `fanin sweep` makes one")
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=20, isolation_level=None)
    try:
        connection.execute(f"pragma cache_size = -{CACHE}")  # an index leads all over the file: a quarter of the time
        connection.execute("begin")  # all queries see the same runs
        yield SQLiteTables(connection)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TrackingDown(f"{file}: {error}") from error
        raise ConfigError(f"{file}: cannot be read as an MLflow database: {error}") from error
    finally:
        connection.close()
