"""From the command to the first epoch on the screen: `fanin sweep initializers`, installed: under 8 s.

What `make sweep` starts, as a process of its own, on a pseudo-terminal (the live board) and into a pipe (plain
lines), each time in a fresh project folder, so that the store is created, too. The files it reads are in the
system's cache: a run before warms it. Until the untrained network's record is on the screen, and until a first
epoch of training is: the latter counts. On a busy machine seconds say little, so the CPU time of all its
processes stands beside them.

    python benchmarks/bench_start.py [--rounds 3]
"""

import argparse
import os
import pty
import re
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import psutil
from figures import Figure, judge, project

BOUND = 8.0  # seconds
PATIENCE = 120.0
COMMAND = [Path(sys.executable).with_name("fanin"), "sweep", "initializers"]
RECORD = re.compile(r"\b\d+/10\b")  # epochs of a run
TRAINED = re.compile(r"\b[1-9]\d*/10\b|\[ *[1-9]\d*/45\]")  # or a run that has ended


@dataclass(frozen=True)
class Start:
    """Seconds until a record and until an epoch were on the screen, and the CPU seconds spent until then."""

    record: float
    epoch: float
    cpu: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    start(terminal=False)
    figures = []
    for name, terminal in (("terminal", True), ("plain lines", False)):
        starts = [start(terminal=terminal) for _ in range(rounds)]
        record, epoch, cpu = (statistics.median(getattr(s, key) for s in starts) for key in ("record", "epoch", "cpu"))
        print(
            f"{name}: first record after {record:.1f} s, first epoch after {epoch:.1f} s, CPU {cpu:.1f} s", flush=True
        )
        figures.append(Figure(f"first epoch on the screen, {name}", epoch, " s", most=BOUND))
    return judge(figures)


def start(*, terminal: bool) -> Start:
    """Run the command until it shows an epoch, then end it and all that it started."""
    with project():
        reading, writing = pty.openpty() if terminal else os.pipe()
        if terminal:
            ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color"}
        began = time.monotonic()
        process = subprocess.Popen(
            COMMAND, stdout=writing, stderr=writing, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        os.close(writing)
        tree = psutil.Process(process.pid)
        try:
            seen = watch(reading, began)
            return Start(*seen, cpu=cpu_seconds([tree, *tree.children(recursive=True)]))
        finally:
            for one in [*tree.children(recursive=True), tree]:
                one.send_signal(signal.SIGKILL)
            process.wait()
            os.close(reading)


def watch(screen: int, began: float) -> tuple[float, float]:
    """Seconds since `began` until a record and until an epoch appear. Raises RuntimeError if they do not."""
    shown, record = "", None
    while time.monotonic() - began < PATIENCE:
        try:
            text = os.read(screen, 65536).decode(errors="replace")
        except OSError:  # how a pseudo-terminal says that nobody writes to it any more
            text = ""
        if not text:
            break
        shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
        if record is None and RECORD.search(shown):
            record = time.monotonic() - began
        if record is not None and TRAINED.search(shown):
            return record, time.monotonic() - began
    raise RuntimeError(f"no epoch was shown:\n{shown}")


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Of the living, with what their children that have ended had used."""
    times = [one.cpu_times() for one in processes if one.is_running()]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


if __name__ == "__main__":
    raise SystemExit(main())
