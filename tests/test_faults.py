"""What a sweep promises when things die: real processes and signals, MLflow's database read without our code."""

import json
import os
import random
import re
import signal
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from processes import (
    children,
    curves,
    epochs_of,
    folders,
    leaderboard,
    open_runs,
    query,
    statuses,
)
from projects import new_project, write_study
from recorded import new_database, wait_until

from fanin import spool
from fanin.app import main
from fanin.sweep.folder import StudyFolder, archive, outcome
from fanin.sweep.schedule import GRACE

MODELS = '''

import os
import signal


class Suicide(Net):
    def act(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Glutton(Net):
    def act(self):
        raise MemoryError("cannot allocate 640 GiB")


class Clumsy(Net):
    def act(self):
        raise RuntimeError("a bug of the user's")


class Counted(Slow):
    """Whose steps are counted."""

    def act(self):
        with open("steps", "a") as file:
            file.write(".")
        super().act()


class Endless(Net):
    """Whose epochs take longer than anybody waits."""

    def act(self):
        time.sleep(3600)
'''


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path, models=MODELS)


@pytest.fixture
def fanin(project, monkeypatch, capsys):
    """Run a whole sweep here, without the seconds that a new process takes: returns (exit code, output)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments, project=project):
        monkeypatch.chdir(project)
        code = main(["sweep", "faults", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def specifications(project):
    """(folder, run.json) of every run."""
    return [(folder, json.loads((folder / "run.json").read_text())) for folder in folders(project)]


def final(project):
    """What must be the same however often a sweep was killed: statuses, and every point with its value."""
    points = curves(project)
    assert {key: values for key, values in points.items() if len(values) != 1} == {}
    return children(project), points


def beside(project, other):
    """Make `other` a project with the same studies, and no runs yet."""
    for name in ("conf", "sweeps"):
        (other / name).symlink_to(project / name)
    new_database(other / "mlflow.db")
    return other


def tear(path):
    """As a kill in the middle of a write leaves a file."""
    with path.open("ab") as file:
        file.write(b'{"kind":"epoch","time":17')


def test_a_sweep_killed_again_and_again_ends_as_if_nothing_had_happened(project, launch, fanin, tmp_path_factory):
    write_study(project, epochs=25, images=1000)
    draw = random.Random(20)

    def session(kill, *arguments):
        """Go on until something new is recorded, a little further, and die."""
        before = epochs_of(project)
        command = launch(project, "sweep", "faults", "hardware.workers=1", *arguments)
        wait_until(lambda: epochs_of(project) > before or not command.running, seconds=60)
        time.sleep(draw.uniform(0.0, 0.5))
        kill(command)
        return command

    everything = lambda command: command.signal(signal.SIGKILL)  # noqa: E731
    session(everything, "hardware.checkpoint=0")
    session(everything, "hardware.checkpoint=1000")
    for path in project.glob(".fanin/faults/runs/*/spool.jsonl"):
        tear(path)
    coordinator = session(lambda command: command.process.kill(), "hardware.checkpoint=0")
    assert "cut a torn record" in coordinator.output
    wait_until(lambda: not coordinator.survivors)  # workers end by themselves
    code, last = fanin("hardware.workers=1")
    assert code == 0, last
    attempts = [spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)]
    assert sum(attempts) > len(attempts), "nothing was interrupted: the kills came too late to show anything"

    other = beside(project, tmp_path_factory.mktemp("undisturbed"))
    code, undisturbed = fanin("hardware.workers=2", project=other)
    assert code == 0, undisturbed
    found, expected = final(project), final(other)
    assert len(found[1]) > 4 * 25 * 4
    assert found[0] == {run.name: ["FINISHED"] for run in folders(project)} == expected[0]
    assert found[1] == expected[1]
    assert leaderboard(last) == leaderboard(undisturbed)


def test_a_worker_that_dies_is_named_and_its_run_retried_while_the_others_go_on(project, launch):
    write_study(project, epochs=150, images=400)
    command = launch(project, "sweep", "faults", "hardware.workers=2", "hardware.patience=10", "tracking=none")
    done = set()
    for number, cause in (
        (signal.SIGKILL, "killed by SIGKILL (out of memory, or killed by hand)"),
        (signal.SIGSEGV, "killed by SIGSEGV (crash in native code)"),
        (signal.SIGSTOP, "hung (no record for 10 s)"),
    ):
        worker, run = command.worker_of(lambda run: run.name not in done)
        done.add(run.name)
        name = json.loads((run / "run.json").read_text())["name"]
        others = [one for one in command.workers if one.pid != worker.pid]
        os.kill(worker.pid, number)
        command.wait_for(f"{name}: worker {cause}; tried again (1 of 2)")
        assert all(one.is_running() for one in others)
    assert command.end() == 0, command.output
    attempts = {run.name: spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)}
    assert attempts == {run.name: 1 + (run.name in done) for run in folders(project)}
    assert "This session: 4 finished." in command.output


def test_a_run_that_kills_every_worker_fails_with_the_reason_and_the_rest_goes_on(project, launch):
    write_study(project, initializers="he_normal", replicates=1, epochs=2)
    models = "mine.Suicide,mine.Glutton,mine.Clumsy,mine.Net"
    choice = ("model=softmax", f"model._target_={models}", "initializer=he_normal", "hardware.workers=1")
    command = launch(project, "sweep", "faults", *choice, "study.preflight=warn")
    assert command.end() == 1, command.output
    ends = {run["overrides"]["model._target_"]: outcome(folder) for folder, run in specifications(project)}
    lines = (project / "mine.py").read_text().splitlines()
    places = {text: f"(mine.py, line {1 + number})" for number, line in enumerate(lines) for text in [line.strip()]}
    glutton = places['raise MemoryError("cannot allocate 640 GiB")']
    clumsy = places['raise RuntimeError("a bug of the user\'s")']
    assert {model: (end.status, end.reason) for model, end in ends.items()} == {
        "mine.Suicide": ("FAILED", "worker killed by SIGSEGV (crash in native code), 3 times in a row"),
        "mine.Glutton": ("FAILED", f"MemoryError: cannot allocate 640 GiB {glutton}"),
        "mine.Clumsy": ("FAILED", f"RuntimeError: a bug of the user's {clumsy}"),
        "mine.Net": ("FINISHED", None),
    }
    assert sorted(sum(children(project).values(), [])) == ["FAILED", "FAILED", "FAILED", "FINISHED"]
    for cause in ("SIGSEGV (crash in native code)", f"MemoryError: cannot allocate 640 GiB {glutton}"):
        tries = [f"{cause}; tried again ({n} of 2)" in command.output for n in (1, 2, 3)]
        assert tries == [True, True, False]
    assert not command.survivors


STEPS = 10  # an epoch: 200 images in batches of 20
COUNTED = ("model=softmax", "model._target_=mine.Counted")


def test_ctrl_c_ends_a_sweep_in_final_states_and_so_does_sigterm_and_nothing_is_trained_twice(project, launch, fanin):
    write_study(project, epochs=400, replicates=1)
    (project / "slow").write_text("0.02")
    choice = (*COUNTED, "hardware.workers=2", "hardware.checkpoint=1000")
    for number in (signal.SIGINT, signal.SIGTERM):
        recorded = epochs_of(project)
        command = launch(project, "sweep", "faults", *choice)
        wait_until(lambda r=recorded, c=command: epochs_of(project) > r + 5 or not c.running, seconds=60)
        shown = lambda: sum(statuses(project).values(), []) == ["RUNNING"] * 3  # noqa: E731
        wait_until(lambda s=shown, c=command: s() or not c.running, seconds=60)
        if number == signal.SIGINT:
            code, output = fanin(*choice)
            assert code == 2 and f"is in use by process {command.process.pid} on " in output
        command.signal(number)
        assert command.end(seconds=30) == 130, command.output
        assert sum(statuses(project).values(), []) == ["KILLED"] * 3, command.output
        assert all(outcome(run).reason.startswith("interrupted") for run in folders(project))
        wait_until(lambda c=command: not c.survivors)
    (project / "slow").unlink()
    code, output = fanin(*choice)
    assert code == 0, output
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)}
    assert {len(values) for values in curves(project).values()} == {1}
    assert len((project / "steps").read_text()) == 2 * 400 * STEPS


def test_a_run_whose_worker_died_goes_on_from_its_checkpoint_and_without_one_from_the_start(project, launch):
    write_study(project, initializers="he_normal", epochs=15, replicates=1)
    for checkpoint in (0, 1000):
        (project / "slow").write_text("0.02")
        name = f"every{checkpoint}"
        names = (f"study.name={name}", f"hardware.checkpoint={checkpoint}", "tracking=none")
        command = launch(project, "sweep", "faults", *COUNTED, *names)
        wait_until(lambda n=name, c=command: epochs_of(project, n) > 6 or not c.running, seconds=60)
        worker = command.workers[0]
        worker.suspend()  # so that it is dead when its steps are counted
        before = len((project / "steps").read_text())
        assert before > 5 * STEPS
        (project / "slow").unlink()
        worker.kill()
        assert command.end() == 0, command.output
        trained = len((project / "steps").read_text())
        if checkpoint == 0:
            assert 15 * STEPS <= trained <= 15 * STEPS + 2 * STEPS
        else:
            assert trained == 15 * STEPS + before
        (project / "steps").unlink()


@pytest.mark.slow
def test_what_does_not_stop_in_time_is_killed_and_a_second_ctrl_c_does_not_wait(project, launch):
    write_study(project, replicates=1)
    endless = ("sweep", "faults", "model=softmax", "model._target_=mine.Endless", "tracking=none")
    for signals, seconds in ((1, 30), (2, GRACE)):
        command = launch(project, *endless)
        wait_until(lambda c=command: len(list(open_runs(project))) == 2 or not c.running, seconds=60)
        began = time.monotonic()
        for _ in range(signals):
            command.signal(signal.SIGINT)
            time.sleep(0.2)  # the kernel merges signals that are pending
        assert command.end() == 130, command.output
        assert time.monotonic() - began < seconds
        wait_until(lambda c=command: not c.survivors)
    assert len(list(open_runs(project))) == 2  # the second time, nobody had the time to write an end


# ---- from one session to the next, without kills ----


def attempts(project):
    return {run.name: spool.digest(spool.read(run / "spool.jsonl")[0]).attempts for run in folders(project)}


def test_a_changed_question_is_refused_with_its_changes_an_extension_repeats_nothing_and_new_starts_over(
    project, fanin
):
    write_study(project)
    assert fanin()[0] == 0
    before = final(project)
    code, output = fanin("epochs=4", "optimizer.lr=0.01")
    assert code == 2
    for text in ("epochs: 3 -> 4", "lr: 0.001 -> 0.01", "--new"):
        assert text in output
    assert "--extend" not in output  # which would be refused
    code, output = fanin("study.replicates=3")
    assert code == 2 and "--extend" in output and "--new" in output
    code, output = fanin("initializer=he_normal", "--extend")
    assert code == 2 and "xavier_uniform" in output
    assert final(project) == before
    assert fanin("initializer=he_normal,xavier_uniform,zeros", "study.replicates=3", "--extend")[0] == 0
    assert len(attempts(project)) == 9 and set(attempts(project).values()) == {1}
    extended = final(project)
    assert before[1].items() <= extended[1].items()
    assert len(extended[0]) == 9

    assert fanin("epochs=1", "--new")[0] == 0
    assert set(attempts(project).values()) == {1} and len(attempts(project)) == 4
    parents = "select t.value, count(*) from tags t join runs r using (run_uuid) where t.key = 'mlflow.parentRunId'"
    counts = query(project, f"{parents} and r.status = 'FINISHED' and r.lifecycle_stage = 'active' group by t.value")
    assert sorted(count for _, count in counts) == [4, 9]
    assert extended[1].items() <= curves(project).items()


def test_studies_that_are_put_aside_in_one_millisecond_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.sweep.folder.stamp", lambda: "then")
    path = tmp_path / ".fanin" / "one"
    for _ in range(3):
        folder = StudyFolder(path)
        folder.run("a-r0").mkdir()
        folder.close()
        assert archive(path)
    assert [one.name for one in sorted(path.parent.iterdir())] == [
        *("one.until-then", "one.until-then-2", "one.until-then-3")
    ]
    assert all((one / "runs" / "a-r0").exists() for one in path.parent.iterdir())


def test_what_was_never_shipped_reaches_mlflow_with_the_next_session_under_the_study_it_belongs_to(project, fanin):
    write_study(project)
    assert fanin("tracking=none")[0] == 0
    assert children(project) == {}
    old = {run.name for run in folders(project)}
    assert fanin("epochs=2", "--new")[0] == 0
    new = {run.name for run in folders(project)}
    assert children(project) == {key: ["FINISHED"] for key in old | new}


def test_a_diverging_run_is_a_result_counts_as_a_guess_and_can_end_its_variant(project, fanin):
    write_study(project)
    choice = ("optimizer=sgd", "optimizer.lr=0.1,1e6", "initializer=he_normal", "study.replicates=3")
    code, output = fanin(*choice)
    assert code == 0
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)} and len(folders(project)) == 6
    diverged = {key for (key, metric, _), value in curves(project).items() if metric == "diverged" and value == [1.0]}
    assert len(diverged) == 3
    assert ["2", "1e+06", "0.1000", "±", "0.0000", "3"] in [row[:6] for row in leaderboard(output)], output
    runs = {}
    for workers in (1, 2):
        code, output = fanin(*choice, "study.on_divergence=stop", f"hardware.workers={workers}", "--new")
        assert code == 0
        assert "3 finished" not in output and "4 finished" in output  # three, and one that diverged
        runs[workers] = {run.name for run in folders(project)}
    assert runs[1] == runs[2] and len(runs[1]) == 4


def test_a_pruned_run_ends_in_mlflow_with_the_reason_and_its_variant_gets_no_other(project, fanin):
    write_study(project)
    choice = ("hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.3", "initializer=he_normal,zeros")
    code, output = fanin(*choice, "hydra.sweeper.pruner.n_warmup_steps=4", "epochs=8")
    assert code == 0 and "2 finished, 1 pruned" in output
    pruned = {key: reason for key, reason in tagged(project, "fanin.reason").items() if reason.startswith("pruned")}
    (reason,) = pruned.values()
    assert re.fullmatch(r"pruned: threshold: val/accuracy 0\.\d+ at epoch 4", reason)
    assert sorted(sum(children(project).values(), [])) == ["FINISHED", "FINISHED", "KILLED"]
    assert {step for key, _, step in curves(project) if key in pruned} == {0, 1, 2, 3, 4}
    again = final(project)
    assert fanin(*choice, "hydra.sweeper.pruner.n_warmup_steps=4", "epochs=8")[0] == 0
    assert final(project) == again


def test_a_budget_ends_a_sweep_and_the_next_session_goes_on_from_there(project, fanin):
    write_study(project)
    code, output = fanin("hydra.sweeper.max_epochs=7", "tracking=none", "hardware.workers=1")
    assert code == 0 and "budget: 7 epochs" in output
    trained = epochs_of(project)
    assert trained == 3 * (1 + 3)  # the run in which the seventh falls is not cut short
    code, output = fanin("hydra.sweeper.max_epochs=7", "tracking=none")
    assert code == 0 and epochs_of(project) == trained

    code, output = fanin("hydra.sweeper.timeout=0.001", "tracking=none", "epochs=3")
    assert code == 0 and "budget: time is up" in output
    assert not list(open_runs(project))

    code, output = fanin()
    assert code == 0 and epochs_of(project) == 4 * (1 + 3)
    assert children(project) == {run.name: ["FINISHED"] for run in folders(project)}

    code, output = fanin("hydra.sweeper.target=0.05", "hardware.workers=1", "--new")
    assert code == 0 and "budget: target reached" in output
    done = sum(outcome(run).status == "FINISHED" for run in folders(project) if outcome(run))
    assert 0 < done < 4
    code, output = fanin("hydra.sweeper.target=0.05")
    assert code == 0 and "budget: target reached" in output
    assert sum(outcome(run).status == "FINISHED" for run in folders(project) if outcome(run)) == done
    assert {"RUNNING"}.isdisjoint(sum(statuses(project).values(), []))


def tagged(project, tag):
    """fanin.run -> the value of a tag of its MLflow run."""
    pairs = "select k.value, t.value from tags k join tags t using (run_uuid) where k.key = 'fanin.run' and t.key = ?"
    return dict(query(project, pairs, tag))


def test_a_killed_search_goes_on_within_its_budget_and_tries_nothing_twice(project, launch, fanin, caplog):
    write_study(project, epochs=30, images=600)
    search = ("hydra/sweeper=tpe", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2")
    space = ("initializer=he_normal,zeros,normal_002", "optimizer.lr=tag(log,interval(0.0001,1))")
    choice = (*search, *space, "hydra.sweeper.max_trials=8", "hardware.checkpoint=0")
    journal = project / ".fanin" / "faults" / "journal.log"
    draw = random.Random(9)
    for _ in range(2):
        before = epochs_of(project)
        session = launch(project, "sweep", "faults", *choice)
        wait_until(lambda b=before, s=session: epochs_of(project) > b + 20 or not s.running, seconds=60)
        time.sleep(draw.uniform(0, 0.5))
        session.signal(signal.SIGKILL)
        session.end()
    with journal.open("ab") as file:
        file.write(b'{"op_code":8,"worker_')  # torn by the kill
    with caplog.at_level("WARNING"):
        code, output = fanin(*choice)
    assert code == 0, output
    assert "cut 21 unreadable bytes" in caplog.text

    storage = JournalStorage(JournalFileBackend(str(journal)))
    (study,) = optuna.get_all_study_names(storage)
    trials = [
        trial
        for trial in optuna.load_study(study_name=study, storage=storage).trials
        if "fanin.repeats" not in trial.user_attrs
    ]
    assert len(trials) == 8
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(trial.params.values()) for trial in trials}) == 8

    pruned = {key for key, reason in tagged(project, "fanin.reason").items() if reason.startswith("pruned: median")}
    assert len(pruned) == sum(trial.state == TrialState.PRUNED for trial in trials)
    expected = {run.name: ["KILLED" if run.name in pruned else "FINISHED"] for run in folders(project)}
    assert children(project) == expected and len(expected) == 2 * 8 - len(pruned)
    assert {len(values) for values in curves(project).values()} == {1}
    every = final(project)
    code, output = fanin(*choice)
    assert code == 0 and "nothing was left to do" in output
    assert final(project) == every


def test_a_killed_race_drops_the_same_variant_as_an_undisturbed_one(project, launch, fanin, tmp_path_factory):
    write_study(project, initializers="he_normal,zeros", replicates=6, epochs=12, images=600)
    race = ("study.racing={min_replicates: 2}", "tracking=none")
    session = launch(project, "sweep", "faults", *race, "hardware.workers=2")
    wait_until(lambda: sum(bool(outcome(run)) for run in folders(project)) >= 3 or not session.running, seconds=60)
    session.signal(signal.SIGKILL)
    session.end()
    code, last = fanin(*race, "hardware.workers=2")
    assert code == 0, last
    other = beside(project, tmp_path_factory.mktemp("undisturbed"))
    code, undisturbed = fanin(*race, "hardware.workers=1", project=other)
    assert code == 0, undisturbed
    assert [run.name for run in folders(project)] == [run.name for run in folders(other)]
    assert leaderboard(last) == leaderboard(undisturbed)
    assert len(folders(project)) < 12, "nothing was dropped"
