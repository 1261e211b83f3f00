"""What a sweep shows while it runs: a live board on a terminal, plain lines elsewhere.

The board: a bar with the time left, the running runs with epoch and loss, the best variant so far. Lines: one
per finished run, and at most one progress line every few seconds, so that a log file stays readable.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_EVERY = 5.0  # seconds between two progress lines when not on a terminal
SHOWN = 12  # running runs on the board
NUMBERS = 34  # columns that the numbers of a running run take


@dataclass
class Running:
    name: str
    epochs: int
    epoch: int = 0
    loss: float = math.nan
    accuracy: float = math.nan
    started: float = field(default_factory=lambda: time.monotonic())


class Display:
    """Call `start`, then `begin` / `record` / `end` per run, and `close`. `total` may grow (racing) or be None."""

    def __init__(
        self,
        title: str,
        *,
        metric: str,
        sign: int,
        workers: int,
        every_epoch: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.title, self.metric, self.sign, self.workers = title, metric, sign, workers
        self.running: dict[str, Running] = {}
        self.values: dict[str, list[float]] = {}
        self.durations: list[float] = []
        self.note = ""
        self.failed = 0
        self.every_epoch = every_epoch
        self._live: Live | None = None
        self._line = -math.inf
        self._began = time.monotonic()
        self._first = True
        self._widest = 0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[red]{task.fields[failed]}"),
            console=self.console,
        )
        self._task = self._bar.add_task(fit(title, 24), total=None, left="", failed="")

    @property
    def live(self) -> bool:
        return self.console.is_terminal

    def start(self, *, total: int | None, done: int) -> None:
        self._bar.update(self._task, total=total, completed=done)
        self._done, self._total = done, total
        if self.live:
            self._live = Live(get_renderable=self._board, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str, *, style: str = "") -> None:
        """A line that stays."""
        self.console.print(Text(text, style=style))

    def notice(self, text: str) -> None:
        """A line under the board, or among the lines."""
        self.note = text
        if not self.live:
            self.say(f"  {text}", style="yellow")

    def tracking(self, status: str) -> None:
        """Why records wait for MLflow, while they do; empty while they do not. Among lines, only what changes."""
        if bool(status) != bool(self.note) and not self.live:
            self.say(f"  {status or 'tracking is back'}", style="yellow")
        self.note = status

    def begin(self, key: str, *, name: str, epochs: int) -> None:
        self.running[key] = Running(name, epochs)

    def record(self, key: str, record: Mapping[str, Any]) -> None:
        run = self.running.get(key)
        if run is None:
            return
        metrics = record["metrics"]
        run.epoch = record["epoch"]
        run.loss = metrics.get("train/loss", math.nan)
        run.accuracy = metrics.get("val/accuracy", math.nan)
        if self.every_epoch:
            self.say(f"  {_describe(run)}  ({clock(time.monotonic() - run.started)})")
        elif not self.live and (self._is_first(run) or time.monotonic() - self._line > LINE_EVERY):
            self._line = time.monotonic()
            self.say(f"  {self._counts()}  {_describe(run)}")

    def _is_first(self, run: Running) -> bool:
        """The first epoch of training is shown at once, so that one sees that it learns."""
        first, self._first = self._first, self._first and run.epoch == 0
        return first and run.epoch > 0

    def end(self, key: str, *, variant: str, name: str, verdict: str, value: float, style: str = "") -> None:
        run = self.running.pop(key, None)
        self._done += 1
        self.failed += style == "red"
        if run:
            self.durations.append(time.monotonic() - run.started)
        if math.isfinite(value):
            self.values.setdefault(variant, []).append(value)
        shown = f"{self.metric} {value:.4f}" if math.isfinite(value) else ""
        if not self.live or style:
            words = [word for word in (name, f"{verdict} {shown}".strip()) if word]
            self.say(f"  {self._counts()}  {'  '.join(words)}", style=style)

    def drop(self, key: str) -> None:
        """The run did not end; it will be tried again."""
        self.running.pop(key, None)

    def update_total(self, total: int | None) -> None:
        self._total = total

    def _counts(self) -> str:
        total = self._total if self._total is not None else "?"
        width = len(str(total))
        return f"[{self._done:>{width}}/{total}]"

    def seconds_left(self) -> float | None:
        """From the mean duration of the finished runs; None before the first."""
        if not self.durations or self._total is None:
            return None
        mean = sum(self.durations) / len(self.durations)
        elapsed = sum(min(time.monotonic() - r.started, mean) for r in list(self.running.values()))
        return max(0.0, ((self._total - self._done) * mean - elapsed) / max(1, self.workers))

    def _board(self) -> Group:
        """Drawn by a thread of its own, while runs begin and end: it looks at what runs once."""
        left = self.seconds_left()
        self._bar.update(
            self._task,
            total=self._total,
            completed=self._done,
            left="" if left is None else f"{clock(left)} left",
            failed=f"{self.failed} failed" if self.failed else "",
        )
        parts: list[Any] = [self._bar]
        if running := list(self.running.values()):
            parts.append(self._table(running))
        if best := self._best():
            parts.append(Text(best, style="green", no_wrap=True))
        if self.note:
            parts.append(Text(f" {self.note}", style="yellow"))
        return Group(*parts)

    def _table(self, running: Sequence[Running]) -> Table:
        """The running runs. The columns keep their places from one frame to the next, and the numbers theirs."""
        room = max(12, self.console.width - NUMBERS - 1)
        names = [fit(run.name, room) for run in running]
        self._widest = min(room, max([self._widest, *map(len, names)]))
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("running", width=self._widest, no_wrap=True)
        for column, width in (("epoch", 9), ("train loss", 10), ("val acc", 8)):
            table.add_column(column, justify="right", width=width, no_wrap=True)
        for name, run in list(zip(names, running, strict=True))[:SHOWN]:
            table.add_row(name, f"{run.epoch}/{run.epochs}", _number(run.loss), _number(run.accuracy))
        if len(running) > SHOWN:
            table.add_row(f"... and {len(running) - SHOWN} more")
        return table

    def _best(self) -> str:
        means = {name: sum(v) / len(v) for name, v in list(self.values.items())}
        if not means:
            return ""
        name = max(means, key=lambda n: self.sign * means[n])
        count = len(self.values[name])
        value = f"{self.metric} {means[name]:.4f}" + f" (mean of {count})" * (count > 1)
        room = self.console.width - len(value) - 16
        return f" best so far: {fit(name, room)}  {value}"


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what the program does while it can show nothing yet; on a terminal only, and without a trace."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def fit(name: str, width: int) -> str:
    """A run's name in `width` columns: in full, else without its keys, else cut in the middle."""
    if len(name) <= width:
        return name
    values = " ".join(word.partition("=")[2] or word for word in name.split(" "))
    if len(values) <= width:
        return values
    head = (width - 1) * 2 // 3
    return f"{values[:head]}…{values[len(values) - (width - 1 - head) :]}"


def _describe(run: Running) -> str:
    return (
        f"{run.name}  epoch {run.epoch}/{run.epochs}  train loss {_number(run.loss)}  val acc {_number(run.accuracy)}"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m10s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
