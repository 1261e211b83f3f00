"""The services of docker-compose.yml as processes of this machine: the same commands, environment and files.

Only what a container's own network and file system give is replaced: addresses, ports and folders.
"""

import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from recorded import wait_until
from servers import free_port, healthy

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


def program(name):
    """Where a program of this environment is, None if it is not installed."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


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


EVERY = import_stack().EVERY


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


def server_environment(cluster, values, artifacts, **replaced):
    """What the service `mlflow` has; `artifacts` stands for its volume, and an object store is as `values` say."""
    place = values["FANIN_ARTIFACTS"]
    return environment(
        "mlflow",
        values,
        HOME=str(artifacts),
        PGHOST="127.0.0.1",
        PGPORT=str(cluster.port),
        MLFLOW_HOST="127.0.0.1",
        MLFLOW_PORT=values["FANIN_PORT"],
        MLFLOW_ARTIFACTS_DESTINATION=str(artifacts) if place == "/artifacts" else place,
        MLFLOW_AUTH_CONFIG_PATH=str(ROOT / "deploy" / "auth.ini"),
        **replaced,
    )


@contextmanager
def mlflow_server(cluster, values, artifacts, *, log, workers=None):
    """The service `mlflow`, healthy by its own health check; yields its URI. `workers`: other than docker-compose's."""
    replaced = {"MLFLOW_WORKERS": str(workers)} if workers else {}
    variables = server_environment(cluster, values, artifacts, **replaced)
    command = SERVICES["mlflow"]["command"]
    assert command[0] == "mlflow"
    server = subprocess.Popen([sys.executable, "-m", *command], env=variables, cwd=artifacts, stdout=log, stderr=log)
    try:
        uri = f"http://127.0.0.1:{values['FANIN_PORT']}"
        wait_until(lambda: healthy(uri) or server.poll() is not None, seconds=240)
        check = SERVICES["mlflow"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "python"]
        subprocess.run([sys.executable, *check[2:]], env=variables, check=True, timeout=30)
        yield uri
    finally:
        server.terminate()
        server.wait(60)


@dataclass
class Stack:
    """The running services, and what it takes to talk to them."""

    cluster: Cluster
    secrets: dict
    artifacts: Path
    log: Path
    uri: str = ""
    users: dict = field(default_factory=dict)  # name -> password
    running: ExitStack = field(default_factory=ExitStack)
    workers: int | None = None  # of the server, other than docker-compose's

    def start(self):
        log = self.running.enter_context(self.log.open("a"))
        server = mlflow_server(self.cluster, self.secrets, self.artifacts, log=log, workers=self.workers)
        self.uri = self.running.enter_context(server)

    def stop(self):
        self.running.close()

    def request(self, method, path, *, user=None, body=None, headers=None):
        """(status, text) of an answer; redirects are not followed."""
        headers = {"Content-Type": "application/json"} | (headers or {})
        if user:
            name = f"{user}:{self.users[user]}"
            headers["Authorization"] = f"Basic {b64encode(name.encode()).decode()}"
        data = json.dumps(body or {}).encode() if method != "GET" else None
        request = urllib.request.Request(self.uri + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def variables(self, user):
        names = {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": user}
        return names | {"MLFLOW_TRACKING_PASSWORD": self.users[user]}

    def fanin(self, *arguments, user, folder):
        """Run the command as one of the users, in a project folder."""
        return subprocess.run(
            [sys.executable, "-m", "fanin", *arguments],
            env=os.environ | self.variables(user),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def read(self, query, *, database="mlflow"):
        """Ask PostgreSQL as the role that only reads."""
        password = self.secrets["READER_DB_PASSWORD"]
        return self.cluster.ask(query, database=database, user="reader", password=password)

    def add_users(self, *users):
        for user in users:
            self.users[user] = f"{user}'s long word"
            body = {"username": user, "password": self.users[user]}
            status, text = self.request("POST", "/api/2.0/mlflow/users/create", user="admin", body=body)
            assert status == 200, text

    def compose(self, *words, source=None, target=None):
        """Stands for tools/stack.py's: does natively what Compose does in the containers."""
        words = [word for word in words if word not in ("-T", "--rm", *EVERY)]
        if words[0] == "stop":
            self.stop()
        if words[0] not in ("exec", "run"):
            return
        service, command = words[1], words[2:]
        with ExitStack() as files:
            stdin = files.enter_context(source.open("rb")) if source else subprocess.DEVNULL
            stdout = files.enter_context(target.open("wb")) if target else None
            if service == "postgres":
                self.cluster.call(*command, stdin=stdin, stdout=stdout)
            else:
                variables = server_environment(self.cluster, self.secrets, self.artifacts)
                native = [sys.executable, mounted(service, command[1]), *command[2:]]
                subprocess.run(native, env=variables, stdin=stdin, stdout=stdout, check=True)


def mounted(service, path):
    """The file of ours that a container sees as `path`."""
    [source] = [volume.split(":")[0] for volume in SERVICES[service]["volumes"] if volume.split(":")[1] == path]
    return ROOT / source


def lacking():
    """What the services cannot do without and this machine has not; empty if all is there."""
    if postgres_programs() is None:
        return "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
    for module in ("psycopg", "flask_wtf"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (pip install 'fanin[server]')"
    return ""


@contextmanager
def running_stack(folder, *, workers=None, **settings):
    """The server with its database, secrets as `make up` makes them, and the users ada and bob."""
    tool = import_stack()
    tool.complete_env(folder / ".env", settings=tool.SETTINGS | settings | {"FANIN_PORT": str(free_port())})
    secrets = tool.read_env(folder / ".env")
    (folder / "artifacts").mkdir()
    with postgres(postgres_programs(), secrets) as cluster:
        stack = Stack(cluster, secrets, folder / "artifacts", folder / "server.log", workers=workers)
        stack.users["admin"] = secrets["MLFLOW_ADMIN_PASSWORD"]
        try:
            stack.start()
            stack.add_users("ada", "bob")
            yield stack
        finally:
            stack.stop()


def new_project(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("conf", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    return folder
