"""A tracking store in the words of this package."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fanin import batches, bulk, view
from fanin.description import DataUsed, Description
from fanin.points import Point
from fanin.tracking.address import resolve, sqlite_file, without_secrets
from fanin.tracking.faults import TrackingRefused, translated
from fanin.tracking.opening import configure, open_client, settle

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


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
        return open_client(self.uri, artifacts=self._artifacts)

    @cached_property
    def _tables(self) -> Path | None:
        """MLflow's SQLite file, if we may write points there ourselves."""
        database = sqlite_file(self.uri)
        return database if database and bulk.accepts(database) else None

    def settle(self) -> None:
        """Make a copy of SQLite's database file hold all that was shipped, where that is the store."""
        if database := sqlite_file(self.uri):
            settle(database)

    @contextmanager
    def translated(self) -> Iterator["MlflowClient"]:
        """MLflow's client; what it and the layers below it raise is raised as one of our errors."""
        configure()
        with translated(self.address):
            yield self._client
