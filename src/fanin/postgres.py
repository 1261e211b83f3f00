"""MLflow's tables in PostgreSQL, with the rights of a role that may only read them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy

from fanin.errors import ConfigError
from fanin.history import Columns
from fanin.tracking import TrackingDown, TrackingRefused, without_secrets

if TYPE_CHECKING:
    from psycopg import Connection

POINTS = """
copy (
    select (r.number - 1)::int4, (k.number - 1)::int4, m.step,
        case when m.is_nan then 'NaN'::float8 else m.value end, m.timestamp
    from metrics m
    join unnest(%(runs)s::text[]) with ordinality as r(name, number) on m.run_uuid = r.name
    join unnest(%(keys)s::text[]) with ordinality as k(name, number) on m.key = k.name
) to stdout (format binary)
"""
# A row of PostgreSQL's binary copy format: the number of fields, then each field behind its length. All fields
# of ours are of fixed width, so that the whole answer is one array.
ROW = numpy.dtype(
    [
        ("fields", ">i2"),
        *(("width_run", ">i4"), ("run", ">i4"), ("width_key", ">i4"), ("key", ">i4")),
        *(("width_step", ">i4"), ("step", ">i8"), ("width_value", ">i4"), ("value", ">f8")),
        *(("width_time", ">i4"), ("time", ">i8")),
    ]
)
HEAD = 19  # bytes before the first row, of which the first 11 are a signature
END = 2  # bytes after the last


class PostgresTables:
    """The tables as of the first query."""

    def __init__(self, connection: "Connection"):
        self._connection = connection

    def rows(self, query: str, **parameters: object) -> list[tuple]:
        named = re.sub(r"(?<!:):(\w+)", r"%(\1)s", query)
        return self._connection.execute(named.encode(), parameters).fetchall()

    def each(self, name: str) -> str:
        return f"(select unnest(:{name}::text[]))"

    def points(self, runs: Sequence[str], keys: Sequence[str]) -> Iterator[Columns]:
        with self._connection.cursor().copy(POINTS, {"runs": [*runs], "keys": [*keys]}) as copy:
            answer = b"".join(copy)
        rows = numpy.frombuffer(answer[HEAD : len(answer) - END], dtype=ROW)
        yield rows["run"], rows["key"], rows["step"], rows["value"], rows["time"]


@contextmanager
def tables(uri: str, *, key: str) -> Iterator[PostgresTables]:
    """The tables of the database at a postgresql:// or postgresql+psycopg:// `uri`; `key` is the setting it is from.

    Raises ConfigError without the driver or the tables, TrackingRefused for a wrong password or a role that may
    not read them, TrackingDown if nobody answers.
    """
    try:
        import psycopg
    except ImportError as error:
        raise ConfigError(f"{key}: reading PostgreSQL needs psycopg: pip install 'fanin[server]'") from error
    place = without_secrets(uri)
    address = re.sub(r"^postgresql\+\w+:", "postgresql:", uri)
    try:
        with psycopg.connect(address, connect_timeout=10, application_name="fanin") as connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # all queries see the same runs
            yield PostgresTables(connection)
    except psycopg.errors.UndefinedTable as error:
        raise ConfigError(f"{key}: there are no tables of MLflow at {place}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise TrackingRefused(f"{key}: {place}: this role may not read MLflow's tables: {error}") from error
    except psycopg.OperationalError as error:
        message = f"{key}: {place}: {str(error).strip().splitlines()[0]}"
        raise (TrackingRefused if _is_refusal(message) else TrackingDown)(message) from error


def _is_refusal(message: str) -> bool:
    """The server answered, and not that it is just starting or stopping."""
    return "FATAL" in message and "the database system is" not in message
