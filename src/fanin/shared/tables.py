"""The tables in PostgreSQL. They lie in the database `optuna`, beside Optuna's own, which have other names."""

from typing import TYPE_CHECKING

from fanin.errors import ConfigError
from fanin.shared.connection import KEY

if TYPE_CHECKING:
    from psycopg import Connection

VERSION = 1  # of the tables and of what is in the files; another one is another fanin's
MAKE = """
select pg_advisory_xact_lock(hashtextextended('fanin tables', 0));
create table if not exists fanin_version (version integer primary key);
insert into fanin_version select {version} where not exists (select from fanin_version);
create table if not exists fanin_study (
    study text primary key,
    generation bigint not null,     -- how often the study was taken hold of; each write names the one it is under
    holder text not null,           -- who did so last, and
    since timestamptz not null default now()
);
create table if not exists fanin_piece (
    study text not null references fanin_study on update cascade on delete cascade,
    file text not null,             -- a path in the study's folder
    start bigint not null,          -- where in the file the piece begins, in bytes
    data bytea not null,
    primary key (study, file, start)
);
"""
PRESENT = "select to_regclass('fanin_piece') is not null"


def prepare(connection: "Connection", *, place: str) -> None:
    """Make the tables where there are none, and check them."""
    (present,) = connection.execute(PRESENT).fetchone() or (False,)
    if not present:
        with connection.transaction():  # two may do so at once: the lock lets one wait
            connection.execute(MAKE.format(version=VERSION).encode())
    check(connection, place=place)


def check(connection: "Connection", *, place: str) -> None:
    """Raises ConfigError unless the tables are of this version of fanin."""
    found = [version for (version,) in connection.execute("select version from fanin_version")]
    if found != [VERSION]:
        theirs = ", ".join(map(str, found)) or "none"
        raise ConfigError(
            f"{KEY}: {place} holds studies of another version of fanin (state {theirs}, this one writes {VERSION}): "
            "use one version of fanin on all machines, or another database"
        )
