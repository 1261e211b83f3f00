"""What the benchmarks share: a project folder, a sweep run there, and figures with their bounds."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """A measured number, and the bound it must keep: at most or at least."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def kept(self) -> bool:
        above = self.least is not None and not self.value >= self.least
        below = self.most is not None and not self.value <= self.most
        return not above and not below

    def __str__(self) -> str:
        sign, bound = ("<=", self.most) if self.most is not None else (">=", self.least)
        verdict = "pass" if self.kept else "MISS"
        return f"{verdict}  {self.name}: {self.value:.3g}{self.unit} (bound {sign} {bound:g}{self.unit})"


def judge(figures: Sequence[Figure]) -> int:
    """Print every figure with its bound; the exit code: 1 if one misses it."""
    for figure in figures:
        print(figure)
    print(f"      load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    return 0 if all(figure.kept for figure in figures) else 1


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A fresh project folder with this repository's conf/ and sweeps/, and inside it; removed afterwards."""
    before = Path.cwd()
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = here.rstrip(os.pathsep)  # the fork server imports a benchmark's own workers
    with tempfile.TemporaryDirectory(prefix="fanin-bench-") as folder:
        for name in ("conf", "sweeps"):
            (Path(folder) / name).symlink_to(REPOSITORY / name)
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def sweep(overrides: Sequence[str]) -> str:
    """`fanin train -m OVERRIDES` in this process; what it said. Raises RuntimeError if runs fail."""
    from fanin.sweep import launch
    from fanin.sweep.engine import Options

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = launch.multirun(list(overrides), Options())
    if code:
        print(said.getvalue(), file=sys.stderr)
        raise RuntimeError(f"the sweep ended with exit code {code}")
    return said.getvalue()


@contextlib.contextmanager
def study_of(arguments: Sequence[str], *, sampler: str = "grid", trials: int | None = None) -> Iterator[Any]:
    """(study, its folder) of a multirun's arguments, ready to be planned."""
    from fanin.sweep import launch
    from fanin.sweep.folder import StudyFolder
    from fanin.sweep.reading import Settings, read_study
    from fanin.sweep.study import Budget
    from hydra_plugins.fanin_sweeper.config import SAMPLERS

    given = {option: value for option, value in SAMPLERS[sampler].items() if value is not None}
    settings = Settings(None, {"name": sampler, **given}, None, Budget(trials=trials))
    with launch.project_loader() as (loader, found):
        study = read_study(loader, config_name="config", hydra_overrides=found, arguments=arguments, settings=settings)
        folder = StudyFolder(Path(".fanin") / study.name)
        try:
            yield study, folder
        finally:
            folder.close()


def played(study: Any, folder: Any, pool: Any) -> Any:
    """The plan of a study after the real coordinator has played it, silently, with the workers of `pool`."""
    from fanin.sweep.checks import grid_of
    from fanin.sweep.delivery import Unshipped
    from fanin.sweep.engine import coordinate
    from fanin.sweep.planning import make_plan

    grid = study.sampler["name"] == "grid"
    plan = make_plan(study, grid_of(study) if grid else None, folder, extend=False)
    with contextlib.redirect_stdout(io.StringIO()):
        tally = coordinate(study, plan, pool, Unshipped())
    assert tally.finished == plan.total, tally
    return plan
