"""Where a result comes from: the commit and the versions of what computed it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("fanin", "torch", "torchvision", "numpy", "hydra-core", "optuna", "mlflow", "pandas")


def versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit(project: Path) -> str | None:
    """The commit the project folder is at, with "+changes" when tracked files differ from it; None outside git."""
    commit = _git(project, "rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git(project, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
