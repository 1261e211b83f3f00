"""The team's server of docker-compose.yml: `make up`, `make down`, `make backup`, `make restore FROM=...`.

`up` first makes what Compose needs and .env does not have: a random value for every secret, and the settings
below. .env is readable by its owner only and is not in git; what it has is never changed. A backup is a
folder with a dump of each database and an archive of the artifacts, wherever the server keeps them; it is
complete when it has its name.

Standard library only: this runs before anything is installed.
"""

import argparse
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ENV = Path(".env")
SECRETS = (
    *("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "OPTUNA_DB_PASSWORD", "READER_DB_PASSWORD"),
    *("MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY", "SWEEPER_PASSWORD"),
    *("S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_RPC_SECRET", "RAY_AUTH_TOKEN"),
)
SETTINGS = {
    "FANIN_PORT": "5000",  # on this machine's loopback
    "FANIN_DASHBOARD_PORT": "8080",
    "FANIN_HOST": "localhost",  # the name in a browser's address bar, behind your TLS proxy
    "FANIN_ARTIFACTS": "/artifacts",  # where the server keeps files: its volume, or s3://bucket
    "FANIN_S3_ENDPOINT": "http://s3:3900",  # of the profile s3, or of your own object store
    "FANIN_S3_REGION": "garage",
    "FANIN_TORCH": "cpu",  # the build in the image of workers: TORCH of `make setup`
    "FANIN_SWEEP": "initializers",  # what the profile workers sweeps: the words after `fanin sweep`
    "FANIN_CORES": "0,1",  # of this machine, for the profile workers
    "FANIN_RAY_WORKERS": "2",  # nodes of two cores each
}
DATABASES = ("mlflow", "mlflow_auth", "optuna")
COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))  # or podman's
PROFILES = ("dashboard", "s3", "workers", "ray")
EVERY = tuple(word for profile in PROFILES for word in ("--profile", profile))  # what a profile started is stopped, too
# MLflow has none for this, and fanin looks each run up by it. `if not exists`: MLflow's own migrations leave it alone.
INDEX = (
    "set client_min_messages = warning; create index if not exists fanin_run on tags (value) where key = 'fanin.run'"
)
BUCKET = "s3://artifacts"  # that the service s3 makes
ARCHIVE = "artifacts.tar"
FILES = ("python", "/etc/mlflow/artifacts.py")  # deploy/artifacts.py, in the server's container

WELCOME = """\
MLflow is on http://127.0.0.1:{port}: user admin, password MLFLOW_ADMIN_PASSWORD in .env. For fanin:
    export MLFLOW_TRACKING_URI=http://127.0.0.1:{port} MLFLOW_TRACKING_USERNAME=admin
    export MLFLOW_TRACKING_PASSWORD="$(sed -n s/^MLFLOW_ADMIN_PASSWORD=//p .env)"
docs/server.md: accounts for others, access from other machines, backup."""
STARTED = {
    "dashboard": "Optuna's dashboard is on http://127.0.0.1:{FANIN_DASHBOARD_PORT}, without accounts.",
    "workers": "`fanin sweep {FANIN_SWEEP}` is running as the user sweeper: docker compose logs --follow sweep",
    "ray": "A sweep on the Ray cluster: docker compose exec ray-head fanin sweep {FANIN_SWEEP} hardware=ray",
}


class StackError(RuntimeError):
    """What the user has to do something about."""


def read_env(path: Path = ENV) -> dict[str, str]:
    """The file's variables; none if it is not there."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", "\n".join(lines), flags=re.MULTILINE))


def complete_env(path: Path = ENV, *, settings: Mapping[str, str] = SETTINGS) -> list[str]:
    """Append the variables that the file does not have, and return their names. Nothing else is changed."""
    there = read_env(path)
    # letters and digits only: nothing that a shell, a URL or Compose would read as more than itself
    fresh = {name: secrets.token_hex(32) for name in SECRETS} | dict(settings)
    fresh["S3_ACCESS_KEY"] = f"GK{secrets.token_hex(16)}"  # the form that Garage gives its keys
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


def read_profiles(text: str) -> set[str]:
    """The profiles that a user named, by commas or spaces. Raises StackError."""
    named = set(text.replace(",", " ").split())
    if unknown := named - {*PROFILES}:
        raise StackError(f"PROFILE={','.join(sorted(unknown))} is none of {', '.join(PROFILES)}")
    return named


def options(profiles: Collection[str], values: Mapping[str, str]) -> list[str]:
    """Compose's options for these profiles, and for the store of ours that .env says the files are in."""
    stored = {"s3"} if uses_own_store(values) else set()
    return [word for profile in sorted({*profiles} | stored) for word in ("--profile", profile)]


def uses_own_store(values: Mapping[str, str]) -> bool:
    own = values["FANIN_S3_ENDPOINT"] == SETTINGS["FANIN_S3_ENDPOINT"]
    return own and values["FANIN_ARTIFACTS"].startswith("s3://")


def up(*, profiles: Collection[str]) -> None:
    """Start the server and the profiles; the sweep last, when its account is there. Raises StackError."""
    first = not read_env()  # a server that is there has its files elsewhere
    made = complete_env(settings=SETTINGS | ({"FANIN_ARTIFACTS": BUCKET} if first and "s3" in profiles else {}))
    if made:
        what = "a random value for every secret" if first else ", ".join(made)
        print(f".env: made {what}; keep a copy in a safe place")
    values = read_env()
    if "s3" in profiles and not uses_own_store(values):
        place = values["FANIN_ARTIFACTS"]
        raise StackError(f"FANIN_ARTIFACTS={place} in .env: files are kept there; docs/server.md says how to move them")
    compose(*options({*profiles} - {"workers"}, values), "up", "--detach", "--wait")
    make_index()
    if {"workers", "ray"} & {*profiles}:
        make_account("sweeper", values["SWEEPER_PASSWORD"], values=values)
    if "workers" in profiles:
        # no --wait: a sweep may end at once, because it is finished
        compose(*options(profiles, values), "up", "--detach", "sweep")
    print(WELCOME.format(port=values["FANIN_PORT"]))
    for profile in sorted({*profiles} & {*STARTED}):
        print(STARTED[profile].format_map(values))


def make_index() -> None:
    """In MLflow's database, whose tables MLflow has made by now. Nothing, if it is there."""
    psql = ("psql", "--username=mlflow", "--dbname=mlflow", "--no-psqlrc", "--quiet", "--command", INDEX)
    compose("exec", "-T", "postgres", *psql)


def make_account(user: str, password: str, *, values: Mapping[str, str]) -> None:
    """A user of the server, unless it is there already. Raises StackError if the server says no."""
    admin = b64encode(f"admin:{values['MLFLOW_ADMIN_PASSWORD']}".encode()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{values['FANIN_PORT']}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": user, "password": password}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {admin}"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        with error:
            if "RESOURCE_ALREADY_EXISTS" not in error.read().decode(errors="replace"):
                way = f"make it yourself, with {user.upper()}_PASSWORD of .env (docs/server.md, Accounts)"
                raise StackError(f"the server did not make the account {user} ({error.code}): {way}") from error
    except OSError as error:
        raise StackError(f"the server does not answer on port {values['FANIN_PORT']}: {error}") from error


def down() -> None:
    compose(*EVERY, "down")
    print("stopped; the data are in Docker's volumes fanin_postgres, fanin_artifacts, fanin_s3 and fanin_project")
    print("`make up` goes on, with the same PROFILE")


def backup(folder: Path) -> None:
    """Dump databases first and files last: what a run of the dump names is then in the archive."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, mode=0o700)  # the dumps hold password hashes
    for database in DATABASES:
        dump = ("pg_dump", "--username=postgres", "--format=custom", "--create", database)
        compose("exec", "-T", "postgres", *dump, target=part / f"{database}.dump")
    compose("exec", "-T", "mlflow", *FILES, "save", target=part / ARCHIVE)
    part.rename(folder)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def check_backup(folder: Path | None) -> None:
    """Raise StackError unless it is the folder of a complete backup."""
    known = sorted(str(one) for one in Path("backups").glob("*") if not missing_from(one))
    newest = known[-1] if known else ""
    if folder is None:
        raise StackError(f"which backup? make restore FROM={newest or 'backups/... (there is none in backups/ yet)'}")
    if not folder.is_dir():
        there = f"the newest in backups/ is {newest}" if newest else "there is none in backups/"
        raise StackError(f"FROM={folder}: there is no such folder; {there}")
    if lacks := missing_from(folder):
        raise StackError(f"FROM={folder} is not a complete backup, it lacks {', '.join(lacks)}")


def missing_from(folder: Path) -> list[str]:
    """What a complete backup has, and this folder has not."""
    return [name for name in files_of_a_backup() if not (folder / name).is_file()]


def restore(folder: Path) -> None:
    """Put the databases back as they were; files that were added since stay, and nothing names them."""
    check_backup(folder)
    complete_env()
    active = options((), read_env())
    compose("up", "--detach", "--wait", "postgres")
    compose(*EVERY, "stop", "mlflow", "optuna-dashboard")
    put = ("pg_restore", "--username=postgres", "--dbname=postgres", "--clean", "--if-exists", "--create")
    for database in DATABASES:
        source = folder / f"{database}.dump"
        compose("exec", "-T", "postgres", *put, "--exit-on-error", source=source)
    compose(*active, "run", "--rm", "-T", "mlflow", *FILES, "load", source=folder / ARCHIVE)
    compose(*active, "up", "--detach", "--wait")
    print(f"restored from {folder}, with the accounts and passwords of then")


def files_of_a_backup() -> list[str]:
    return [*(f"{database}.dump" for database in DATABASES), ARCHIVE]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["up", "down", "backup", "restore"])
    parser.add_argument("--profile", default="", help=f"of up: {', '.join(PROFILES)}, or several with commas")
    parser.add_argument("--from", type=Path, dest="source", help="of restore: a folder that backup made")
    given = parser.parse_args(arguments)
    try:
        profiles = read_profiles(given.profile)
        if given.action == "restore":
            check_backup(given.source)
        check_compose()
        if given.action == "up":
            up(profiles=profiles)
        elif given.action == "down":
            down()
        elif given.action == "backup":
            backup(Path("backups") / time.strftime("%Y%m%d-%H%M%S"))
        else:
            restore(given.source)
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
