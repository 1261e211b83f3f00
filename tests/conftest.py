"""One thread a process: several beside busy neighbours are slower, and less repeatable. And Ctrl-C is heard."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background by a shell: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported; child processes inherit it

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long proof counts as hung after half an hour only: it may meet a busy machine."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same every time, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with our conf/ and sweeps/ and no records yet, made the current folder."""
    for name in ("conf", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def users_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with modules of the user's own: users.py of refusals.py, and two that cannot be imported."""
    from refusals import USERS

    monkeypatch.setattr(sys, "path", list(sys.path))  # main puts the project folder there
    (project / "users.py").write_text(USERS)
    (project / "broken.py").write_text("def f(:\n")
    (project / "lacking.py").write_text("import a_package_that_nobody_has\n")
    return project


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a foreign Hydra program: it is no project of ours, and no variable speaks of one."""
    for variable in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def launch() -> Iterator[Callable[..., Command]]:
    """launch(project, *arguments) starts `fanin` there as a process; what is left of it ends with the test."""
    commands: list[Command] = []

    def start(project: Path, *arguments: str) -> Command:
        commands.append(Command(project, *arguments))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of all tests of a study's state: a Server of shared_state.py."""
    from shared_state import serve

    with serve(tmp_path_factory.mktemp("secrets")) as server:
        yield server


@pytest.fixture
def server(postgres_server: Any) -> Any:
    """That server without any study in its database, whatever a test that failed has left."""
    if not postgres_server.running:
        postgres_server.start()
    postgres_server.cut_off()
    postgres_server.ask("drop table if exists fanin_piece, fanin_study, fanin_version")
    return postgres_server
