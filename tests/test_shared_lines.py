"""A study's copy in a real PostgreSQL over lines that are slow, and with files that are not as they should be."""

from contextlib import closing

import pytest
from databases import lacking
from recorded import make_run, make_study, new_database, stored, train
from shared_state import files, held, machines
from wire import wire

from fanin.errors import ConfigError
from fanin.folders import Folder, declare_study
from fanin.shared import copies, glance
from fanin.shared.exchange import Exchange
from fanin.shared.late import Latecomer
from fanin.shipping import ship, sync
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")

SLOW = 800_000  # bytes a second


def make_large_run(study, replicate, *, size=400_000):
    """A run whose spool has `size` bytes, in lines of 10 kB."""
    metrics = {f"weight/layers.{i}/rms": i / 7 for i in range(240)}
    epochs = size // 10_000
    return train(make_run(study, replicate=replicate), last=epochs, metrics=lambda epoch: metrics)


def test_a_line_that_takes_longer_for_all_than_an_answer_may_take_carries_all(server, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    study = make_study(one)
    runs = [make_large_run(study, replicate) for replicate in range(3)]
    size = sum(run.spool.stat().st_size for run in runs)
    monkeypatch.setattr("fanin.shared.exchange.ANSWER", limit := 0.9 * size / SLOW)
    monkeypatch.setattr("fanin.shared.exchange.FETCHED", limit)
    monkeypatch.setattr(copies, "PIECE", 100_000)
    monkeypatch.setattr(copies, "AT_ONCE", 300_000)
    with wire(server.cluster.port, rate=SLOW) as network:
        with held(server, one, port=network.port) as (exchange, _):
            exchange.send(runs)
            assert server.ask("select generation from fanin_study") == ["1"]
        pieces = server.ask("select file from fanin_piece where length(data) > 100000")
        assert pieces == []
        with held(server, two, port=network.port) as (_, folder):
            assert files(folder.path) == files(study.path)


def test_lines_sent_again_with_more_behind_them_take_the_place_of_those_that_came_through(monkeypatch):
    monkeypatch.setattr(copies, "PIECE", 10)
    lines = b"12345\n123\n1\n123456789012345\n1\n123456789\n1234\n"
    ends = [i + 1 for i, byte in enumerate(lines) if byte == 10]
    assert list(copies._pieces(lines)) == [
        b"12345\n123\n",
        b"1\n",
        b"123456789012345\n",
        b"1\n",
        b"123456789\n",
        b"1234\n",
    ]
    for first in ends:
        for second in ends:
            kept: dict[int, bytes] = {}
            for sent in (lines[:first], lines[: max(first, second)]):
                start = 0
                for piece in copies._pieces(sent):
                    kept[start] = piece
                    start += len(piece)
            assert b"".join(kept[start] for start in sorted(kept)) == lines[: max(first, second)]


def test_a_file_that_cannot_be_read_does_not_cost_the_hold_of_a_study(server, tmp_path):
    one, two, _, opened = machines(tmp_path)
    with held(server, one) as (exchange, _):
        (opened.path / "run.json").rename(aside := opened.path / "aside")
        (opened.path / "run.json").mkdir()
        with pytest.raises(TrackingDown, match=r"run\.json: Is a directory"):
            exchange.send([opened])
        with pytest.raises(ConfigError, match="is in use"):
            Exchange(server.address(), two / ".fanin" / "initializers").take()
        assert server.ask(f"select file from fanin_piece where file like '%{opened.path.name}%'") == []
        (opened.path / "run.json").rmdir()
        aside.rename(opened.path / "run.json")
        exchange.send([opened])
    with held(server, two) as (_, folder):
        assert (folder.path / "runs" / opened.path.name / "spool.jsonl").read_bytes() == opened.spool.read_bytes()


def test_a_file_that_is_unlike_its_copy_does_not_cost_the_hold_of_a_study(server, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    ended.spool.write_bytes(ended.spool.read_bytes()[:100])
    with closing(Exchange(server.address(), ended.study.path)) as exchange:
        exchange.reopen(1)
        with pytest.raises(TrackingRefused, match="has other records than this folder"):
            exchange.send([ended])
        with pytest.raises(ConfigError, match="is in use"):
            Exchange(server.address(), two / ".fanin" / "initializers").take()


def test_a_dry_run_fetches_the_ends_of_spools_only(server, tmp_path):
    one = tmp_path / "one"
    study = make_study(one)
    runs = [make_large_run(study, replicate) for replicate in range(2)]
    with held(server, one) as (exchange, _), wire(server.cluster.port) as network:
        exchange.send(runs)
        address = server.address("reader", port=network.port)
        assert glance.ended(address, "initializers") == {run.path.name for run in runs}
        assert 0 < network.carried < 50_000 < runs[0].spool.stat().st_size


def test_sync_has_nothing_to_add_to_a_twin_that_its_mlflow_does_not_have(server, tmp_path):
    """The run was deleted for good there, or the study's new owner ships to another MLflow."""
    one, two, ended, _ = machines(tmp_path)
    ended.artifacts.mkdir()
    (ended.artifacts / "weights.pt").write_text("weights")
    theirs, ours = new_database(two / "theirs.db"), new_database(one / "ours.db")
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    with held(server, two) as (exchange, folder):
        declare_study(two, "initializers", question="Which one?")
        there = Folder(folder.path / "runs" / ended.path.name)
        assert ship(there, tracker=Tracker(project=two, uri=f"sqlite:///{theirs}"))
        exchange.send([there])
    with closing(Latecomer(server.address())) as late:
        assert late.twin(ended)
        report = sync(one, tracker=Tracker(project=one, uri=f"sqlite:///{ours}"), guard=late, twin=late.twin)
    assert report.left == {} and report.files == 0 and len(report.gone) == 1
    assert (ended.artifacts / "weights.pt").exists() and stored(ours, "select * from runs") == []
