"""What a sweep shows while it runs: a live board on a terminal, plain lines elsewhere.

The board: a bar with the time left, the running runs with epoch and loss, the best variant so far. Lines: one per
finished run, and at most one progress line every few seconds, so that a log file stays readable.
"""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_EVERY = 5.0  # seconds between two progress lines when not on a terminal


@dataclass
class Running:
    name: str
    epochs: int
    epoch: int = 0
    loss: float = math.nan
    accuracy: float = math.nan
    started: float = field(default_factory=time.monotonic)


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
        self.every_epoch = every_epoch
        self._live: Live | None = None
        self._line = 0.0
        self._began = time.monotonic()
        self._first = True
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._task = self._bar.add_task(title, total=None, left="")

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
        elif not self.live and (self._first or time.monotonic() - self._line > LINE_EVERY):
            self._line = time.monotonic()
            self._first = False
            self.say(f"  {self._counts()}  {_describe(run)}")

    def end(self, key: str, *, variant: str, name: str, verdict: str, value: float, style: str = "") -> None:
        run = self.running.pop(key, None)
        self._done += 1
        if run:
            self.durations.append(time.monotonic() - run.started)
        if math.isfinite(value):
            self.values.setdefault(variant, []).append(value)
        shown = f"{self.metric} {value:.4f}" if math.isfinite(value) else ""
        if not self.live or style:
            self.say(f"  {self._counts()}  {name}  {verdict} {shown}".rstrip(), style=style)

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
        elapsed = sum(min(time.monotonic() - r.started, mean) for r in self.running.values())
        return max(0.0, ((self._total - self._done) * mean - elapsed) / max(1, self.workers))

    def _board(self) -> Group:
        left = self.seconds_left()
        self._bar.update(
            self._task,
            total=self._total,
            completed=self._done,
            left="" if left is None else f"{clock(left)} left",
        )
        table = Table(box=None, padding=(0, 1), show_header=bool(self.running), header_style="dim")
        for column, justify in (
            ("running", "left"),
            ("epoch", "right"),
            ("train loss", "right"),
            ("val acc", "right"),
        ):
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for run in list(self.running.values())[:12]:
            table.add_row(run.name, f"{run.epoch}/{run.epochs}", _number(run.loss), _number(run.accuracy))
        parts: list[Any] = [self._bar, table]
        if best := self._best():
            parts.append(Text(best, style="green"))
        if self.note:
            parts.append(Text(self.note, style="yellow"))
        return Group(*parts)

    def _best(self) -> str:
        means = {name: sum(v) / len(v) for name, v in self.values.items()}
        if not means:
            return ""
        name = max(means, key=lambda n: self.sign * means[n])
        return f" best so far: {name}  {self.metric} {means[name]:.4f} (n={len(self.values[name])})"


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
