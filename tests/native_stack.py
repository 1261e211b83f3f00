"""The services of docker-compose.yml as processes of this machine: the same commands, environment and files.

Only what a container's own network and file system give is replaced: addresses, ports and folders.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from recorded import free_port, healthy, wait_until

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
INHERITED = ("PATH", "LANG", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def import_stack():
    """tools/stack.py as a module: tools/ is no package."""
    spec = importlib.util.spec_from_file_location("stack", ROOT / "tools" / "stack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def postgres_programs():
    """The folder with PostgreSQL's server and client programs, None if they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    folders = [folder for folder in folders if (folder / "postgres").exists() and (folder / "psql").exists()]
    return folders[-1] if folders else None


def interpolate(text, values):
    """Compose's ${NAME:?message}, the only form that docker-compose.yml has."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: values[match[1]], str(text))


def environment(service, values, **replaced):
    """What the service's container would have, and the little a process needs; nothing else of ours."""
    own = {name: interpolate(value, values) for name, value in SERVICES[service]["environment"].items()}
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | own | replaced


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL cluster of the test's own."""

    programs: Path
    folder: Path
    port: int
    account: dict  # how subprocess runs its programs: PostgreSQL refuses to be root

    @property
    def path(self):
        return f"{self.programs}{os.pathsep}{os.environ['PATH']}"

    def call(self, *command, **options):
        """Run one of PostgreSQL's programs as the superuser, by the socket, as `exec postgres` would."""
        variables = {"PATH": self.path, "PGHOST": str(self.folder), "PGPORT": str(self.port)}
        variables |= options.pop("env", {})
        return subprocess.run(command, env=variables, check=True, cwd=self.folder, **self.account, **options)

    def ask(self, query, *, database="mlflow", user="mlflow", password):
        """The lines of the answer, by TCP and with a password. Raises RuntimeError with what psql says."""
        variables = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGPASSWORD": password}
        command = [self.programs / "psql", "-U", user, "-d", database, "-XAtc", query]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.splitlines()


def unprivileged():
    """Options of subprocess that leave root behind."""
    if os.geteuid():
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def postgres(programs, secrets):
    """The service `postgres`: initialised as its image does it, with the script that the service mounts."""
    account = unprivileged()
    with tempfile.TemporaryDirectory(prefix="fanin-pg-") as name:  # a short path: it holds a socket
        folder = Path(name)
        if account:
            os.chown(folder, account["user"], account["group"])
        cluster = Cluster(programs, folder, free_port(), account)
        variables = environment("postgres", secrets, PATH=cluster.path)
        initdb = ["initdb", "--username=postgres", "--auth-local=trust", "--no-sync", "--no-instructions"]
        initdb += variables["POSTGRES_INITDB_ARGS"].split()
        with (folder / "log").open("w") as log:
            cluster.call(*initdb, f"--pgdata={folder}/data", stdout=log)
            command = [interpolate(word, secrets) for word in SERVICES["postgres"]["command"]]
            places = ["-D", f"{folder}/data", "-p", str(cluster.port), "-k", str(folder), "-h", "127.0.0.1"]
            server = subprocess.Popen(
                [*command, *places, "-F"], env=variables, stdout=log, stderr=log, cwd=folder, **account
            )
            try:
                ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(cluster.port)]
                wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, seconds=60)
                script = (ROOT / "deploy" / "databases.sql").read_text()
                cluster.call(
                    *("psql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qX"),
                    env={name: secrets[name] for name in secrets if name.endswith("_DB_PASSWORD")},
                    input=script,
                    text=True,
                )
                yield cluster
            finally:
                server.send_signal(2)  # fast: does not wait for clients
                server.wait(60)


@contextmanager
def mlflow_server(cluster, values, artifacts, *, log):
    """The service `mlflow`, healthy by its own health check; yields its URI."""
    port = int(values["FANIN_PORT"])
    variables = environment(
        "mlflow",
        values,
        HOME=str(artifacts),
        PGHOST="127.0.0.1",
        PGPORT=str(cluster.port),
        MLFLOW_HOST="127.0.0.1",
        MLFLOW_PORT=str(port),
        MLFLOW_ARTIFACTS_DESTINATION=str(artifacts),
        MLFLOW_AUTH_CONFIG_PATH=str(ROOT / "deploy" / "auth.ini"),
    )
    command = SERVICES["mlflow"]["command"]
    assert command[0] == "mlflow"
    server = subprocess.Popen([sys.executable, "-m", *command], env=variables, cwd=artifacts, stdout=log, stderr=log)
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_until(lambda: healthy(uri) or server.poll() is not None, seconds=240)
        check = SERVICES["mlflow"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "python"]
        subprocess.run([sys.executable, *check[2:]], env=variables, check=True, timeout=30)
        yield uri
    finally:
        server.terminate()
        server.wait(60)
