"""The command line: flags, help, exit codes, interruption."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import new_database
from refusals import TINY, WITHOUT, refused

from fanin import app
from fanin.app import main


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fanin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_an_interrupted_command_says_so_and_ends_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "_doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "fanin: interrupted\n"


def test_a_full_disk_is_a_message_and_other_faults_of_the_system_are_not_hidden(monkeypatch, capsys):
    def full(options):
        raise OSError(errno.ENOSPC, "No space left on device", "spool.jsonl")

    monkeypatch.setattr(app, "_doctor", full)
    assert main(["doctor"]) == 1
    assert "the disk is full (spool.jsonl): make room" in capsys.readouterr().err

    def other(options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(app, "_doctor", other)
    with pytest.raises(OSError, match="Input/output"):
        main(["doctor"])


def test_a_project_folder_may_have_any_name(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    place = project / "it's [a] folder, with = signs"
    place.mkdir()
    for name in ("conf", "sweeps"):
        (place / name).symlink_to(project / name)
    monkeypatch.chdir(place)
    assert main(["sweep", "initializers", "--dry-run", *TINY]) == 0
    assert "initializer=he_normal" in capsys.readouterr().out


def test_flags_may_stand_anywhere_among_the_overrides(users_project, capsys):
    orders = (
        ["sweep", "initializers", "--dry-run", *TINY],
        ["sweep", "--dry-run", "initializers", *TINY],
        ["sweep", "initializers.yaml", TINY[0], "--dry-run", *TINY[1:]],
    )
    shown = set()
    for arguments in orders:
        assert main(arguments) == 0
        shown.add(capsys.readouterr().out.rpartition("estimate")[0])
    assert len(shown) == 1 and "9 variants x 5 replicates = 45" in shown.pop()
    assert not Path(".fanin").exists() and not Path("mlflow.db").exists()


def test_help_names_every_command_and_the_choices_of_the_project(users_project, capsys):
    for arguments, pieces in {
        ("--help",): [*app.HELP, "130 interrupted"],
        ("train", "--help"): ["mnist_5k", "he_normal", "layernorm", "onecycle"],
        ("sweep", "--help"): ["initializers", "Which initializer"],
    }.items():
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        text = capsys.readouterr().out
        assert all(piece in text for piece in pieces)
        assert max(map(len, text.splitlines())) <= 106
    assert "which command?" in refused(capsys)


def test_examples_of_the_help_text_are_valid(users_project, capsys, monkeypatch):
    import shlex

    examples = [line.strip() for line in app.EXAMPLES.splitlines() if line.strip().startswith("fanin ")]
    commands = [shlex.split(line.partition("   ")[0])[1:] for line in examples]
    assert len(commands) >= 6
    for command in commands:
        if command[0] in ("train", "sweep"):
            assert main([*command, "--dry-run", "data.n_train=100"]) == 0, (command, capsys.readouterr().err)


def test_a_run_that_fails_makes_the_exit_code_1_and_says_why(users_project):
    new_database(users_project / "mlflow.db")
    arguments = ["model._target_=users.Linear", "+model.fault=training", *WITHOUT]
    done = run("train", *[word for word in TINY if "model=" not in word], *arguments)
    assert done.returncode == 1, done
    assert "it broke in the middle (users.py, line" in done.stderr and "Traceback" not in done.stderr
    table = run("results", "train", "--csv", "runs.csv")
    assert table.returncode == 0 and "FAILED" in Path("runs.csv").read_text()


def test_a_run_that_is_done_makes_the_exit_code_0_and_bad_input_2(users_project):
    done = run("train", *TINY, "tracking=none")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "epoch 1/1" in done.stdout and "test/accuracy" in done.stdout
    wrong = run("train", "optimizer=sdg")
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1


def test_ctrl_c_ends_a_run_in_a_final_state_with_exit_code_130(users_project):
    command = [sys.executable, "-m", "fanin", "train", *TINY, "epochs=100000", "stats=off", "tracking=none"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout and process.stderr
    for line in process.stdout:
        if "epoch 3/" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors + output
    assert "KILLED" in next(Path(".fanin/train/runs").glob("*/spool.jsonl")).read_text().splitlines()[-1]


@pytest.mark.parametrize("command", ["results", "report", "register"])
def test_a_server_that_does_not_answer_is_no_bad_input(command, project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main([command, "initializers"]) == 1
    assert capsys.readouterr().err.startswith("fanin: http://127.0.0.1:9: cannot be reached")
