"""A study's state in a real PostgreSQL: two project folders are two machines, which share nothing else."""

import signal
import socket
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from databases import lacking
from native_stack import import_stack, mlflow_server, postgres, postgres_programs
from plans import METRIC, Play, Result, make_study, open_search
from processes import Command, curves, epochs_of, leaderboard, open_runs, pauses, statuses
from projects import SLOW, new_project, write_study
from recorded import make_run, new_database, stored, stored_runs, train, wait_until
from recorded import make_study as begin_study
from servers import free_port
from wire import wire

from fanin import doctor, spool
from fanin.app import main
from fanin.errors import ConfigError
from fanin.folders import Folder, declare_study, write_json
from fanin.shared import connection, glance
from fanin.shared.exchange import Exchange
from fanin.shared.keeper import Keeper
from fanin.shared.late import Latecomer
from fanin.shipping import StudyLost, ship, sync
from fanin.sweep.adaptive import SearchPlan
from fanin.sweep.compose import Composer
from fanin.sweep.folder import StudyFolder
from fanin.sweep.launch import project_loader
from fanin.sweep.mirror import Mirror
from fanin.sweep.sharing import Local, Shared, open_state
from fanin.sweep.study import Budget
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

pytestmark = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there"),
    # MLflow 3.17 uses a loader option that SQLAlchemy 2.1 deprecates: not ours to mend
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


@dataclass
class Server:
    """The database `optuna` of docker-compose.yml."""

    cluster: object
    secrets: dict

    def address(self, user="optuna", password=None, database="optuna", port=None):
        password = password or self.secrets[f"{user.upper()}_DB_PASSWORD"]
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.cluster.port}/{database}"

    def ask(self, query):
        return self.cluster.ask(query, database="optuna", user="optuna", password=self.secrets["OPTUNA_DB_PASSWORD"])

    def cut_off(self):
        """End every session of fanin, as a server does that hears nothing from a machine any more."""
        ours = "usename = 'optuna' and pid <> pg_backend_pid()"
        return self.ask(f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}")

    def stop(self, mode="immediate"):
        self.cluster.call("pg_ctl", "stop", "-m", mode, "-s", "-D", f"{self.cluster.folder}/data")

    def start(self):
        places = f"-p {self.cluster.port} -k {self.cluster.folder} -h 127.0.0.1 -F"
        data, log = f"{self.cluster.folder}/data", f"{self.cluster.folder}/log.2"
        self.cluster.call("pg_ctl", "start", "-s", "-w", "-D", data, "-l", log, "-o", places)

    @contextmanager
    def hung(self):
        """It takes what it is sent, and does not answer."""
        pid = int((self.cluster.folder / "data" / "postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    stack, folder = import_stack(), tmp_path_factory.mktemp("secrets")
    stack.complete_env(folder / ".env")
    secrets = stack.read_env(folder / ".env")
    with postgres(postgres_programs(), secrets) as cluster:
        one = Server(cluster, secrets)
        yield one
        one.stop("fast")  # a test may have started it anew, and then it is not the fixture's child


@pytest.fixture
def clean(server):
    """A database without studies."""
    server.ask("drop table if exists fanin_piece, fanin_study, fanin_version")
    return server


# ---- the folder and its copy ----


@contextmanager
def held(server, project, name="initializers", *, port=None):
    """The study taken hold of and fetched, as a sweep does it: (exchange, the study's folder)."""
    exchange = Exchange(server.address(port=port), project / ".fanin" / name)
    exchange.take()
    folder = StudyFolder(exchange.path)
    exchange.fetch(folder.spool)
    if not (folder.path / "study.json").exists():
        folder.admit({"space": {}, "replicates": 1, "metric": ["val/loss"]}, extend=False)
    exchange.own()
    try:
        yield exchange, folder
    finally:
        folder.close()
        exchange.close()


def machines(tmp_path):
    """Project folders of two machines, the first with a study of which one run has ended and one has not."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    one.mkdir()
    study = begin_study(one)
    ended = train(make_run(study))
    opened = train(make_run(study, replicate=1), last=1, end=None)
    return one, two, ended, opened


def files(study):
    """What of a study's folder is shared: path -> content."""
    names = ("study.json", "journal.log", "spool.jsonl", "run.json", "shipped.json")
    paths = [path for path in study.rglob("*") if path.name in names and path != study / "run.json"]
    return {path.relative_to(study).as_posix(): path.read_bytes() for path in paths if path != study / "shipped.json"}


def test_another_machine_gets_every_record_and_goes_on_from_there(clean, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    (opened.path / "checkpoint.pt").write_bytes(b"weights")
    with held(clean, one) as (exchange, _):
        (one / ".fanin" / "initializers" / "journal.log").write_text('{"op_code":0}\n{"op')
        exchange.send([ended, opened])
    shared = files(one / ".fanin" / "initializers")
    with held(clean, two) as (exchange, folder):
        shared["journal.log"] = b'{"op_code":0}\n'  # a record that is being written is not sent
        assert files(folder.path) == shared
        there = Folder(folder.run(opened.path.name))
        assert not there.checkpoint.exists()
        train(there, first=1, last=2)
        exchange.send([there])
    with held(clean, one) as (_, folder):
        (folder.path / "journal.log").write_bytes(shared["journal.log"])
        assert files(folder.path) == files(two / ".fanin" / "initializers")
        digest = spool.digest(spool.read(opened.spool)[0])
        assert digest.attempts == 2 and digest.last_epoch == 2 and digest.final
        assert not opened.checkpoint.exists(), "it is of an attempt that was gone on with elsewhere"


def test_what_only_one_machine_has_is_kept_there_and_shared_when_it_sweeps_again(clean, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])  # the machine dies before it could send the other run
    with held(clean, two) as (exchange, folder):
        assert [path.name for path in folder.path.glob("runs/*")] == [ended.path.name]
    with held(clean, one) as (exchange, _):
        with _keeper(exchange) as keeper:
            keeper.secure(opened)
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


@contextmanager
def _keeper(exchange, after=None):
    keeper = Keeper(exchange, after=after)
    try:
        yield keeper
    finally:
        keeper.close(10)


def test_a_file_whose_end_was_cut_off_or_written_anew_is_copied_as_it_is_now(clean, tmp_path):
    one, two, *_ = machines(tmp_path)
    journal = one / ".fanin" / "initializers" / "journal.log"
    lines = [f'{{"op_code":{i}}}\n' for i in range(6)]
    for kept, added in [(6, ""), (6, "more\n"), (3, "other\n"), (0, "anew\n"), (0, "")]:
        journal.write_text("".join(lines))
        with held(clean, one) as (exchange, _):
            exchange.send()
        with held(clean, one) as (exchange, _):
            journal.write_text("".join(lines[:kept]) + added)  # as repairing does, after the study was fetched
            exchange.send()
        with held(clean, two) as (_, folder):
            copy = folder.path / "journal.log"
            assert (copy.read_text() if copy.exists() else "") == journal.read_text()
            copy.unlink(missing_ok=True)


def test_a_study_in_use_is_refused_with_its_owner_and_free_as_soon_as_that_one_is_gone(clean, tmp_path):
    one, two, *_ = machines(tmp_path)
    with held(clean, one):
        with pytest.raises(ConfigError, match=r"'initializers' is in use by .+@.+ \(process \d+\), since 20"):
            Exchange(clean.address(), two / ".fanin" / "initializers").take()
        with held(clean, two, "another"):
            pass
    with held(clean, two) as (exchange, _):
        assert exchange.generation == 2


def test_a_broken_session_is_made_again_and_is_the_same_hold(clean, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        assert clean.cut_off()
        with pytest.raises(TrackingDown):
            exchange.send([ended])
        exchange.send([ended])
        with pytest.raises(ConfigError, match="is in use"):
            Exchange(clean.address(), two / ".fanin" / "initializers").take()
    assert clean.ask("select generation from fanin_study") == ["1"]


def test_a_machine_that_was_cut_off_writes_nothing_over_what_the_next_owner_has(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (first, _):
        first.send([ended])
        clean.cut_off()
        with held(clean, two) as (second, folder):
            second.send()
            before = clean.ask("select file, md5(data) from fanin_piece order by file, start")
            with _keeper(first) as keeper:
                wait_until(lambda: keeper.lost)
                assert "'initializers' was taken over by" in keeper.lost
                with pytest.raises(StudyLost):
                    keeper.secure(opened)
            assert clean.ask("select file, md5(data) from fanin_piece order by file, start") == before
            assert clean.ask("select generation from fanin_study") == ["2"]


def test_each_write_asks_for_the_number_of_its_hold_even_on_a_session_that_lives(clean, tmp_path):
    one, _, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])
        clean.ask("update fanin_study set generation = 7, holder = 'ada@elsewhere'")
        with pytest.raises(StudyLost, match="ada@elsewhere"):
            exchange.send([opened])
        assert clean.ask(f"select count(*) from fanin_piece where file like '%{opened.path.name}%'") == ["0"]


def test_while_postgres_is_down_noting_costs_nothing_and_all_is_sent_when_it_is_back(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _), _keeper(exchange) as keeper:
        clean.stop()
        began = time.monotonic()
        for run in (ended, opened):
            keeper.note(run)
        assert time.monotonic() - began < 0.2
        with pytest.raises(TrackingDown, match=f"127.0.0.1:{clean.cluster.port}/optuna: "):
            keeper.secure(ended)
        clean.start()
        wait_until(lambda: len(clean.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 2)
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_a_session_that_nobody_answers_is_ended_and_made_again_when_the_network_is_back(clean, tmp_path, monkeypatch):
    """Behind a tunnel whose far end is cut off: TCP finds nothing wrong."""
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    monkeypatch.setattr("fanin.shared.exchange.ANSWER", 0.5)
    monkeypatch.setattr("fanin.shared.hold.WAIT", 0.1)
    monkeypatch.setattr(connection, "PATIENCE", 2)  # the least that libpq takes
    one, two, ended, opened = machines(tmp_path)
    with (
        wire(clean.cluster.port) as network,
        held(clean, one, port=network.port) as (exchange, _),
        _keeper(exchange) as keeper,
    ):
        keeper.secure(opened)
        with network.cut():
            for reason in ("no answer for 0.5 s", "timeout"):
                began = time.monotonic()
                keeper.note(ended)
                assert time.monotonic() - began < 0.2
                with pytest.raises(TrackingDown, match=f"^tracking.state: 127.0.0.1:{network.port}/optuna: .*{reason}"):
                    keeper.secure(opened)
                assert time.monotonic() - began < 6
            with pytest.raises(ConfigError, match="is in use"):
                Exchange(clean.address(), two / ".fanin" / "initializers").take()
        wait_until(lambda: len(clean.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 2)
        assert not keeper.lost
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")
    assert clean.ask("select generation from fanin_study") == ["2"]


def test_optuna_s_tables_are_waited_for_no_longer_than_the_study(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.sweep.mirror.ANSWER", 0.5)
    monkeypatch.setattr(connection, "PATIENCE", 2)
    with (
        closing(StudyFolder(tmp_path / "one" / ".fanin" / "study")) as folder,
        wire(clean.cluster.port) as network,
    ):
        plan = search_plan(folder)
        mirror = Mirror(plan.search.study, address=clean.address(port=network.port))
        Play(quality).run(plan, stop=2)
        mirror.update()
        with network.cut():
            Play(quality).run(plan, stop=3)
            for _ in range(2):
                began = time.monotonic()
                mirror.update()
                assert time.monotonic() - began < 6
        count = "select count(*) from trials join studies using (study_id) where study_name = 'study'"
        known = int(clean.ask(count)[0])
        mirror.update()
        mirror.close()
        assert int(clean.ask(count)[0]) == len(plan.search.study.trials) > known


def test_a_file_that_cannot_be_read_does_not_end_the_thread_that_copies(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.shared.keeper.BEAT", 0.1)
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _), _keeper(exchange) as keeper:
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
        wait_until(lambda: len(clean.ask("select file from fanin_piece where file like '%/spool.jsonl'")) == 2)
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_a_session_that_was_ended_as_idle_in_a_transaction_counts_as_down_and_is_made_again(
    clean, tmp_path, monkeypatch
):
    one, _, ended, _ = machines(tmp_path)
    monkeypatch.setitem(connection.SESSION, "idle_in_transaction_session_timeout", "100ms")
    with held(clean, one) as (exchange, _):
        with (
            pytest.raises(TrackingDown, match=f"127.0.0.1:{clean.cluster.port}/optuna: terminating connection due to"),
            exchange._session() as session,
            session.transaction(),
        ):  # a machine that slept, or was stopped, between two statements
            session.execute("select")
            ours = f"select 1 from pg_stat_activity where pid = {session.info.backend_pid}"
            wait_until(lambda: not clean.ask(ours))
            session.execute("select")
        exchange.send([ended])


@pytest.mark.parametrize("query", ["select 1 / 0", "select nothing", "insert into fanin_version values (1)"])
def test_whatever_else_the_database_objects_to_is_a_refusal(clean, tmp_path, query):
    with held(clean, tmp_path) as (exchange, _):
        with pytest.raises(TrackingRefused, match=f"127.0.0.1:{clean.cluster.port}/optuna: "):
            with exchange._session() as session:
                session.execute(query)
        exchange.send()


@pytest.mark.parametrize("fault", [KeyError("a bug"), TrackingDown("another server")])
def test_a_fault_in_what_follows_a_copy_is_said_once_and_the_copy_goes_on(clean, tmp_path, caplog, monkeypatch, fault):
    monkeypatch.setattr("fanin.shared.keeper.GATHER", 0.0)
    one, two, ended, opened = machines(tmp_path)

    def fail():
        raise fault

    with held(clean, one) as (exchange, _):
        with _keeper(exchange, after=fail) as keeper:
            for run in (ended, opened):
                keeper.note(run)
                there = f"select 1 from fanin_piece where file like '%{run.path.name}/spool%'"
                wait_until(partial(clean.ask, there))
                wait_until(lambda: caplog.messages)
        (said,) = caplog.messages
        assert (
            f"'initializers' is still copied to PostgreSQL, but shown nowhere else any more: {type(fault).__name__}"
            in said
        )
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")


def test_what_a_dead_machine_had_not_shipped_is_shipped_once_by_the_next_owner(clean, tmp_path, capsys):
    one, two, ended, opened = machines(tmp_path)
    for run in (ended, opened):
        run.artifacts.mkdir()
        (run.artifacts / "weights.pt").write_text(run.path.name)
    tracker = Tracker(project=two, uri="sqlite:///mlflow.db")
    database = new_database(two / "mlflow.db")
    another = train(make_run(ended.study, replicate=2))
    with held(clean, one) as (exchange, _):
        exchange.send([ended, another, opened])  # and then it dies; of what follows it had shipped one run,
        with _keeper(exchange) as keeper:
            ship(another, tracker=Tracker(project=one, uri=f"sqlite:///{database}"), guard=keeper)
    exchange = Exchange(clean.address(), two / ".fanin" / "initializers")
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
        with _keeper(exchange) as keeper:
            for run in [Folder(path) for path in sorted(folder.path.glob("runs/*"))]:
                assert ship(run, tracker=tracker, guard=keeper)
    exchange.close()
    assert [row[1] for row in stored_runs(database)] == ["FINISHED", "KILLED", "FINISHED"]
    steps = stored(database, "select run_uuid, key, step from metrics where key in ('val/loss', 'val/accuracy')")
    assert len(steps) == len(set(steps)) == 2 * (3 + 2 + 3)

    tables = [f"select * from {table} order by 1, 2, 3" for table in ("metrics", "runs", "params")]
    before = [stored(database, table) for table in tables]
    assert not [*tmp_path.glob("*/mlartifacts/**/weights.pt")]
    for files in (1, 0):  # the dead machine comes back
        with closing(Latecomer(clean.address())) as late:
            report = sync(one, tracker=Tracker(project=two, uri="sqlite:///mlflow.db"), guard=late, twin=late.twin)
        assert report.files == files and not report.left and len(report.gone) == 1
        (weights,) = tmp_path.glob("*/mlartifacts/**/weights.pt")
        assert weights.read_text() == ended.path.name, "not of the run that is trained again"
    assert opened.artifacts.exists() and not ended.artifacts.exists()
    assert [stored(database, table) for table in tables] == before


def test_files_of_a_run_that_was_done_again_elsewhere_are_not_mixed_with_those_of_the_other_one(clean, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    ended.artifacts.mkdir()
    with held(clean, one):
        pass  # it dies before it could send the run
    with held(clean, two) as (exchange, folder):
        again = train(make_run(Folder(folder.path)), clock=20_000)
        assert again.path.name == ended.path.name
        exchange.send([again])
        with closing(Latecomer(clean.address())) as late:
            assert late.twin(ended) == late.twin(again) == "", "shipped by nobody"
        state = {"uri": "sqlite:///", "run": "7", "offset": again.spool.stat().st_size, "status": "FINISHED"}
        write_json(again.path / "shipped.json", state)
        exchange.send([again])
        with closing(Latecomer(clean.address())) as late:
            assert late.twin(again) == "7" and late.twin(ended) == ""


def test_a_dry_run_counts_what_other_machines_have_done_and_takes_hold_of_nothing(clean, tmp_path, monkeypatch):
    one, _, ended, opened = machines(tmp_path)
    assert glance.ended(clean.address("reader"), "initializers") == frozenset(), "nobody has kept a study there"
    with held(clean, one) as (exchange, _):
        exchange.send([opened])
        train(opened, first=2, last=3, end=None)
        exchange.send([ended, opened])  # in pieces
        assert glance.ended(clean.address("reader"), "initializers") == {ended.path.name}
        assert glance.ended(clean.address("reader"), "another") == frozenset()
        spool.bury(opened.spool, reason="interrupted")
        exchange.send([opened])
        assert glance.ended(clean.address("reader"), "initializers") == {ended.path.name}
    assert clean.ask("select generation from fanin_study") == ["1"]


def test_doctor_does_not_send_to_sync_the_runs_that_another_machine_ships_by_now(clean, tmp_path):
    def told(state):
        return [one.text for one in doctor._tracking(one, {"uri": "sqlite:///x.db", "artifacts": None}, state=state)]

    one, two, *_ = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send()
    assert len(told(clean.address())) == 2 and told(clean.address())[1].startswith("2 runs are in .fanin/ and not")
    with held(clean, two):
        assert glance.is_taken_over(clean.address("reader"), one / ".fanin" / "initializers")
    assert len(told(clean.address())) == 1
    assert len(told(clean.address(port=9))) == len(told(None)) == 2, "nobody can tell"


# ---- fanin sync ----


def test_what_a_sweep_left_is_brought_by_sync_unless_the_study_went_on_elsewhere(clean, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])
    with closing(Latecomer(None)) as late, pytest.raises(TrackingRefused, match="set FANIN_STATE_URI"):
        late.secure(opened)
    with closing(Latecomer(clean.address())) as late:
        late.secure(opened)
    with held(clean, two) as (_, folder):
        assert files(folder.path) == files(one / ".fanin" / "initializers")
    with closing(Latecomer(clean.address())) as late, pytest.raises(StudyLost, match="was taken over by"):
        late.secure(opened)


def test_a_folder_that_has_less_than_its_copy_takes_nothing_away_from_it(clean, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])
    whole, lines = ended.spool.read_bytes(), ended.spool.read_bytes().splitlines(keepends=True)
    ended.spool.write_bytes(b"".join(lines[:-1]))  # a backup of the folder was put back
    with closing(Latecomer(clean.address())) as late, pytest.raises(TrackingRefused, match="has other records than"):
        late.secure(ended)
    with held(clean, one):
        assert ended.spool.read_bytes() == whole


def test_a_sweep_that_is_refused_takes_nothing_over(clean, tmp_path):
    one, two, ended, opened = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])
    exchange = Exchange(clean.address(), two / ".fanin" / "initializers")
    exchange.take()
    with closing(StudyFolder(exchange.path)) as folder:
        exchange.fetch(folder.spool)
    exchange.close()  # it has another question
    with closing(Latecomer(clean.address())) as late, pytest.raises(StudyLost):
        late.secure(Folder(exchange.path))
    with closing(Latecomer(clean.address())) as late:
        late.secure(opened)
    with closing(Latecomer(clean.address())) as late:
        late.secure(Folder(tmp_path / ".fanin" / "not shared"))


# ---- a search ----


def search_plan(folder):
    """TPE with a pruner over three axes, as a coordinator opens it."""
    fields = {"sampler": {"name": "tpe", "n_startup_trials": 4}, "pruner": {"name": "median", "n_startup_trials": 2}}
    space = {"a": "interval(0.0,1.0)", "b": "interval(1,64)", "c": "x,y,z"}
    study = make_study(space, budget=Budget(trials=14), **fields)
    search = open_search(study, folder, seed=3)
    return SearchPlan(study, search, folder, compose=study.variant)


def quality(values, replicate):
    last = 1 - (values["a"] - 0.3) ** 2 - {"x": 0.3, "y": 0.0, "z": 0.5}[values["c"]] + values["b"] / 640
    return Result([last * step for step in (0.4, 0.7, 0.9, 1.0)])


def told(search):
    return [(t.number, t.values, t.state, t.scores, t.reports) for t in search.trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with closing(StudyFolder(tmp_path_factory.mktemp("whole") / ".fanin" / "study")) as folder:
        plan = search_plan(folder)
        Play(quality).run(plan)
        return told(plan.search)


@pytest.mark.parametrize("stop", [0, 1, 5, 9, 13])
def test_a_search_that_goes_on_elsewhere_equals_an_undisturbed_one_trial_for_trial(clean, tmp_path, undisturbed, stop):
    for i, project in enumerate([tmp_path / "one", tmp_path / "two"]):
        with held(clean, project, "study") as (exchange, folder):
            folder.bury()
            plan = search_plan(folder)
            Play(quality).run(plan, stop=stop if i == 0 else None)
            exchange.send(exchange.unsent())
    assert told(plan.search) == undisturbed
    assert {trial[2] for trial in undisturbed} == {"complete", "pruned"}


def test_a_copy_of_the_journal_that_ends_in_any_record_loses_and_repeats_no_trial(clean, tmp_path, undisturbed):
    """As when the machine dies while a trial is drawn, reports or is told; of its runs nothing had come through."""
    with held(clean, tmp_path / "one", "study") as (_, folder):
        Play(quality).run(search_plan(folder))
        journal = folder.path / "journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
    for cut in range(3, len(lines), 37):
        clean.ask("delete from fanin_piece where file <> 'study.json'")
        with held(clean, tmp_path / "one", "study") as (exchange, folder):
            journal.write_bytes(b"".join(lines[:cut]))
            exchange.send()
        with held(clean, tmp_path / f"two-{cut}", "study") as (_, folder):
            plan = search_plan(folder)
            Play(quality).run(plan)
            assert told(plan.search) == undisturbed, cut


def test_optuna_shows_the_search_as_it_goes_on_and_after_it_was_removed_or_begun_anew(clean, tmp_path, caplog):
    import optuna

    def shown():
        storage = optuna.storages.RDBStorage(clean.address("reader").replace(":", "+psycopg:", 1))
        trials = optuna.load_study(study_name="study", storage=storage).trials
        storage.remove_session()
        storage.engine.dispose()
        return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in trials]

    def ours(search):
        return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in search.study.trials]

    with closing(StudyFolder(tmp_path / "one" / ".fanin" / "study")) as folder:
        plan = search_plan(folder)
        mirror = Mirror(plan.search.study, address=clean.address())
        Play(quality).run(plan, stop=3)
        job = plan.next()
        plan.report(job, {"epoch": 1, "metrics": {METRIC: 0.1}})
        mirror.update()
        assert shown() == ours(plan.search) and shown()[-1][2].name == "RUNNING"
        plan.report(job, {"epoch": 2, "metrics": {METRIC: 0.2}})
        mirror.update()
        clean.cut_off()
        Play(quality).run(plan, stop=4)
        mirror.update()  # which finds its connection broken
        mirror.update()
        assert shown() == ours(plan.search) and len(shown()) > 7
        storage = optuna.storages.RDBStorage(clean.address().replace(":", "+psycopg:", 1))
        optuna.delete_study(study_name="study", storage=storage)  # as the dashboard's button does
        storage.remove_session()
        storage.engine.dispose()
        Play(quality).run(plan, stop=5)
        mirror.update()  # which does not find the study
        mirror.update()
        assert shown() == ours(plan.search) and not caplog.messages
        mirror.close()
    with closing(StudyFolder(tmp_path / "two" / ".fanin" / "study")) as folder:
        plan = search_plan(folder)
        Play(lambda values, replicate: 0.5).run(plan, stop=2)
        mirror = Mirror(plan.search.study, address=clean.address())
        mirror.update()
        mirror.close()
        assert shown() == ours(plan.search) and len(shown()) == 2


# ---- real sweeps ----

STATE = "tracking.state=${oc.env:FANIN_STATE_URI}"  # as in conf/tracking/server.yaml
SLOWLY = (*SLOW, "hardware.workers=1")


def machine(folder):
    """A project folder with the study."""
    new_project(folder)
    write_study(folder, epochs=8)
    return folder


@dataclass
class Team:
    """What two machines share: the database, and MLflow's, here a SQLite file."""

    server: Server
    hub: Path
    one: Path
    two: Path

    @property
    def options(self):
        hub = f"tracking.uri=sqlite:///{self.hub}/mlflow.db", f"tracking.artifacts={self.hub}/artifacts"
        return ["sweep", "faults", *hub, STATE, *SLOWLY]


@pytest.fixture
def team(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("FANIN_STATE_URI", clean.address())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    team = Team(clean, *(machine(tmp_path / name) for name in ("hub", "one", "two")))
    (team.one / "slow").write_text("0.05")
    return team


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The sweep on one machine, undisturbed: its table, and its points in MLflow."""
    project = machine(tmp_path_factory.mktemp("alone") / "machine")
    command = Command(project, "sweep", "faults", *SLOWLY)
    assert command.end() == 0, command.output
    return leaderboard(command.output), once(project)


def once(hub):
    """The points of the four runs, of which each is FINISHED once, and each point there once."""
    assert sorted(statuses(hub).values()) == 5 * [["FINISHED"]], "with the study's own"
    found = {key: values for key, values in curves(hub).items() if not key[0].startswith("faults")}
    assert {len(values) for values in found.values()} == {1}
    return found


def trained(command, *, epochs):
    wait_until(lambda: epochs_of(command.project) >= epochs or not command.running, seconds=90)
    assert command.running, command.output


def attempts(project):
    """Of each run: how often it was begun."""
    runs = (project / ".fanin" / "faults" / "runs").glob("*/spool.jsonl")
    return {path.parent.name: spool.digest(spool.read(path)[0]).attempts for path in runs}


def test_a_sweep_is_refused_elsewhere_while_it_lives_and_gone_on_with_there_when_it_is_killed(
    team, alone, launch, monkeypatch, capsys
):
    first = launch(team.one, *team.options)
    trained(first, epochs=11)
    monkeypatch.chdir(team.two)
    assert main(team.options) == 2
    assert "study 'faults' is in use by" in capsys.readouterr().err
    assert not attempts(team.two)
    trained(first, epochs=20)
    first.kill()
    begun = [run.name for run, records in open_runs(team.one) if spool.digest(records).last_epoch]
    ended = attempts(team.one).keys() - {run.name for run, _ in open_runs(team.one)}
    assert len(ended) >= 2
    assert main([*team.options, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert f"= 4, of which {len(ended)} are done" in output
    assert f"/optuna: {len(ended)} runs done there, by all machines together" in output
    assert not attempts(team.two)
    assert main(team.options) == 0
    output = capsys.readouterr().out
    assert "of other machines fetched" in output
    assert f"  what was under way on {socket.gethostname()} is trained again from epoch 1: its checkpoints" in output
    for run in begun:
        digest = spool.digest(spool.read(team.two / ".fanin" / "faults" / "runs" / run / "spool.jsonl")[0])
        assert [one["epoch"] for one in digest.epochs] == [*range(9)]
    assert {attempts(team.two)[name] for name in ended} == {1}, "what is done is not repeated"
    assert (leaderboard(output), once(team.hub)) == alone
    secret = team.server.secrets["OPTUNA_DB_PASSWORD"].encode()
    written = [path for folder in (team.hub, team.one, team.two) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 50 and not [path for path in written if secret in path.read_bytes()]

    monkeypatch.chdir(team.one)  # the first machine comes back
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{team.hub}/mlflow.db")
    before = curves(team.hub)
    assert main(["sync"]) == 0
    assert "left alone: study 'faults' was taken over by" in capsys.readouterr().out
    assert curves(team.hub) == before
    assert main(team.options) == 0
    assert (leaderboard(capsys.readouterr().out), once(team.hub)) == alone


@pytest.mark.slow
def test_a_coordinator_that_was_cut_off_stops_when_it_comes_back_and_changes_nothing(team, alone, launch):
    first = launch(team.one, *team.options)
    trained(first, epochs=14)
    first.signal(signal.SIGSTOP)
    assert team.server.cut_off()  # as after half a minute without a sign of life
    second = launch(team.two, *team.options)
    assert second.end() == 0, second.output
    assert (leaderboard(second.output), once(team.hub)) == alone
    before, done = curves(team.hub), epochs_of(team.one)
    first.signal(signal.SIGCONT)
    assert first.end() == 1, first.output
    (line,) = [line for line in first.output.splitlines() if line.startswith("fanin: ")]
    assert line.startswith("fanin: stopped: study 'faults' was taken over by ")
    assert epochs_of(team.one) - done <= 9, "at most a run is wasted"
    assert curves(team.hub) == before and once(team.hub) == alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgres_costs_no_epoch_a_second_and_leaves_the_study_with_its_owner(team, alone, launch, mode):
    (team.one / "slow").write_text("0.2")
    first = launch(team.one, *team.options)
    trained(first, epochs=4)
    team.server.stop(mode)
    gone = time.time()
    first.wait_for("tracking is down")
    time.sleep(3)
    team.server.start()
    back = time.time()
    first.wait_for("tracking is back")
    second = launch(team.two, *team.options)
    assert second.end() == 2 and "is in use by" in second.output, second.output
    (team.one / "slow").unlink()
    assert first.end() == 0, first.output
    assert (leaderboard(first.output), once(team.hub)) == alone
    assert max(pauses(team.one, since=gone, until=back)) < 1 + max(pauses(team.one, until=gone))
    third = launch(team.two, *team.options)
    assert third.end() == 0 and (leaderboard(third.output), once(team.hub)) == alone, third.output


@pytest.mark.slow
def test_neither_training_nor_ctrl_c_waits_for_a_postgres_that_hangs(team, alone, launch):
    first = launch(team.one, *team.options)
    trained(first, epochs=4)
    hung = time.time()
    with team.server.hung():
        trained(first, epochs=epochs_of(team.one) + 8)
        asked = time.monotonic()
        first.signal(signal.SIGINT)
        assert first.end() == 130, first.output
        assert time.monotonic() - asked < 10
    assert max(pauses(team.one, since=hung)) < 1 + max(pauses(team.one, until=hung))
    again = launch(team.two, *team.options)
    assert again.end() == 0 and (leaderboard(again.output), once(team.hub)) == alone, again.output


@pytest.mark.slow
def test_a_network_that_swallows_everything_on_the_way_to_postgres_costs_no_epoch_a_second_and_no_point(
    team, alone, launch, monkeypatch
):
    (team.one / "slow").write_text("0.3")
    with wire(team.server.cluster.port) as network:
        monkeypatch.setenv("FANIN_STATE_URI", team.server.address(port=network.port))
        first = launch(team.one, *team.options)
        trained(first, epochs=4)
        with network.cut():
            cut = time.time()
            first.wait_for("tracking is down", seconds=90)
            why = ("no answer for 30 s", "connection timeout expired")  # first, and when it tries again
            assert any(f"127.0.0.1:{network.port}/optuna: {reason}" in first.output for reason in why), first.output
            trained(first, epochs=epochs_of(team.one) + 4)
            mended = time.time()
        first.wait_for("tracking is back")
        second = launch(team.two, *team.options)
        assert second.end() == 2 and "is in use by" in second.output, second.output
        (team.one / "slow").unlink()
        assert first.end() == 0, first.output
        assert len({line for line in first.output.splitlines() if "tracking is down" in line}) == 1
        assert (leaderboard(first.output), once(team.hub)) == alone
        assert max(pauses(team.one, since=cut, until=mended)) < 1 + max(pauses(team.one, until=cut))


@pytest.mark.slow
def test_a_sweep_that_ends_while_postgres_is_down_is_brought_by_sync(team, alone, launch, monkeypatch):
    first = launch(team.one, *team.options)
    trained(first, epochs=20)
    team.server.stop()
    (team.one / "slow").unlink()
    assert first.end() == 0, first.output
    assert "runs are not fully in MLflow yet (tracking is down" in first.output
    team.server.start()
    monkeypatch.chdir(team.one)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{team.hub}/mlflow.db")
    assert main(["sync"]) == 0
    assert once(team.hub) == alone[1]
    second = launch(team.two, *team.options)
    assert second.end() == 0 and leaderboard(second.output) == alone[0], second.output
    assert {*attempts(team.two).values()} == {1}


@pytest.mark.slow
def test_the_whole_stack_a_search_killed_again_and_again_on_two_machines_ends_as_on_one(
    team, tmp_path, launch, monkeypatch
):
    """MLflow with accounts and PostgreSQL as docker-compose.yml has them; TPE with a pruner, one worker."""
    search = ["hydra/sweeper=tpe", "hydra/sweeper/pruner=median", "hydra.sweeper.max_trials=8"]
    search += ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "study.replicates=1"]
    search += ["hydra.sweeper.pruner.n_startup_trials=2"]
    reference = launch(machine(tmp_path / "whole"), "sweep", "faults", *SLOWLY, *search)
    assert reference.end() == 0, reference.output
    values = {"FANIN_PORT": str(free_port()), "FANIN_HOST": "localhost"}
    values = team.server.secrets | values
    (tmp_path / "artifacts").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", values["MLFLOW_ADMIN_PASSWORD"])
    with (
        (tmp_path / "log").open("w") as log,
        mlflow_server(team.server.cluster, values, tmp_path / "artifacts", log=log) as uri,
    ):
        options = ["sweep", "faults", f"tracking.uri={uri}", STATE, *SLOWLY, *search]
        (team.two / "slow").write_text("0.05")
        for i in range(4):
            project = (team.one, team.two)[i % 2]
            command = launch(project, *options)
            command.worker_of(seconds=90)
            time.sleep(1.5)
            command.kill()
        (team.one / "slow").unlink()
        last = launch(team.one, *options)
        assert last.end() == 0, last.output
        assert leaderboard(last.output) == leaderboard(reference.output)
        statuses = team.server.cluster.ask(
            "select distinct status from runs r join tags t on t.run_uuid = r.run_uuid where t.key = 'fanin.run'",
            password=values["MLFLOW_DB_PASSWORD"],
        )
        assert {*statuses} <= {"FINISHED", "KILLED"}
        doubled = "select 1 from metrics where key <> 'seconds' group by run_uuid, key, step having count(*) > 1"
        assert team.server.cluster.ask(doubled, password=values["MLFLOW_DB_PASSWORD"]) == []
        states = "select distinct state from trials join studies using (study_id) where study_name = 'faults'"
        assert sorted(team.server.ask(states)) in (["COMPLETE"], ["COMPLETE", "PRUNED"]), "as optuna-dashboard shows it"
        count = "select count(*) from metrics where key = 'val/loss'"
        points = team.server.cluster.ask(count, password=values["MLFLOW_DB_PASSWORD"])
        assert points == [str(epochs_of(team.one))], "one for each epoch that any machine has recorded"


# ---- bad input ----


def refusal(address, path, *, uri="sqlite:///mlflow.db"):
    """What a sweep says whose study's state is to be at `address`."""
    study = make_study({"a": "1,2"})
    base = replace(study.base, state=address, config={"tracking": {"uri": uri}})
    with pytest.raises(ConfigError) as raised, open_state(replace(study, base=base), path):
        pass
    message = str(raised.value)
    assert message.startswith("tracking.state: ") and "\n" not in message and "hid" not in message, message
    return message


def test_bad_input_is_one_message_before_anything_is_written_and_never_the_password(clean, tmp_path, monkeypatch):
    path, port = tmp_path / ".fanin" / "study", clean.cluster.port
    for address, words in {
        "mysql://me:hidden@h/optuna": "must be an address like postgresql://optuna@host:5432/optuna, got 'mysql'",
        "hidden": "must be an address like postgresql://optuna@host:5432/optuna, got 'something else'",
        "postgresql://me:hid den@h/optuna": "must be an address like postgresql://optuna@host:5432/optuna; in it, %20",
        clean.address(password="hidden"): f"127.0.0.1:{port}/optuna: FATAL:  password authentication failed for user",
        clean.address(database="none"): 'database "none" does not exist',
        clean.address(port=9): "127.0.0.1:9/optuna: Connection refused; without it nobody knows what is done",
        clean.address().replace("127.0.0.1", "nowhere.invalid"): "failed to resolve host 'nowhere.invalid'",
        clean.address("reader"): "use the role that owns the database",
    }.items():
        assert words in refusal(address, path), refusal(address, path)
    assert "choose tracking=server" in refusal(clean.address(), path, uri="none")
    clean.ask("create table fanin_version (version integer); create table fanin_piece (study text)")
    clean.ask("insert into fanin_version values (99)")
    assert "another version of fanin (state 99, this one writes 1)" in refusal(clean.address(), path)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'fanin[server]'" in refusal(clean.address(), path)
    assert not path.exists()


def test_a_configuration_keeps_no_address_and_a_run_no_password(project, monkeypatch):
    monkeypatch.setenv("FANIN_STATE_URI", "postgresql://optuna:hidden@h/optuna")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h")
    with project_loader() as (loader, found):
        one = Composer(loader, config_name="config", fixed=[*found, "tracking=server"]).compose(["epochs=3"])
    assert one.state == "postgresql://optuna:hidden@h/optuna"
    assert one.config["tracking"]["state"] is None and "hidden" not in repr(one)


def test_another_question_is_refused_elsewhere_as_it_is_here(clean, tmp_path):
    one, two, *_ = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send()
    other = {"space": {}, "replicates": 2, "metric": ["val/loss"]}
    with held(clean, two) as (exchange, folder):
        with pytest.raises(ConfigError, match=r"holds another question:\n  replicates: 1 -> 2\n  --extend keeps"):
            folder.admit(other, extend=False)
        folder.admit(other, extend=True)
        exchange.send()
    with held(clean, one) as (_, folder):
        folder.admit(other, extend=False)


def test_studies_of_one_name_are_not_mixed(clean, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(clean, one) as (exchange, _):
        exchange.send([ended])
    with closing(StudyFolder(two / ".fanin" / "initializers")) as folder:  # never shared
        folder.admit({"replicates": 1}, extend=False)
    exchange = Exchange(clean.address(), two / ".fanin" / "initializers")
    exchange.take()
    with pytest.raises(ConfigError, match="two studies are called 'initializers'"):
        Shared(exchange).settle(new=False)
    with pytest.raises(ConfigError, match="is kept in PostgreSQL at 127.0.0.1"):
        Local(one / ".fanin" / "initializers").settle(new=False)
    aside = Shared(exchange).settle(new=True)
    exchange.close()
    assert aside and clean.ask("select study from fanin_study order by 1") == ["initializers", aside.name]
    with held(clean, two) as (exchange, _):  # begun anew
        exchange.send()
    exchange = Exchange(clean.address(), one / ".fanin" / "initializers")
    exchange.take()
    aside = Shared(exchange).settle(new=False)  # what the first machine has is of the study before
    exchange.close()
    assert aside and (aside / "runs" / ended.path.name).exists()


def test_a_study_is_put_aside_under_one_name_here_and_there_also_where_the_name_is_taken(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.sweep.folder.stamp", lambda: "then")
    put = {"one": "initializers.until-then", "two": "initializers.until-then-2", "three": "initializers.until-then-3"}
    for machine, name in put.items():
        path = tmp_path / machine / ".fanin" / "initializers"
        with held(clean, tmp_path / machine) as (exchange, _):
            exchange.send()
        exchange = Exchange(clean.address(), path)
        exchange.take()
        assert Shared(exchange).settle(new=True) == path.with_name(name)
        exchange.close()
        assert not path.exists() and (path.with_name(name) / "study.json").exists()
    assert clean.ask("select study from fanin_study order by 1") == ["initializers", *put.values()]
    with held(clean, tmp_path / "one") as (exchange, _):
        exchange.send()
    (tmp_path / "one" / ".fanin" / "initializers.until-then-2-2").mkdir()  # of a study that was never shared
    exchange = Exchange(clean.address(), tmp_path / "one" / ".fanin" / "initializers")
    exchange.take()
    assert Shared(exchange).settle(new=True).name == "initializers.until-then-2-3"
    exchange.close()
    with closing(Latecomer(clean.address())) as late:  # each may still bring what it has of its own
        for machine, name in put.items():
            late.secure(Folder(tmp_path / machine / ".fanin" / name))
