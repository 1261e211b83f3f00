"""A study's state in a real PostgreSQL, and project folders that stand for machines: they share nothing else."""

from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from native_stack import import_stack, postgres, postgres_programs
from recorded import make_run, train
from recorded import make_study as begin_study

from fanin.shared.exchange import Exchange
from fanin.shared.keeper import Keeper
from fanin.sweep.folder import StudyFolder


@dataclass
class Server:
    """The database `optuna` of docker-compose.yml."""

    cluster: object
    secrets: dict

    def address(self, user="optuna", password=None, database="optuna", port=None):
        password = password or self.secrets[f"{user.upper()}_DB_PASSWORD"]
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.cluster.port}/{database}"

    def ask(self, query):
        return self.cluster.ask(query, database="optuna", user="optuna", password=self.secrets["OPTUNA_DB_PASSWORD"])

    def cut_off(self):
        """End every session of fanin, as a server does that hears nothing from a machine any more."""
        ours = "usename = 'optuna' and pid <> pg_backend_pid()"
        return self.ask(f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}")

    @property
    def running(self):
        return (self.cluster.folder / "data" / "postmaster.pid").exists()

    def stop(self, mode="immediate"):
        self.cluster.call("pg_ctl", "stop", "-m", mode, "-s", "-D", f"{self.cluster.folder}/data")

    def start(self):
        places = f"-p {self.cluster.port} -k {self.cluster.folder} -h 127.0.0.1 -F"
        data, log = f"{self.cluster.folder}/data", f"{self.cluster.folder}/log.2"
        self.cluster.call("pg_ctl", "start", "-s", "-w", "-D", data, "-l", log, "-o", places)

    @contextmanager
    def hung(self):
        """It takes what it is sent, and does not answer."""
        pid = int((self.cluster.folder / "data" / "postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()


@contextmanager
def serve(folder):
    """A PostgreSQL of its own with the databases and roles of docker-compose.yml; `folder` gets its secrets."""
    stack = import_stack()
    stack.complete_env(folder / ".env")
    secrets = stack.read_env(folder / ".env")
    with postgres(postgres_programs(), secrets) as cluster:
        one = Server(cluster, secrets)
        yield one
        if one.running:
            one.stop("fast")  # a test may have started it anew, and then it is not this one's child


@contextmanager
def held(server, project, name="initializers", *, port=None):
    """The study taken hold of and fetched, as a sweep does it: (exchange, the study's folder)."""
    exchange = Exchange(server.address(port=port), project / ".fanin" / name)
    exchange.take()
    folder = StudyFolder(exchange.path)
    exchange.fetch(folder.spool)
    if not (folder.path / "study.json").exists():
        folder.admit({"space": {}, "replicates": 1, "metric": ["val/loss"]}, extend=False)
    exchange.own()
    try:
        yield exchange, folder
    finally:
        folder.close()
        exchange.close()


def machines(tmp_path):
    """Project folders of two machines, the first with a study of which one run has ended and one has not."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    one.mkdir()
    study = begin_study(one)
    ended = train(make_run(study))
    opened = train(make_run(study, replicate=1), last=1, end=None)
    return one, two, ended, opened


def files(study):
    """What of a study's folder is shared: path -> content."""
    names = ("study.json", "journal.log", "spool.jsonl", "run.json", "shipped.json")
    paths = [path for path in study.rglob("*") if path.name in names and path != study / "run.json"]
    return {path.relative_to(study).as_posix(): path.read_bytes() for path in paths if path != study / "shipped.json"}


@contextmanager
def keeping(exchange, after=None):
    keeper = Keeper(exchange, after=after)
    try:
        yield keeper
    finally:
        keeper.close(10)
