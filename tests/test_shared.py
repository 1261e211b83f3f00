"""The copy of a study in a real PostgreSQL: what a machine sends, the next one gets, and sync brings later."""

import socket
import time
from contextlib import closing
from functools import partial

import pytest
from databases import lacking
from recorded import make_run, new_database, stored, stored_runs, train, wait_until
from shared_state import files, held, keeping, machines
from wire import wire

from fanin import spool
from fanin.doctor.store import tracking
from fanin.errors import ConfigError
from fanin.folders import Folder, declare_study, write_json
from fanin.shared import connection, glance
from fanin.shared.exchange import Exchange
from fanin.shared.late import Latecomer
from fanin.shipping import StudyLost, ship, sync
from fanin.sweep.folder import StudyFolder
from fanin.sweep.sharing import Shared
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")


def test_another_machine_gets_every_record_and_goes_on_from_there(server, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    (opened.path / "checkpoint.pt").write_bytes(b"weights")
    with held(server, one) as (exchange, _):
        (one / ".fanin" / "initializers" / "journal.log").write_text('{"op_code":0}\n{"op')
        exchange.send([ended, opened])
    shared = files(one / ".fanin" / "initializers")
    with held(server, two) as (exchange, folder):
        shared["journal.log"] = b'{"op_code":0}\n'  # a record that is being written is not sent
        assert files(folder.path) == shared
        there = Folder(folder.run(opened.path.name))
        assert not there.checkpoint.exists()
        train(there, first=1, last=2)
        exchange.send([there])
    with held(server, one) as (_, folder):
        (folder.path / "journal.log").write_bytes(shared["journal.log"])
        assert files(folder.path) == files(two / ".fanin" / "initializers")
        digest = spool.digest(spool.read(opened.spool)[0])
        assert digest.attempts == 2 and digest.last_epoch == 2 and digest.final
        assert not opened.checkpoint.exists(), "it is of an attempt that was gone on with elsewhere"


def test_what_only_one_machine_has_is_kept_there_and_shared_when_it_sweeps_again(server, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])  # the machine dies before it could send the other run
    with held(server, two) as (exchange, folder):
        assert [path.name for path in folder.path.glob("runs/*")] == [ended.path.name]
    with held(server, one) as (exchange, _):
        with keeping(exchange) as keeper:
            keeper.secure(opened)
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_a_file_whose_end_was_cut_off_or_written_anew_is_copied_as_it_is_now(server, tmp_path):
    one, two, *_ = machines(tmp_path)
    journal = one / ".fanin" / "initializers" / "journal.log"
    lines = [f'{{"op_code":{i}}}\n' for i in range(6)]
    for kept, added in [(6, ""), (6, "more\n"), (3, "other\n"), (0, "anew\n"), (0, "")]:
        journal.write_text("".join(lines))
        with held(server, one) as (exchange, _):
            exchange.send()
        with held(server, one) as (exchange, _):
            journal.write_text("".join(lines[:kept]) + added)  # as repairing does, after the study was fetched
            exchange.send()
        with held(server, two) as (_, folder):
            copy = folder.path / "journal.log"
            assert (copy.read_text() if copy.exists() else "") == journal.read_text()
            copy.unlink(missing_ok=True)


def test_a_study_in_use_is_refused_with_its_owner_and_free_as_soon_as_that_one_is_gone(server, tmp_path):
    one, two, *_ = machines(tmp_path)
    with held(server, one):
        with pytest.raises(ConfigError, match=r"'initializers' is in use by .+@.+ \(process \d+\), since 20"):
            Exchange(server.address(), two / ".fanin" / "initializers").take()
        with held(server, two, "another"):
            pass
    with held(server, two) as (exchange, _):
        assert exchange.generation == 2


def test_a_broken_session_is_made_again_and_is_the_same_hold(server, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        assert server.cut_off()
        with pytest.raises(TrackingDown):
            exchange.send([ended])
        exchange.send([ended])
        with pytest.raises(ConfigError, match="is in use"):
            Exchange(server.address(), two / ".fanin" / "initializers").take()
    assert server.ask("select generation from fanin_study") == ["1"]


def test_a_machine_that_was_cut_off_writes_nothing_over_what_the_next_owner_has(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (first, _):
        first.send([ended])
        server.cut_off()
        with held(server, two) as (second, folder):
            second.send()
            before = server.ask("select file, md5(data) from fanin_piece order by file, start")
            with keeping(first) as keeper:
                wait_until(lambda: keeper.lost)
                assert "'initializers' was taken over by" in keeper.lost
                with pytest.raises(StudyLost):
                    keeper.secure(opened)
            assert server.ask("select file, md5(data) from fanin_piece order by file, start") == before
            assert server.ask("select generation from fanin_study") == ["2"]


def test_each_write_asks_for_the_number_of_its_hold_even_on_a_session_that_lives(server, tmp_path):
    one, _, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
        server.ask("update fanin_study set generation = 7, holder = 'ada@elsewhere'")
        with pytest.raises(StudyLost, match="ada@elsewhere"):
            exchange.send([opened])
        assert server.ask(f"select count(*) from fanin_piece where file like '%{opened.path.name}%'") == ["0"]


def test_while_postgres_is_down_noting_costs_nothing_and_all_is_sent_when_it_is_back(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _), keeping(exchange) as keeper:
        server.stop()
        began = time.monotonic()
        for run in (ended, opened):
            keeper.note(run)
        assert time.monotonic() - began < 5
        with pytest.raises(TrackingDown, match=f"127.0.0.1:{server.cluster.port}/optuna: "):
            keeper.secure(ended)
        server.start()
        wait_until(lambda: len(server.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 2)
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_a_session_that_nobody_answers_is_ended_and_made_again_when_the_network_is_back(server, tmp_path, monkeypatch):
    """Behind a tunnel whose far end is cut off: TCP finds nothing wrong."""
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    monkeypatch.setattr("fanin.shared.hold.WAIT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with wire(server.cluster.port) as network, held(server, one, port=network.port) as (exchange, _):
        exchange.send([ended, opened])
        monkeypatch.setattr("fanin.shared.exchange.ANSWER", 0.5)  # before there is a thread that counts by it
        monkeypatch.setattr(connection, "PATIENCE", 2)  # the least that libpq takes
        with keeping(exchange) as keeper:
            with network.cut():
                late = train(make_run(ended.study, replicate=2))
                place = f"^tracking.state: 127.0.0.1:{network.port}/optuna: "
                for _ in range(2):
                    began = time.monotonic()
                    keeper.note(late)
                    assert time.monotonic() - began < 5
                    # the thread may have waited for the answer, and found the session to be dead, before us
                    with pytest.raises(TrackingDown, match=f"{place}(no answer for 0.5 s|.*timeout)"):
                        keeper.secure(opened)
                    assert time.monotonic() - began < 25
                monkeypatch.setattr("fanin.shared.exchange.ANSWER", connection.ANSWER)  # what follows takes its time
                with pytest.raises(ConfigError, match="is in use"):
                    Exchange(server.address(), two / ".fanin" / "initializers").take()
            wait_until(lambda: len(server.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 3)
            assert not keeper.lost
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")
    assert server.ask("select generation from fanin_study") == ["2"]


def test_a_file_that_cannot_be_read_does_not_end_the_thread_that_copies(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _), keeping(exchange) as keeper:
        (opened.path / "run.json").rename(aside := opened.path / "aside")
        (opened.path / "run.json").mkdir()
        with pytest.raises(TrackingDown, match=r"run\.json: Is a directory"):
            keeper.secure(opened)
        keeper.note(ended)
        with pytest.raises(TrackingDown):
            keeper.secure(opened)
        assert keeper._thread.is_alive()
        (opened.path / "run.json").rmdir()
        aside.rename(opened.path / "run.json")
        wait_until(lambda: len(server.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 2)
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_a_session_that_was_ended_as_idle_in_a_transaction_counts_as_down_and_is_made_again(
    server, tmp_path, monkeypatch
):
    one, _, ended, _ = machines(tmp_path)
    monkeypatch.setitem(connection.SESSION, "idle_in_transaction_session_timeout", "100ms")
    with held(server, one) as (exchange, _):
        with (
            pytest.raises(TrackingDown, match=f"127.0.0.1:{server.cluster.port}/optuna: terminating connection due to"),
            exchange._session() as session,
            session.transaction(),
        ):  # a machine that slept, or was stopped, between two statements
            session.execute("select")
            ours = f"select 1 from pg_stat_activity where pid = {session.info.backend_pid}"
            wait_until(lambda: not server.ask(ours))
            session.execute("select")
        exchange.send([ended])


@pytest.mark.parametrize("query", ["select 1 / 0", "select nothing", "insert into fanin_version values (1)"])
def test_whatever_else_the_database_objects_to_is_a_refusal(server, tmp_path, query):
    with held(server, tmp_path) as (exchange, _):
        with pytest.raises(TrackingRefused, match=f"127.0.0.1:{server.cluster.port}/optuna: "):
            with exchange._session() as session:
                session.execute(query)
        exchange.send()


@pytest.mark.parametrize("fault", [KeyError("a bug"), TrackingDown("another server")])
def test_a_fault_in_what_follows_a_copy_is_said_once_and_the_copy_goes_on(server, tmp_path, caplog, monkeypatch, fault):
    monkeypatch.setattr("fanin.shared.keeper.GATHER", 0.0)
    one, two, ended, opened = machines(tmp_path)

    def fail():
        raise fault

    with held(server, one) as (exchange, _):
        with keeping(exchange, after=fail) as keeper:
            for run in (ended, opened):
                keeper.note(run)
                there = f"select 1 from fanin_piece where file like '%{run.path.name}/spool%'"
                wait_until(partial(server.ask, there))
                wait_until(lambda: caplog.messages)
        (said,) = caplog.messages
        assert (
            f"'initializers' is still copied to PostgreSQL, but shown nowhere else any more: {type(fault).__name__}"
            in said
        )
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_what_a_dead_machine_had_not_shipped_is_shipped_once_by_the_next_owner(server, tmp_path, capsys):
    one, two, ended, opened = machines(tmp_path)
    for run in (ended, opened):
        run.artifacts.mkdir()
        (run.artifacts / "weights.pt").write_text(run.path.name)
    tracker = Tracker(project=two, uri="sqlite:///mlflow.db")
    database = new_database(two / "mlflow.db")
    another = train(make_run(ended.study, replicate=2))
    with held(server, one) as (exchange, _):
        exchange.send([ended, another, opened])  # and then it dies; of what follows it had shipped one run,
        with keeping(exchange) as keeper:
            ship(another, tracker=Tracker(project=one, uri=f"sqlite:///{database}"), guard=keeper)
    exchange = Exchange(server.address(), two / ".fanin" / "initializers")
    exchange.take()
    with closing(StudyFolder(exchange.path)) as folder:
        Shared(exchange).fetch(folder)
        assert "3 runs of other machines" in (said := capsys.readouterr().out)
        host = socket.gethostname()
        assert f"  1 of them ended before MLflow had their files, which are on {host}: `fanin sync` there adds" in said
        assert f"  what was under way on {host} is trained again from epoch 1: its checkpoints are there" in said
        folder.admit({"space": {}, "replicates": 1, "metric": ["val/loss"]}, extend=False)
        exchange.own()
        folder.bury()
        declare_study(two, "initializers", question="Which one?", swept=["initializer", "optimizer.lr"])
        with keeping(exchange) as keeper:
            for run in [Folder(path) for path in sorted(folder.path.glob("runs/*"))]:
                assert ship(run, tracker=tracker, guard=keeper)
    exchange.close()
    assert [row[1] for row in stored_runs(database)] == ["FINISHED", "KILLED", "FINISHED"]
    steps = stored(database, "select run_uuid, key, step from metrics where key in ('val/loss', 'val/accuracy')")
    assert len(steps) == len(set(steps)) == 2 * (3 + 2 + 3)

    tables = [f"select * from {table} order by 1, 2, 3" for table in ("metrics", "runs", "params")]
    before = [stored(database, table) for table in tables]
    assert not [*tmp_path.glob("*/mlartifacts/**/weights.pt")]
    for added in (1, 0):  # the dead machine comes back
        with closing(Latecomer(server.address())) as late:
            report = sync(one, tracker=Tracker(project=two, uri="sqlite:///mlflow.db"), guard=late, twin=late.twin)
        assert report.files == added and not report.left and len(report.gone) == 1
        (weights,) = tmp_path.glob("*/mlartifacts/**/weights.pt")
        assert weights.read_text() == ended.path.name, "not of the run that is trained again"
    assert opened.artifacts.exists() and not ended.artifacts.exists()
    assert [stored(database, table) for table in tables] == before


def test_files_of_a_run_that_was_done_again_elsewhere_are_not_mixed_with_those_of_the_other_one(server, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    ended.artifacts.mkdir()
    with held(server, one):
        pass  # it dies before it could send the run
    with held(server, two) as (exchange, folder):
        again = train(make_run(Folder(folder.path)), clock=20_000)
        assert again.path.name == ended.path.name
        exchange.send([again])
        with closing(Latecomer(server.address())) as late:
            assert late.twin(ended) == late.twin(again) == "", "shipped by nobody"
        state = {"uri": "sqlite:///", "run": "7", "offset": again.spool.stat().st_size, "status": "FINISHED"}
        write_json(again.path / "shipped.json", state)
        exchange.send([again])
        with closing(Latecomer(server.address())) as late:
            assert late.twin(again) == "7" and late.twin(ended) == ""


def test_a_dry_run_counts_what_other_machines_have_done_and_takes_hold_of_nothing(server, tmp_path, monkeypatch):
    one, _, ended, opened = machines(tmp_path)
    assert glance.ended(server.address("reader"), "initializers") == frozenset(), "nobody has kept a study there"
    with held(server, one) as (exchange, _):
        exchange.send([opened])
        train(opened, first=2, last=3, end=None)
        exchange.send([ended, opened])  # in pieces
        assert glance.ended(server.address("reader"), "initializers") == {ended.path.name}
        assert glance.ended(server.address("reader"), "another") == frozenset()
        spool.bury(opened.spool, reason="interrupted")
        exchange.send([opened])
        assert glance.ended(server.address("reader"), "initializers") == {ended.path.name}
    assert server.ask("select generation from fanin_study") == ["1"]


def test_doctor_does_not_send_to_sync_the_runs_that_another_machine_ships_by_now(server, tmp_path):
    def told(state):
        return [one.text for one in tracking(one, {"uri": "sqlite:///x.db", "artifacts": None}, state=state)]

    one, two, *_ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send()
    assert len(told(server.address())) == 2 and told(server.address())[1].startswith("2 runs are in .fanin/ and not")
    with held(server, two):
        assert glance.is_taken_over(server.address("reader"), one / ".fanin" / "initializers")
    assert len(told(server.address())) == 1
    assert len(told(server.address(port=9))) == len(told(None)) == 2, "nobody can tell"


# ---- fanin sync ----


def test_what_a_sweep_left_is_brought_by_sync_unless_the_study_went_on_elsewhere(server, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    with closing(Latecomer(None)) as late, pytest.raises(TrackingRefused, match="set FANIN_STATE_URI"):
        late.secure(opened)
    with closing(Latecomer(server.address())) as late:
        late.secure(opened)
    with held(server, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")
    with closing(Latecomer(server.address())) as late, pytest.raises(StudyLost, match="was taken over by"):
        late.secure(opened)


def test_a_folder_that_has_less_than_its_copy_takes_nothing_away_from_it(server, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    whole, lines = ended.spool.read_bytes(), ended.spool.read_bytes().splitlines(keepends=True)
    ended.spool.write_bytes(b"".join(lines[:-1]))  # a backup of the folder was put back
    with closing(Latecomer(server.address())) as late, pytest.raises(TrackingRefused, match="has other records than"):
        late.secure(ended)
    with held(server, one):
        assert ended.spool.read_bytes() == whole


def test_a_sweep_that_is_refused_takes_nothing_over(server, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    exchange = Exchange(server.address(), two / ".fanin" / "initializers")
    exchange.take()
    with closing(StudyFolder(exchange.path)) as folder:
        exchange.fetch(folder.spool)
    exchange.close()  # it has another question
    with closing(Latecomer(server.address())) as late, pytest.raises(StudyLost):
        late.secure(Folder(exchange.path))
    with closing(Latecomer(server.address())) as late:
        late.secure(opened)
    with closing(Latecomer(server.address())) as late:
        late.secure(Folder(tmp_path / ".fanin" / "not shared"))
