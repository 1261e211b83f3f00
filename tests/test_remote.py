"""Workers that share no disk with the coordinator: what a run writes there is mirrored into its folder here."""

import json
import math
import threading
from pathlib import Path

import pytest
from trained import SMALL, configuration, recorded, train

from fanin import spool
from fanin.spool import Spool, SpoolBusy
from fanin.sweep.channel import Failure
from fanin.sweep.remote import Mirror, Remote, Scratch


class Coordinator:
    """Asks a Remote for its messages, and keeps the mirror."""

    def __init__(self, remote, folder, *, verdict=None):
        self.remote, self.mirror, self.verdict = remote, Mirror(folder), verdict
        self.heard = []

    def drive(self, kind, payload, *, records=math.inf):
        """Until the task is done, or has sent so many records; returns the last message's (kind, payload)."""
        self.remote.do(1, kind, payload, self.mirror.files())
        while True:
            for kind_, said, files in self.remote.hear(30.0):
                self.mirror.apply(files)
                if kind_ != "record":
                    self.mirror.close()
                    return kind_, said
                self.heard.append(said)
                if payload["judged"]:
                    self.remote.reply(self.verdict)
                if len(self.heard) == records:
                    self.remote.stop(1, "interrupted")


def payload_of(config, folder, *, judged=False):
    spec = {"spec": {"config": config}, "folder": str(folder), "judged": judged}
    return spec | {"watched": ["val/loss"], "checkpoint": 0.0}


@pytest.fixture
def trainer():
    return Remote("fanin.run:Trainer", {"threads": 1})


def test_a_run_elsewhere_leaves_here_what_a_run_here_leaves(project, trainer):
    config = configuration(*SMALL, "epochs=3", "regularization=dropout")
    local = train(config, project / "local")
    (project / "remote").mkdir()
    coordinator = Coordinator(trainer, project / "remote")
    assert coordinator.drive("run", payload_of(config, project / "remote")) == ("done", None)
    remote = recorded(project / "remote")
    assert [r["metrics"].keys() for r in remote.epochs] == [r["metrics"].keys() for r in local.epochs]
    for mine, theirs in zip(remote.epochs, local.epochs, strict=True):
        assert mine["metrics"] | {"seconds": 0} == theirs["metrics"] | {"seconds": 0}
    assert remote.end["metrics"] == local.end["metrics"] and remote.end["status"] == "FINISHED"
    assert [heard["epoch"] for heard in coordinator.heard] == [0, 1, 2, 3]
    files = {path.name for path in (project / "local" / "artifacts").iterdir()}
    assert {path.name for path in (project / "remote" / "artifacts").iterdir()} == files
    for name in ("config.yaml", "confusion_matrix.csv"):
        assert (project / "remote/artifacts" / name).read_text() == (project / "local/artifacts" / name).read_text()


def test_a_stopped_run_goes_on_with_another_worker_from_the_checkpoint_it_left_here(project, trainer):
    config = configuration(*SMALL, "epochs=6", "scheduler=cosine")
    whole = train(config, project / "whole")
    (project / "parts").mkdir()
    Coordinator(trainer, project / "parts").drive("run", payload_of(config, project / "parts"), records=2)
    left = recorded(project / "parts")
    assert left.end["status"] == "KILLED" and left.last_epoch < 6 and (project / "parts" / "checkpoint.pt").exists()
    another = Coordinator(Remote("fanin.run:Trainer", {"threads": 1}), project / "parts")
    another.drive("run", payload_of(config, project / "parts"))
    resumed = recorded(project / "parts")
    assert resumed.attempts == 2 and [r["epoch"] for r in resumed.epochs] == list(range(7))
    assert another.heard[0]["epoch"] == left.last_epoch + 1  # nothing was trained again
    assert [r["metrics"]["train/loss"] for r in resumed.epochs] == [r["metrics"]["train/loss"] for r in whole.epochs]
    assert resumed.end["metrics"] == whole.end["metrics"]


def test_data_that_were_sent_are_not_read_again(project, trainer, monkeypatch):
    from fanin import build, run

    config = configuration(*SMALL, "epochs=1")
    dataset = build.load_dataset(config)
    monkeypatch.setattr(run, "load_dataset", lambda config: pytest.fail("read"))
    (project / "run").mkdir()
    mirror = Mirror(project / "run")
    trainer.do(1, "run", payload_of(config, project / "run"), mirror.files(), dataset)
    while (message := trainer.hear(30.0)[-1])[0] == "record":
        pass
    assert message[0] == "done", message[1]
    mirror.close()


def test_a_verdict_prunes_a_run_elsewhere(project, trainer):
    (project / "run").mkdir()
    coordinator = Coordinator(trainer, project / "run", verdict="median: too bad")
    coordinator.drive("run", payload_of(configuration(*SMALL, "epochs=3"), project / "run", judged=True))
    end = recorded(project / "run").end
    assert (end["status"], end["reason"]) == ("KILLED", "pruned: median: too bad")


def test_a_task_that_raises_and_a_handler_that_cannot_be_made_are_reported():
    for task, arguments, message in (
        ("handlers:Handler", {}, "ValueError: no"),
        ("handlers:Handler", {"broken": True}, "RuntimeError: no such device"),
    ):
        remote = Remote(task, arguments)
        remote.do(1, "fail", ValueError("no"), {})
        ((kind, failure, files),) = remote.hear(60.0)
        assert (kind, files) == ("failed", {}) and isinstance(failure, Failure)
        assert failure.message.startswith(f"{message} (handlers.py, line ")


def test_a_worker_with_nothing_to_say_answers_in_time():
    assert Remote("handlers:Handler", {}).hear(0.01) == []


def test_the_calls_of_the_coordinator_do_not_wait_for_the_task():
    remote = Remote("handlers:Handler", {})
    remote.do(1, "wait_for_stop", None, {})
    assert remote.hear(60.0)[0][:2] == ("record", "begun")
    threading.Thread(target=remote.stop, args=(1, "enough")).start()
    assert remote.hear(60.0)[0][:2] == ("done", "enough")


def test_a_stop_may_overtake_its_task_and_ends_no_other():
    remote = Remote("handlers:Handler", {})
    remote.stop(1, "of the first")
    remote.do(1, "wait_for_stop", None, {})
    said = remote.hear(60.0)
    said = said if said[-1][0] == "done" else said + remote.hear(60.0)
    assert [message[:2] for message in said] == [("record", "begun"), ("done", "of the first")]
    remote.do(2, "wait_for_stop", None, {})
    assert remote.hear(60.0)[0][:2] == ("record", "begun")
    remote.stop(1, "too late")
    assert remote.hear(0.2) == []
    remote.stop(2, "enough")
    assert remote.hear(60.0)[0][:2] == ("done", "enough")


def test_only_what_is_new_travels_and_nothing_that_is_being_written(tmp_path):
    scratch = Scratch(tmp_path, {"spool.jsonl": b"one\n", "checkpoint.pt": b"1"})
    assert scratch.news() == {}
    with (tmp_path / "spool.jsonl").open("ab") as file:
        file.write(b"two\n")
    (tmp_path / "artifacts.partial").mkdir()
    (tmp_path / "artifacts.partial" / "last.pt").write_bytes(b"half")
    (tmp_path / "checkpoint.pt.partial").write_bytes(b"half")
    assert scratch.news() == {"spool.jsonl": b"two\n"}
    (tmp_path / "artifacts.partial").rename(tmp_path / "artifacts")
    (tmp_path / "checkpoint.pt.partial").replace(tmp_path / "checkpoint.pt")
    assert scratch.news() == {"artifacts/last.pt": b"half", "checkpoint.pt": b"half"}
    assert scratch.news() == {}


def test_the_end_is_recorded_after_the_artifacts_and_a_checkpoint_after_its_records(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("fanin.sweep.remote.os.replace", lambda a, b: written.append(Path(b).name))
    monkeypatch.setattr(Spool, "add", lambda self, lines: written.append("spool"))
    mirror = Mirror(tmp_path)
    mirror.apply({"checkpoint.pt": b"", "spool.jsonl": b"", "artifacts/last.pt": b"", "artifacts/a/b.txt": b""})
    assert written == ["last.pt", "b.txt", "spool", "checkpoint.pt"]
    mirror.close()


def test_the_artifacts_of_an_attempt_replace_those_of_the_one_before(tmp_path):
    mirror = Mirror(tmp_path)
    mirror.apply({"artifacts/best.pt": b"1", "artifacts/a/old.txt": b"1"})
    mirror.apply({"checkpoint.pt": b"2"})
    assert (tmp_path / "artifacts" / "a" / "old.txt").exists()
    mirror.apply({"artifacts/best.pt": b"2", "artifacts/new.txt": b"2"})
    mirror.close()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("artifacts/**/*")}
    assert files == {"artifacts/best.pt", "artifacts/new.txt"}


def test_a_mirrored_run_is_locked_as_if_its_worker_were_here(tmp_path):
    mirror = Mirror(tmp_path)
    mirror.apply({"spool.jsonl": spool.encode({"kind": "start", "time": 1, "attempt": 1, "pid": 1, "host": "far"})})
    with pytest.raises(SpoolBusy, match="process 1 on far"):
        Spool(tmp_path / "spool.jsonl", wait=0)
    mirror.close()
    Spool(tmp_path / "spool.jsonl", wait=0).close()
    assert json.loads((tmp_path / "spool.jsonl").read_text().splitlines()[0])["host"] == "far"
