"""`fanin doctor`: what this machine and this project have, and what is wrong, in one line each with the way out.

A PROBLEM keeps something that was asked for from working; a note is good to know. Nothing is changed, nothing
downloaded.
"""

from collections.abc import Iterator
from pathlib import Path

from fanin.doctor.finding import PROBLEM, Finding
from fanin.doctor.machine import disk_and_memory, git, python, torch_build
from fanin.doctor.project import configured, records


def examine(project: Path) -> int:
    """Print the findings as they come. Returns 1 if one of them is a PROBLEM, else 0."""
    problems = 0
    for finding in findings(project):
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    print(f"\n{problems} problem{'s' * (problems != 1)} found" if problems else "\nnothing is wrong")
    return 1 if problems else 0


def findings(project: Path) -> Iterator[Finding]:
    yield from python()
    yield from torch_build()
    yield from disk_and_memory(project)
    yield from git(project)
    yield from records(project)
    yield from configured(project)
