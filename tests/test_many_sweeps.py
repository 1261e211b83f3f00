"""Several sweeps at once against one server: nothing lost, nothing doubled, nothing in another's study."""

import pytest
from native_stack import lacking, running_stack
from processes import folders
from projects import new_project, write_study
from recorded import new_database
from recorded import stored as ask_sqlite
from servers import mlflow_server

from fanin import spool

TROUBLE = ("locked", "busy", "deadlock", "tracking is down", "tracking refused", "Traceback", "not fully in MLflow")


def new_sweep(folder, name, *, number, epochs):
    """A project of its own with a study of 4 runs whose curves no other study has."""
    new_project(folder)
    write_study(folder, name=name, epochs=epochs, images=100 + 20 * number)
    return folder


def recorded(project, study):
    """(run, metric, step) -> value, of every epoch in the spools."""
    return {
        (run.name, key, record["epoch"]): float(value)
        for run in folders(project, study)
        for record in spool.digest(spool.read(run / "spool.jsonl")[0]).epochs
        for key, value in record["metrics"].items()
    }


def stored(ask, study):
    """The same from the server's database, as a list of (key, value): what is there twice is there twice."""
    query = (
        "select k.value, m.key, m.step, m.value from metrics m"
        " join tags k on k.run_uuid = m.run_uuid and k.key = 'fanin.run'"
        " join runs r on r.run_uuid = m.run_uuid join experiments e on e.experiment_id = r.experiment_id"
        f" where e.name = '{study}' and k.value not like '{study}%'"
    )
    return [((run, key, int(step)), float(value)) for run, key, step, value in ask(query)]


def statuses(ask, study):
    query = (
        "select k.value, r.status from runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'fanin.run'"
        " join experiments e on e.experiment_id = r.experiment_id"
        f" where e.name = '{study}' and k.value not like '{study}%'"
    )
    return sorted(tuple(row) for row in ask(query))


def sweep_at_once(launch, folder, uri, *, sweeps, epochs, seconds):
    """The commands, after so many sweeps side by side have ended well."""
    commands = []
    for number in range(sweeps):
        project = new_sweep(folder / f"project{number}", f"study{number}", number=number, epochs=epochs)
        commands.append(launch(project, "sweep", f"study{number}", "hardware.workers=1", f"tracking.uri={uri}"))
    codes = [command.end(seconds=seconds) for command in commands]
    assert codes == [0] * sweeps, [command.output for command in commands]
    for command in commands:
        assert not [word for word in TROUBLE if word.lower() in command.output.lower()], command.output
    return commands


def damage(commands, ask, *, epochs):
    """What the server lacks, has twice or mixes up of all that the sweeps recorded; empty if all is well."""
    found, losses = [], set()
    for number, command in enumerate(commands):
        study = f"study{number}"
        ours, rows = recorded(command.project, study), stored(ask, study)
        begun = {run for run, *_ in ours}
        checks = {
            "a point is there twice": len(dict(rows)) == len(rows),
            "a point is lost, or another study's": ours.items() <= dict(rows).items(),
            "a run is lost, or another study's": {run for (run, *_), _ in rows} == begun and len(begun) == 4,
            "an epoch was not recorded": len(ours) >= 4 * epochs * 4,
            "a run is not FINISHED once": statuses(ask, study) == sorted((run, "FINISHED") for run in begun),
        }
        found += [f"{study}: {wrong}" for wrong, right in checks.items() if not right]
        losses.add(frozenset(value for (_, key, _), value in rows if key == "train/loss"))
    if len(losses) < len(commands):
        found.append("two studies have the same curves: nothing could tell them apart")
    return found


def test_three_sweeps_at_one_server_keep_all_their_points_apart(tmp_path, launch):
    database = new_database(tmp_path / "server.db")
    with mlflow_server(tmp_path, workers=2) as uri:
        commands = sweep_at_once(launch, tmp_path, uri, sweeps=3, epochs=2, seconds=120)
    assert damage(commands, lambda query: ask_sqlite(database, query), epochs=2) == []


@pytest.mark.slow
def test_eight_sweeps_at_one_server_on_postgres_keep_all_their_points_apart(tmp_path, launch, monkeypatch):
    if lacking():
        pytest.skip(lacking())
    (tmp_path / "stack").mkdir()
    with running_stack(tmp_path / "stack") as stack:
        for name, value in stack.variables("ada").items():
            monkeypatch.setenv(name, value)
        commands = sweep_at_once(launch, tmp_path, stack.uri, sweeps=8, epochs=6, seconds=280)
        assert damage(commands, lambda query: [row.split("|") for row in stack.read(query)], epochs=6) == []
        log = stack.cluster.folder / "log"
        assert "deadlock" not in log.read_text()
