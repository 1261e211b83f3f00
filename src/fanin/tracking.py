"""The only writer of MLflow: a tracking store in the words of this package, and what can go wrong with it.

MLflow is imported and connected at the first use, by whoever ships; nothing here is on the training path.
What is sent when, and why twice does no harm, is in shipping.py.
"""

import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fanin import batches, bulk, view
from fanin.description import DataUsed, Description
from fanin.errors import ConfigError, require
from fanin.lock import exclusive
from fanin.points import Point

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
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
CLOSING = "\"')"  # what ends an error within an error
CREDENTIALS = re.compile(r"//[^/\s]*@")  # user:password@ of an address
SECRETS = re.compile(r"([?&])[a-z]*password=[^&\s'\"]*", re.IGNORECASE)  # and those that a driver takes after its ?
REFUSALS = {
    "BAD_REQUEST",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "UNAUTHENTICATED",
}


class TrackingDown(RuntimeError):
    """The tracking store cannot be reached now; trying again later may work."""


class TrackingRefused(RuntimeError):
    """The tracking store answered no; trying again will not help."""


class TrackingForgot(TrackingRefused):
    """The store does not have a run or experiment that it had: it was replaced by another."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as the store has it."""

    id: str
    status: str
    params: frozenset[str]
    empty: bool  # without any metric


class Tracker:
    """The tracking store of a project: `uri`, else $MLFLOW_TRACKING_URI, else SQLite in the project folder.

    `artifacts` is where files go (default ./mlartifacts); a server has a place of its own.
    Raises ConfigError for a URI that MLflow could not open; every method TrackingDown or TrackingRefused.
    """

    def __init__(self, *, project: str | Path = ".", uri: str | None = None, artifacts: str | Path | None = None):
        self.project = Path(project).resolve()
        self.uri = resolve(uri, project=self.project)
        self._artifacts = self.project / (artifacts or "mlartifacts")
        self._experiments: dict[str, str] = {}  # name -> id
        self._checked: set[str] = set()  # runs known to exist
        self._places: dict[str, str] = {}  # run -> where its files go: to ask takes the server as long as 100 points

    @property
    def address(self) -> str:
        """The URI without a password that it may hold: for messages."""
        return without_secrets(self.uri)

    @property
    def local(self) -> bool:
        return sqlite_file(self.uri) is not None

    @cached_property
    def signed_in(self) -> bool:
        """Whether requests bear an account, whose rights the server looks up."""
        with self.translated():
            from mlflow.tracking._tracking_service.utils import get_default_host_creds

            account = get_default_host_creds(self.uri)
            return bool(account.username or account.token)

    def connect(self) -> None:
        """Create or open the store now rather than at the first use."""
        with self.translated() as client:
            client.search_experiments(max_results=1)

    def admit(self, experiment: str) -> None:
        """Raise TrackingRefused unless this user may write the experiment, which is made if it is missing."""
        with self.translated() as client:
            client.set_experiment_tag(self._experiment(experiment), "fanin.study", experiment)

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[TrackedRun]:
        """The runs with all these tags, the oldest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time", "attributes.run_id"]
        with self.translated() as client:
            runs = client.search_runs([self._experiment(experiment)], query, order_by=order)
        self._places |= {run.info.run_id: run.info.artifact_uri for run in runs}
        return [
            TrackedRun(run.info.run_id, run.info.status, frozenset(run.data.params), not run.data.metrics)
            for run in runs
        ]

    def create(self, experiment: str, description: Description, *, started: int) -> str:
        """A new run's id. If no answer comes, the run may exist all the same."""
        with self.translated() as client:
            run = client.create_run(
                self._experiment(experiment),
                start_time=started,
                tags=description.tags,
                run_name=description.name,
            )
        self._places[run.info.run_id] = run.info.artifact_uri
        return run.info.run_id

    def arrange(self, experiment: str, page: Mapping[str, object], *, question: str) -> None:
        """Give the experiment's page in MLflow's UI an arrangement, and a description that leads to it."""
        with self.translated() as client:
            number = self._experiment(experiment)
            client.set_experiment_tag(number, view.TAG, view.encode(page))
            words = f"{question} [Charts and best runs]({view.link('', number).removeprefix('/')})"
            client.set_experiment_tag(number, "mlflow.note.content", words.strip())

    def page(self, experiment: str, *, server: str) -> str:
        """The address of the experiment's page in the UI at `server`: arranged, if it is one of ours."""
        with self.translated() as client:
            found = client.get_experiment(self._experiment(experiment))
            return view.link(server, found.experiment_id, arranged=view.TAG in found.tags)

    def log(
        self,
        run: str,
        *,
        points: Sequence[Point] = (),
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """One batch, cut into the sizes the store takes."""
        if self.uri.startswith("http"):
            for body in batches.bodies(run, points=points, params=params or {}, tags=tags or {}):
                self.request("POST", batches.ROUTE, json=body)
            return
        with self.translated() as client:
            from mlflow.entities import Metric, Param, RunTag

            if points and self._tables and bulk.write(self._tables, run, points):
                points = ()
            client.log_batch(
                run,
                metrics=[Metric(point.key, point.value, point.time, point.step) for point in points],
                params=[Param(key, value) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
            )

    def log_data(self, run: str, data: DataUsed) -> None:
        """What the run is trained on. Twice does no harm: MLflow knows a data set by its name and digest."""
        with self.translated() as client:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(data.name, data.digest, "code", data.source, profile=data.profile)
            tags = [InputTag("mlflow.data.context", "train, val, test")]
            client.log_inputs(run, datasets=[DatasetInput(dataset, tags)])

    def upload(self, run: str, folder: Path) -> None:
        with self.translated() as client:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            if place := self._places.pop(run, None):
                get_artifact_repository(place, tracking_uri=self.uri).log_artifacts(str(folder))
            else:
                client.log_artifacts(run, str(folder))

    def attach(self, run: str, file: Path, *, folder: str | None = None) -> None:
        """Put one file among the run's artifacts, in place of one of the same name."""
        with self.translated() as client:
            client.log_artifact(run, str(file), folder)

    def read(self, run: str, path: str) -> str | None:
        """The text of one of the run's artifacts; None if it has no such file."""
        with self.translated() as client, tempfile.TemporaryDirectory() as folder:
            if path not in (file.path for file in client.list_artifacts(run)):
                return None
            return Path(client.download_artifacts(run, path, folder)).read_text()

    def end(self, run: str, *, status: str, time: int) -> None:
        with self.translated() as client:
            client.set_terminated(run, status, time)

    def reopen(self, run: str) -> None:
        with self.translated() as client:
            client.update_run(run, status="RUNNING")

    def delete(self, run: str) -> None:
        with self.translated() as client:
            client.delete_run(run)

    def check(self, run: str) -> None:
        """Raise TrackingForgot if the store has no such run. Asked once per run."""
        if run not in self._checked:
            with self.translated() as client:
                client.get_run(run)
            self._checked.add(run)

    def request(self, method: str, route: str, **arguments: object) -> bytes:
        """The answer of a server to a request that MLflow's client does not make, with the client's credentials."""
        with self.translated():
            from mlflow.tracking._tracking_service.utils import get_default_host_creds
            from mlflow.utils.rest_utils import http_request, verify_rest_response

            answer = http_request(get_default_host_creds(self.uri), route, method, **arguments)
            if answer.status_code != 200:  # only then: it takes every answer for text
                verify_rest_response(answer, route)
            return answer.content

    def forget(self) -> None:
        """Drop what was remembered of a store that was replaced."""
        self._experiments.clear()
        self._checked.clear()
        self._places.clear()

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name) or self._create_experiment(name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str | None:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            number = experiment.experiment_id
            raise TrackingRefused(
                f"the experiment {name!r} is deleted in MLflow; "
                f"`mlflow experiments restore --experiment-id {number}` brings it back"
            )
        return experiment.experiment_id

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = None if self.uri.startswith("http") else (self._artifacts / name).as_uri()
        try:
            return self._client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            found = self._find_experiment(name)  # another machine was quicker
            if found is None:
                raise error
            return found

    @cached_property
    def _client(self) -> "MlflowClient":
        """MLflow's client. Two processes creating one SQLite store at once break it for good: one by one."""
        _configure()
        from mlflow.tracking import MlflowClient
        from mlflow.utils import request_utils

        from fanin.connection import hasten

        hasten(request_utils)
        database = sqlite_file(self.uri)
        if database is None:
            return MlflowClient(self.uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(database.with_name(database.name + ".lock")):
            if not database.exists():
                _create(database, artifacts=self._artifacts)
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer never wait for each other
        return client

    @cached_property
    def _tables(self) -> Path | None:
        """MLflow's SQLite file, if we may write points there ourselves."""
        database = sqlite_file(self.uri)
        return database if database and bulk.accepts(database) else None

    def settle(self) -> None:
        """Bring what SQLite's write-ahead log holds into the database file: a copy of that file alone then has it
        all. Somebody else who is writing right now will do it."""
        database = sqlite_file(self.uri)
        if database and database.exists():
            with closing(sqlite3.connect(database, timeout=0.5)) as connection, suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def translated(self) -> Iterator["MlflowClient"]:
        """MLflow's client; what it and the layers below it raise is raised as one of our errors."""
        _configure()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield self._client
        except MlflowException as error:
            raise _kind(error.error_code)(f"{self.address}: {_explain(error)}") from error
        except ImportError as error:
            raise TrackingRefused(f"{self.address}: its driver is not installed ({error})") from error
        except (OSError, SQLAlchemyError, sqlite3.Error) as error:
            raise TrackingDown(f"{self.address}: {_first_line(error)}") from error


def without_secrets(text: str) -> str:
    """A text that holds addresses, a command for one, without the passwords that these may hold."""
    return SECRETS.sub(r"\1password=...", CREDENTIALS.sub("//", text))


def resolve(uri: str | None, *, project: Path) -> str:
    """The URI in full: `uri`, $MLFLOW_TRACKING_URI or the default; SQLite paths relative to the project."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, shown = uri.split("://")[0], without_secrets(uri)
    if scheme == "postgresql":
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: a URI must name its driver, as in 'postgresql+psycopg://...', got {shown!r}"
        )
    known = scheme in ("http", "https", "sqlite") or scheme.startswith(("postgresql+", "mysql+", "mssql+"))
    require(known, "MLFLOW_TRACKING_URI", "must be a sqlite:///, http(s):// or postgresql+psycopg:// URI", shown)
    rule = "must name a file after three slashes, sqlite:///mlflow.db"
    require(scheme != "sqlite" or len(uri) > 10 and uri[9] == "/", "MLFLOW_TRACKING_URI", rule, shown)
    require(scheme[:4] != "http" or uri.split("://")[1], "MLFLOW_TRACKING_URI", "must name a server", shown)
    database = sqlite_file(uri)
    return uri if database is None else f"sqlite:///{project / database}"


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


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _configure() -> None:
    """Before MLflow is imported, which reads some of these then. What the user has set stays."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    for noisy in ("alembic", "mlflow.store.db.utils"):  # what fails is raised, and reported by whoever ships
        if logging.getLogger(noisy).level != logging.CRITICAL:  # to set it empties the caches of all loggers
            logging.getLogger(noisy).setLevel(logging.CRITICAL)


def _kind(code: str) -> type[RuntimeError]:
    """The error for one of MLflow's codes."""
    if code == "RESOURCE_DOES_NOT_EXIST":
        return TrackingForgot
    return TrackingRefused if code in REFUSALS else TrackingDown


def _explain(error: "MlflowException") -> str:
    """What went wrong and what to do, where MLflow's words are about its requests."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or "nobody"
    if error.error_code == "UNAUTHENTICATED":
        return f"refused {user!r} (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if error.error_code == "PERMISSION_DENIED" and "Permission denied" in str(error):
        return f"{user!r} has no right to this study (403): ask who made it for one, or choose another name"
    if "Max retries exceeded" in str(error):  # by the chain of urllib3's errors, which names the request
        return f"cannot be reached: {str(error).rpartition(': ')[2].rstrip(CLOSING)[:200]}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    """What went wrong, without SQLAlchemy's remark on when, and without the statement."""
    lines = [line for line in str(error).strip().split("\n") if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0][:300]
