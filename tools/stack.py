"""The team's server of docker-compose.yml: `make up`, `make down`, `make backup`, `make restore FROM=...`.

`up` first makes what Compose needs and .env does not have: a random value for every secret, and the settings
below. .env is readable by its owner only and is not in git; what it has is never changed. A backup is a
folder with a dump of each database and an archive of the artifacts; it is complete when it has its name.

Standard library only: this runs before anything is installed.
"""

import argparse
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ENV = Path(".env")
SECRETS = (
    *("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "OPTUNA_DB_PASSWORD", "READER_DB_PASSWORD"),
    *("MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"),
)
SETTINGS = {
    "FANIN_PORT": "5000",  # on this machine's loopback
    "FANIN_DASHBOARD_PORT": "8080",
    "FANIN_HOST": "localhost",  # the name in a browser's address bar, behind your TLS proxy
}
DATABASES = ("mlflow", "mlflow_auth", "optuna")
COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))  # or podman's
EVERY = ("--profile", "dashboard")  # what was started by a profile is stopped, too
ARCHIVE = "artifacts.tar"

WELCOME = """\
MLflow is on http://127.0.0.1:{port}: user admin, password MLFLOW_ADMIN_PASSWORD in .env. For fanin:
    export MLFLOW_TRACKING_URI=http://127.0.0.1:{port} MLFLOW_TRACKING_USERNAME=admin
    export MLFLOW_TRACKING_PASSWORD="$(sed -n s/^MLFLOW_ADMIN_PASSWORD=//p .env)"
docs/server.md: accounts for others, access from other machines, backup."""


class StackError(RuntimeError):
    """What the user has to do something about."""


def read_env(path: Path = ENV) -> dict[str, str]:
    """The file's variables; none if it is not there."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", "\n".join(lines), flags=re.MULTILINE))


def complete_env(path: Path = ENV) -> list[str]:
    """Append the variables that the file does not have, and return their names. Nothing else is changed."""
    there = read_env(path)
    # letters and digits only: nothing that a shell, a URL or Compose would read as more than itself
    fresh = {name: secrets.token_hex(24) for name in SECRETS} | SETTINGS
    missing = {name: value for name, value in fresh.items() if name not in there}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        os.fchmod(descriptor, 0o600)
        if missing and there and not path.read_text().endswith("\n"):
            file.write("\n")
        file.writelines(f"{name}={value}\n" for name, value in missing.items())
    return list(missing)


def compose(*arguments: str, source: Path | None = None, target: Path | None = None) -> None:
    """Run Compose, its input from `source` and its output to `target`. Raises StackError if it fails."""
    command = [*COMPOSE, *arguments]
    try:
        with ExitStack() as files:
            stdin = files.enter_context(source.open("rb")) if source else subprocess.DEVNULL
            stdout = files.enter_context(target.open("wb")) if target else None
            subprocess.run(command, stdin=stdin, stdout=stdout, check=True)
    except subprocess.CalledProcessError as error:
        raise StackError(f"`{shlex.join(command)}` failed, see above") from error


def check_compose() -> None:
    """Raise StackError unless there is a Compose to talk to."""
    try:
        found = subprocess.run([*COMPOSE, "version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        found = False
    if not found:
        raise StackError(f"`{shlex.join(COMPOSE)}` does not work here: Docker with Compose 2.24 or newer is needed")


def up(*, profile: str) -> None:
    made = complete_env()
    if made:
        print(f".env: made {', '.join(made)}; keep a copy in a safe place")
    compose(*(("--profile", profile) if profile else ()), "up", "--detach", "--wait")
    print(WELCOME.format(port=read_env()["FANIN_PORT"]))


def down() -> None:
    compose(*EVERY, "down")
    print("stopped; the data are in Docker's volumes fanin_postgres and fanin_artifacts, `make up` goes on")


def backup(folder: Path) -> None:
    """Dump databases first and files last: what a run of the dump names is then in the archive."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, mode=0o700)  # the dumps hold password hashes
    for database in DATABASES:
        dump = ("pg_dump", "--username=postgres", "--format=custom", "--create", database)
        compose("exec", "-T", "postgres", *dump, target=part / f"{database}.dump")
    compose("exec", "-T", "mlflow", "tar", "-C", "/artifacts", "-cf", "-", ".", target=part / ARCHIVE)
    part.rename(folder)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def restore(folder: Path) -> None:
    """Put the databases back as they were; files that were added since stay, and nothing names them."""
    missing = [name for name in files_of_a_backup() if not (folder / name).is_file()]
    if missing:
        raise StackError(f"FROM={folder} is not a complete backup, it lacks {', '.join(missing)}")
    complete_env()
    compose("up", "--detach", "--wait", "postgres")
    compose(*EVERY, "stop", "mlflow", "optuna-dashboard")
    put = ("pg_restore", "--username=postgres", "--dbname=postgres", "--clean", "--if-exists", "--create")
    for database in DATABASES:
        source = folder / f"{database}.dump"
        compose("exec", "-T", "postgres", *put, "--exit-on-error", source=source)
    compose("run", "--rm", "-T", "mlflow", "tar", "-C", "/artifacts", "-xf", "-", source=folder / ARCHIVE)
    compose("up", "--detach", "--wait")
    print(f"restored from {folder}, with the accounts and passwords of then")


def files_of_a_backup() -> list[str]:
    return [*(f"{database}.dump" for database in DATABASES), ARCHIVE]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["up", "down", "backup", "restore"])
    parser.add_argument("--profile", default="", help="of up: dashboard")
    parser.add_argument("--from", type=Path, dest="source", help="of restore: a folder that backup made")
    options = parser.parse_args(arguments)
    try:
        check_compose()
        if options.action == "up":
            up(profile=options.profile)
        elif options.action == "down":
            down()
        elif options.action == "backup":
            backup(Path("backups") / time.strftime("%Y%m%d-%H%M%S"))
        elif options.source is None:
            raise StackError("which backup? make restore FROM=backups/...")
        else:
            restore(options.source)
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
