"""What a sweep shows: the board on a terminal of 100 columns, plain lines elsewhere."""

import io
import math

import pytest
from rich.console import Console

from fanin.sweep import display
from fanin.sweep.display import Display, clock, fit, waiting

LONG = "initializer=xavier_uniform optimizer=sgd regularization=batchnorm+dropout+weight_decay model=mlp r0"


class Clock:
    """Stands for the time module: it moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(display, "time", moved)
    return moved


def show(*, terminal: bool, **options) -> Display:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=not terminal)
    settings = {"metric": "val/accuracy", "sign": 1, "workers": 2} | options
    return Display("initializers", console=console, **settings)


def board(shown: Display) -> list[str]:
    """The board as it would be drawn now, without colours."""
    plain = Console(file=io.StringIO(), width=100)
    plain.print(shown._board())
    return plain.file.getvalue().splitlines()


def lines(shown: Display) -> list[str]:
    return shown.console.file.getvalue().splitlines()


def record(epoch: int, loss: float, accuracy: float) -> dict:
    return {"epoch": epoch, "metrics": {"train/loss": loss, "val/accuracy": accuracy}}


def test_the_board_has_the_running_runs_the_best_so_far_and_the_time_left(time):
    shown = show(terminal=True)
    shown._done, shown._total = 0, 6
    for key, name in (("a", "initializer=he_normal r0"), ("b", "initializer=zeros r0")):
        shown.begin(key, name=name, epochs=10)
    shown.record("a", record(3, 0.51234, 0.875))
    text = board(shown)
    assert text[0].startswith("initializers") and "0/6" in text[0] and "left" not in text[0]
    assert text[1].split() == ["running", "epoch", "train", "loss", "val", "acc"]
    assert text[2].split() == ["initializer=he_normal", "r0", "3/10", "0.5123", "0.8750"]
    assert text[3].split() == ["initializer=zeros", "r0", "0/10", "-", "-"]
    assert len(text) == 4  # nothing has ended: there is no best yet
    time.now += 20
    shown.end("a", variant="initializer=he_normal", name="-", verdict="", value=0.9)
    shown.begin("c", name="initializer=he_normal r1", epochs=10)
    time.now += 5
    text = board(shown)
    # One run in 20 s; 5 are left, of which zeros has run for 25 s and c for 5: (5 * 20 - 20 - 5) / 2 workers.
    assert "1/6" in text[0] and "38s left" in text[0]
    assert text[-1] == " best so far: initializer=he_normal  val/accuracy 0.9000"


def test_a_run_that_ends_while_the_board_is_drawn_leaves_the_board_whole(time, monkeypatch):
    shown = show(terminal=True)
    shown._done, shown._total = 0, 1
    shown.begin("a", name="initializer=zeros r0", epochs=10)
    table = shown._table

    def end_meanwhile(running):
        shown.drop("a")
        return table(running)

    monkeypatch.setattr(shown, "_table", end_meanwhile)
    assert any("initializer=zeros r0" in line for line in board(shown))
    monkeypatch.undo()
    assert not any("initializer=zeros" in line for line in board(shown))


def test_the_best_is_the_best_mean_in_the_metrics_direction(time):
    shown = show(terminal=True, metric="val/loss", sign=-1)
    shown._done, shown._total = 0, None
    for variant, value in (("a", 0.5), ("b", 0.1), ("b", 0.7), ("c", math.inf), ("d", math.nan)):
        shown.end(variant, variant=variant, name=variant, verdict="", value=value)
    shown.end("b", variant="b", name="b", verdict="", value=0.1)
    assert board(shown)[-1] == " best so far: b  val/loss 0.3000 (mean of 3)"
    assert "6/?" in board(shown)[0] and "left" not in board(shown)[0]  # a search without a number of trials


def test_long_names_leave_room_for_the_numbers_and_no_line_is_wrapped(time):
    shown = show(terminal=True)
    shown._done, shown._total = 0, 40
    for key in "abcdefghijklmnop":
        shown.begin(key, name=LONG.replace("mlp", f"mlp_{key}"), epochs=1000)
        shown.record(key, record(999, 12345.678, 0.9))
    shown.end("p", variant=LONG, name=LONG, verdict="", value=0.5)
    text = board(shown)
    assert all(len(line) <= 100 for line in text)
    assert text[2].split()[-3:] == ["999/1000", "1.235e+04", "0.9000"]
    assert text[2].split()[0] == "xavier_uniform" and text[2].split()[-4] == "r0"
    assert sum("999/1000" in line for line in text) == display.SHOWN
    assert text[-2].strip() == f"... and {15 - display.SHOWN} more"
    assert text[-1].startswith(" best so far: xavier_uniform sgd") and text[-1].endswith("0.5000")


def test_columns_keep_their_places_when_short_names_follow_long_ones(time):
    shown = show(terminal=True)
    shown._done, shown._total = 0, 2
    shown.begin("a", name="initializer=xavier_uniform r0", epochs=5)
    before = board(shown)[1].index("epoch")
    shown.drop("a")
    shown.begin("b", name="initializer=zeros r0", epochs=5)
    assert board(shown)[1].index("epoch") == before


def test_failures_are_counted_on_the_board_and_stay_as_lines(time):
    shown = show(terminal=True)
    shown.start(total=3, done=1)
    shown.begin("a", name="initializer=zeros r0", epochs=1)
    shown.end("a", variant="a", name="initializer=zeros r0", verdict="KeyError: 'x'", value=math.nan, style="red")
    shown.begin("b", name="initializer=ones r0", epochs=1)
    shown.end("b", variant="b", name="initializer=ones r0", verdict="", value=0.5)
    shown.notice("stopping")
    text = board(shown)
    assert "3/3" in text[0] and "1 failed" in text[0] and text[-1] == " stopping"
    shown.close()
    output = shown.console.file.getvalue()
    assert "[2/3]  initializer=zeros r0  KeyError: 'x'" in output
    assert "initializer=ones r0  val/accuracy" not in output  # one that went well is on the board only


def test_without_a_terminal_each_end_is_a_line_the_first_epoch_too_and_progress_comes_now_and_then(time):
    shown = show(terminal=False)
    shown.start(total=12, done=2)
    shown.begin("a", name="initializer=zeros r0", epochs=9)
    for epoch in range(10):
        shown.record("a", record(epoch, 0.5, 0.25))
        time.now += 1
    shown.end("a", variant="a", name="initializer=zeros r0", verdict="diverged, counts as", value=0.1)
    shown.end("b", variant="b", name="initializer=ones r0", verdict="pruned: median", value=math.nan)
    shown.notice("stopping")
    shown.close()
    assert lines(shown) == [
        "  [ 2/12]  initializer=zeros r0  epoch 0/9  train loss 0.5000  val acc 0.2500",
        "  [ 2/12]  initializer=zeros r0  epoch 1/9  train loss 0.5000  val acc 0.2500",
        "  [ 2/12]  initializer=zeros r0  epoch 7/9  train loss 0.5000  val acc 0.2500",
        "  [ 3/12]  initializer=zeros r0  diverged, counts as val/accuracy 0.1000",
        "  [ 4/12]  initializer=ones r0  pruned: median",
        "  stopping",
    ]


def test_a_long_line_is_not_cut_where_there_is_no_terminal(time):
    shown = show(terminal=False)
    shown.start(total=1, done=0)
    shown.say("x" * 300)
    assert lines(shown) == ["x" * 300]


def test_a_single_run_shows_every_epoch(time):
    shown = show(terminal=False, every_epoch=True)
    shown.start(total=1, done=0)
    shown.begin("a", name="mlp", epochs=2)
    for epoch in range(3):
        shown.record("a", record(epoch, 1.0, 0.5))
        time.now += 1
    shown.record("unknown", record(0, 1.0, 0.5))  # a late word of a run that was dropped
    assert [line.split("  ")[2] for line in lines(shown)] == ["epoch 0/2", "epoch 1/2", "epoch 2/2"]
    assert lines(shown)[2].endswith("(2s)")


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("initializer=zeros r0", 20, "initializer=zeros r0"),
        ("initializer=zeros r0", 19, "zeros r0"),
        ("initializer=zeros r0", 7, "zero…r0"),
        ("a=b=c d=0.1", 9, "b=c 0.1"),
        ("adhoc-234dbbdced", 9, "adhoc…ced"),
    ],
)
def test_a_name_is_shortened_to_its_values_before_it_is_cut(name, width, shown):
    assert fit(name, width) == shown and len(shown) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3599.7, "1h00m"), (7500, "2h05m")],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert clock(seconds) == text


def test_waiting_leaves_no_trace_where_there_is_no_terminal(capfd):
    with waiting("checking"):
        pass
    assert capfd.readouterr() == ("", "")


def test_an_outage_of_tracking_is_a_line_when_it_begins_and_one_when_it_is_over(time):
    shown = show(terminal=False)
    for status in ("", "tracking is down, next try in 2 s", "tracking is down, next try in 1 s", "", ""):
        shown.tracking(status)
    assert lines(shown) == ["  tracking is down, next try in 2 s", "  tracking is back"]


def test_an_outage_of_tracking_stands_under_the_board_while_it_lasts(time):
    shown = show(terminal=True)
    shown._done, shown._total = 0, 6
    shown.tracking("tracking is down, next try in 2 s")
    assert "tracking is down, next try in 2 s" in board(shown)[-1]
    shown.tracking("")
    assert "tracking" not in " ".join(board(shown)) and lines(shown) == []
