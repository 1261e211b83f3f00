"""A search whose journal is in a real PostgreSQL goes on elsewhere, and optuna-dashboard sees it."""

import time
from contextlib import closing

import pytest
from databases import lacking
from plans import METRIC, Play, Result, make_study
from recorded import wait_until
from shared_state import held
from wire import wire

from fanin.shared import connection
from fanin.sweep.adaptive import SearchPlan
from fanin.sweep.folder import StudyFolder
from fanin.sweep.mirror import Mirror
from fanin.sweep.planning import open_search
from fanin.sweep.study import Budget

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")


def search_plan(folder):
    """TPE with a pruner over three axes, as a coordinator opens it."""
    fields = {"sampler": {"name": "tpe", "n_startup_trials": 4}, "pruner": {"name": "median", "n_startup_trials": 2}}
    space = {"a": "interval(0.0,1.0)", "b": "interval(1,64)", "c": "x,y,z"}
    study = make_study(space, budget=Budget(trials=14), seed=3, **fields)
    return SearchPlan(study, open_search(study, folder), folder, compose=study.variant)


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
def test_a_search_that_goes_on_elsewhere_equals_an_undisturbed_one_trial_for_trial(server, tmp_path, undisturbed, stop):
    for i, project in enumerate([tmp_path / "one", tmp_path / "two"]):
        with held(server, project, "study") as (exchange, folder):
            folder.bury()
            plan = search_plan(folder)
            Play(quality).run(plan, stop=stop if i == 0 else None)
            exchange.send(exchange.unsent())
    assert told(plan.search) == undisturbed
    assert {trial[2] for trial in undisturbed} == {"complete", "pruned"}


def test_a_copy_of_the_journal_that_ends_in_any_record_loses_and_repeats_no_trial(server, tmp_path, undisturbed):
    """As when the machine dies while a trial is drawn, reports or is told; of its runs nothing had come through."""
    with held(server, tmp_path / "one", "study") as (_, folder):
        Play(quality).run(search_plan(folder))
        journal = folder.path / "journal.log"
        lines = journal.read_bytes().splitlines(keepends=True)
    for cut in range(3, len(lines), 37):
        server.ask("delete from fanin_piece where file <> 'study.json'")
        with held(server, tmp_path / "one", "study") as (exchange, folder):
            journal.write_bytes(b"".join(lines[:cut]))
            exchange.send()
        with held(server, tmp_path / f"two-{cut}", "study") as (_, folder):
            plan = search_plan(folder)
            Play(quality).run(plan)
            assert told(plan.search) == undisturbed, cut


def test_optuna_shows_the_search_as_it_goes_on_and_after_it_was_removed_or_begun_anew(server, tmp_path, caplog):
    import optuna

    def shown():
        storage = optuna.storages.RDBStorage(server.address("reader").replace(":", "+psycopg:", 1))
        trials = optuna.load_study(study_name="study", storage=storage).trials
        storage.remove_session()
        storage.engine.dispose()
        return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in trials]

    def ours(search):
        return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in search.study.trials]

    with closing(StudyFolder(tmp_path / "one" / ".fanin" / "study")) as folder:
        plan = search_plan(folder)
        mirror = Mirror(plan.search.study, address=server.address())
        Play(quality).run(plan, stop=3)
        job = plan.next()
        plan.report(job, {"epoch": 1, "metrics": {METRIC: 0.1}})
        mirror.update()
        assert shown() == ours(plan.search) and shown()[-1][2].name == "RUNNING"
        plan.report(job, {"epoch": 2, "metrics": {METRIC: 0.2}})
        mirror.update()
        server.cut_off()
        Play(quality).run(plan, stop=4)
        mirror.update()  # which finds its connection broken
        mirror.update()
        assert shown() == ours(plan.search) and len(shown()) > 7
        storage = optuna.storages.RDBStorage(server.address().replace(":", "+psycopg:", 1))
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
        mirror = Mirror(plan.search.study, address=server.address())
        mirror.update()
        mirror.close()
        assert shown() == ours(plan.search) and len(shown()) == 2


def test_optuna_s_tables_are_waited_for_no_longer_than_the_study(server, tmp_path, monkeypatch):
    def shown():
        query = "select count(*) from trials join studies using (study_id) where study_name = 'study'"
        return int(server.ask(query)[0])

    def catches_up():
        mirror.update()
        return shown() == len(plan.search.study.trials)

    with (
        closing(StudyFolder(tmp_path / "one" / ".fanin" / "study")) as folder,
        wire(server.cluster.port) as network,
    ):
        plan = search_plan(folder)
        mirror = Mirror(plan.search.study, address=server.address(port=network.port))
        Play(quality).run(plan, stop=2)
        wait_until(catches_up)
        known = shown()
        with network.cut(), monkeypatch.context() as patch:
            patch.setattr("fanin.sweep.mirror.ANSWER", 0.5)
            patch.setattr(connection, "PATIENCE", 2)  # the least that libpq takes
            Play(quality).run(plan, stop=3)
            for _ in range(2):
                began = time.monotonic()
                mirror.update()
                assert time.monotonic() - began < 25
        wait_until(catches_up)
        mirror.close()
        assert shown() > known > 0
