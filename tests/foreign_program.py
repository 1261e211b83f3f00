"""A Hydra program that has never heard of fanin, swept by its command line; and what is left of that."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DEADLINE = 60.0  # seconds; nothing here takes ten

HEAD = """\
import os, sys
from pathlib import Path
import hydra

BESIDE = Path(__file__).resolve().parent
BASE = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}  # deprecated in 1.4

def note(*words):
    with open(BESIDE / "calls", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")
"""

BOWL = """
@hydra.main(**BASE, config_path=".", config_name="config")
def main(cfg):
    note(cfg.x, cfg.y)
    return (cfg.x - 1) ** 2 + cfg.y

main()
"""


def write(folder: Path, body: str, *, config: str | None = "x: 3\ny: 0.5\n", name: str = "app.py") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(HEAD + textwrap.dedent(body))
    if config is not None:
        (folder / name).with_name("config.yaml").write_text(textwrap.dedent(config))


def command(*arguments: str, program: tuple[str, ...] = ("app.py",)) -> list[str]:
    return [sys.executable, *program, *arguments]


def sweep(folder: Path, *arguments: str, program: tuple[str, ...] = ("app.py",), code: int = 0) -> Any:
    """Run the program with -m and `arguments`; returns the ended process, whose exit code must be `code`."""
    done = subprocess.run(
        command("-m", *arguments, program=program),
        cwd=folder, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert code == 1 or "Traceback" not in done.stderr, done.stderr
    return done


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def results(folder: Path) -> Path:
    """The newest sweep folder."""
    return max((folder / "multirun").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)


def best(folder: Path) -> Any:
    return yaml.safe_load((results(folder) / "optimization_results.yaml").read_text())


def board(stdout: str) -> list[str]:
    """The lines of the leaderboard's body, without its column of seconds."""
    lines = stdout[stdout.index("-  ") :].splitlines()
    return [line.rsplit(maxsplit=1)[0] for line in lines[1 : lines.index("")]]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
