"""Hydra 1.3 is what is installed; Hydra 1.4 is tried in a virtual environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
from hydra.plugins.sweeper import Sweeper

import fanin

ROOT = Path(__file__).parent.parent
NEXT = "hydra-core>=1.4.0rc3,<1.5"
FILES = ["test_foreign.py", "test_foreign_faults.py", "test_structure.py", "test_predecessor.py", "test_space.py"]


def test_the_sweeper_is_found_by_its_entry_point_which_hydra_1_4_looks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["hydra.plugins"].values()
    assert issubclass(resolve_name(target), Sweeper)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has Hydra 1.4, and whatever this one has besides."""
    home = tmp_path_factory.mktemp("hydra") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    interpreter = home / "bin" / "python"
    ask = [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NEXT]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"{NEXT} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    shared = [str(Path(fanin.__file__).parents[1]), sysconfig.get_path("purelib")]  # after its own packages
    (packages / "shared.pth").write_text("\n".join(shared))
    return interpreter


@pytest.mark.slow
def test_programs_and_studies_run_under_hydra_1_4(python: Path) -> None:
    ask = [python, "-c", "import hydra; print(hydra.__version__)"]
    assert subprocess.run(ask, check=True, capture_output=True, text=True).stdout.startswith("1.4.")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(ROOT / "tests" / name for name in FILES),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.slow
def test_no_warning_of_hydra_1_4_reaches_the_user(python: Path, project: Path) -> None:
    small = ["model=softmax", "data=digits", "tracking=none", "epochs=1", "stats=off"]
    for arguments in ([], ["-m", "optimizer.lr=0.01,0.02"]):
        command = [python, "-W", "error", "-m", "fanin", "train", *arguments, *small]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
