"""A connection to the database that keeps studies, and what can go wrong with one, in fanin's words.

Passwords are never repeated: an address is shown as host, port and database only. PGPASSWORD, PGHOST and the other
variables of libpq and its password file are read as by every PostgreSQL program.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fanin.errors import ConfigError, require
from fanin.tracking import TrackingDown, TrackingRefused

if TYPE_CHECKING:
    from psycopg import Connection

KEY = "tracking.state"
SCHEME = re.compile(r"^postgresql(\+psycopg)?://")
PATIENCE = 5  # s until a server that does not answer counts as down
ANSWER = 30.0  # s until one counts as down that does not answer in a session (watch.py)
# The server must notice within half a minute that we are gone without a word (power, network), for it then gives
# our hold up; and nothing of ours may hang on it for longer.
SESSION = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "statement_timeout": "120s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
}
CLIENT = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}


def place_of(address: str) -> str:
    """Host, port and database of an address. Raises ConfigError for what is none of PostgreSQL's, or without the
    driver."""
    parts = _parts(address)
    host = parts.get("host") or parts.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = parts.get("port") or os.environ.get("PGPORT") or "5432"
    return f"{host}:{port}/{parts.get('dbname') or os.environ.get('PGDATABASE') or parts.get('user') or ''}"


def _parts(address: str) -> dict[str, str]:
    rule = "must be an address like postgresql://optuna@host:5432/optuna"
    scheme = str(address).partition(":")[0] if "://" in str(address) else "something else"
    require(SCHEME.match(str(address)), KEY, rule, scheme)
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        way = "pip install 'fanin[server]'"
        raise ConfigError(f"{KEY}: a study's state in PostgreSQL needs psycopg: {way}") from error
    try:
        return {key: str(value) for key, value in conninfo_to_dict(SCHEME.sub("postgresql://", address)).items()}
    except psycopg.Error:  # its text may have the password
        raise ConfigError(f"{KEY}: {rule}; in it, %20 is a space, %40 an @, %2F a /") from None


def connect(address: str, *, autocommit: bool = True) -> "Connection":
    """A session of its own. Raises ConfigError, TrackingRefused (a wrong password, no such
    database) or TrackingDown."""
    parts = _parts(address)
    import psycopg

    options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    given = {"application_name": "fanin", "connect_timeout": PATIENCE, **CLIENT, **parts}
    given["options"] = f"{parts.get('options', '')} {options}".strip()
    with translated(place_of(address)):
        return psycopg.connect(**given, autocommit=autocommit)  # type: ignore[arg-type]


@contextmanager
def translated(place: str) -> Iterator[None]:
    """What psycopg raises, whatever it is, is raised as one of our errors."""
    import psycopg
    from psycopg import errors

    try:
        yield
    except (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction) as error:
        way = "use the role that owns the database, optuna in docker-compose.yml"
        raise TrackingRefused(f"{KEY}: {place}: {_line(error)}; {way}") from error
    except errors.UndefinedTable as error:
        raise TrackingRefused(f"{KEY}: {place}: there are no studies of fanin") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        # psycopg calls it internal when the server ended a session that was too long idle in a transaction
        line = _line(error)
        refused = "FATAL" in line and "the database system is" not in line and "too many" not in line
        raise (TrackingRefused if refused else TrackingDown)(f"{KEY}: {place}: {line}") from error
    except psycopg.Error as error:
        raise TrackingRefused(f"{KEY}: {place}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What is wrong, without where: the message names that first, once for each address of a host."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^connection (failed|is bad): connection to server .*? failed: ", "", lines[0])
