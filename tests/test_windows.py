"""The benchmark of TPE's excerpts: with what it compares them."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(windows, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import windows as benchmark

    monkeypatch.setattr(benchmark, "regret", lambda name, window, seed, trials: {0: 2.0, 100: 3.0}[window] + seed)
    monkeypatch.setattr(sys, "argv", ["windows.py", "--windows", windows, "--functions", "noisy"])
    benchmark.main()


def test_windows_are_compared_with_all_of_the_history_wherever_it_is_named(monkeypatch, capsys):
    run("100,0", monkeypatch)
    first, second = capsys.readouterr().out.splitlines()
    assert "window 100" in first and first.endswith("1.15x; less in 0, more in 10 of 10 seeds")
    assert "window of all" in second and second.endswith("1.00x; less in 0, more in 0 of 10 seeds")


def test_without_all_of_the_history_there_is_nothing_to_compare_with(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("100", monkeypatch)
    assert "--windows: 0 must be among them" in capsys.readouterr().err
