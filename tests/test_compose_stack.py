"""The services of docker-compose.yml as processes of this machine, for want of Docker.

One cluster and one server serve all tests: `stack`."""

import re
import shlex
import shutil
import stat
import subprocess
import sys

import psutil
import pytest
from native_stack import SERVICES, environment, import_stack, interpolate, lacking, new_project, running_stack

import fanin
from fanin.errors import ConfigError
from fanin.tracking import TrackingRefused

stack_tool = import_stack()
SWEEP = ["sweep", "initializers", "study.replicates=1", "epochs=2", "initializer=he_normal,zeros"]
SWEEP += ["data.n_train=400", "hardware.workers=1"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    if missing := lacking():
        pytest.skip(missing)
    with running_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def swept(stack, tmp_path_factory):
    """The folder in which ada has swept the study `initializers`."""
    folder = new_project(tmp_path_factory.mktemp("ada"))
    done = stack.fanin(*SWEEP, user="ada", folder=folder)
    assert done.returncode == 0 and "not fully" not in done.stderr, done.stderr
    return folder


@pytest.fixture
def as_user(stack, monkeypatch):
    def become(user):
        for name, value in stack.variables(user).items():
            monkeypatch.setenv(name, value)

    return become


@pytest.mark.slow
def test_a_sweep_through_the_server_is_read_back_as_the_database_has_it(stack, swept, as_user):
    as_user("ada")
    table = fanin.runs("initializers", project=swept).set_index("run_id")
    assert sorted(table["initializer"]) == ["he_normal", "zeros"] and {*table["status"]} == {"FINISHED"}
    rows = stack.read("select run_uuid, value from latest_metrics where key = 'test/accuracy'")
    assert {run: float(value) for run, value in (row.split("|") for row in rows)} == dict(
        table["test/accuracy"].items()
    )
    curve = fanin.curves("initializers", "val/loss", project=swept)
    points = stack.read("select run_uuid, step, value from metrics where key = 'val/loss'")
    assert sorted(f"{p.run_id}|{p.step}|{p.value!r}" for p in curve.itertuples()) == sorted(points)
    assert len(points) == 6, "two runs, and epochs 0 to 2"


@pytest.mark.slow
def test_files_of_a_run_go_through_the_server_to_its_store(stack, swept):
    runs = stack.read("select artifact_uri from runs where artifact_uri is not null order by start_time")
    assert runs and all(uri.startswith("mlflow-artifacts:/") for uri in runs)
    stored = {path.relative_to(stack.artifacts).parts[1] for path in stack.artifacts.rglob("last.pt")}
    assert len(stored) == 2 and all(any(run in uri for uri in runs) for run in stored)


def routes():
    """(method, path) of every route the server knows, placeholders filled in."""
    from mlflow.server import app
    from mlflow.server.auth import routes as accounts
    from mlflow.server.fastapi_app import create_fastapi_app

    found = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods}
    for path, methods in create_fastapi_app(app).openapi()["paths"].items():
        found |= {(method.upper(), path) for method in methods}
    for path in vars(accounts).values():
        if isinstance(path, str) and path.startswith("/"):
            found |= {(method, path) for method in ("GET", "POST", "PATCH", "DELETE")}
    found |= {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/")}
    verbs = ("GET", "POST", "PUT", "PATCH", "DELETE")
    return sorted({(verb, re.sub(r"<[^>]*>|\{[^}]*\}", "1", path)) for verb, path in found if verb in verbs})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the web frameworks, while their applications are built
def test_nobody_gets_anything_without_an_account(stack):
    tried = routes()
    assert len(tried) > 400
    answers = {(method, path): stack.request(method, path)[0] for method, path in tried}
    let_in = {path for (_, path), status in answers.items() if status != 401}
    assert let_in <= {
        *("/health", "/version", "/static-files/1"),  # the UI's own files, before one logs in
        *("/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"),  # kind of store, nothing stored
    }


@pytest.mark.slow
def test_a_user_without_rights_can_neither_read_nor_change_anothers_study(stack, swept):
    [experiment] = stack.read("select experiment_id from experiments where name = 'initializers'")
    [run] = stack.read("select run_uuid from latest_metrics where key = 'test/accuracy' limit 1")
    api, ajax = "/api/2.0/mlflow", "/ajax-api/2.0/mlflow"
    artifacts = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts"
    point = {"run_id": run, "key": "val/loss", "value": 0, "timestamp": 1, "step": 9}
    tried = [
        ("GET", f"{api}/experiments/get?experiment_id={experiment}", {}),
        ("GET", f"{api}/experiments/get-by-name?experiment_name=initializers", {}),
        ("GET", f"{api}/runs/get?run_id={run}", {}),
        ("GET", f"{api}/metrics/get-history?run_id={run}&metric_key=val/loss", {}),
        ("GET", f"{api}/artifacts/list?run_id={run}", {}),
        ("GET", f"{artifacts}/config.yaml", {}),
        ("GET", f"/get-artifact?path=config.yaml&run_uuid={run}", {}),
        ("GET", f"{ajax}/metrics/get-history-bulk?run_id={run}&metric_key=val/loss", {}),
        ("PUT", f"{artifacts}/config.yaml", {}),
        ("DELETE", f"{artifacts}/config.yaml", {}),
        ("POST", f"{api}/runs/create", {"experiment_id": experiment}),
        ("POST", f"{api}/runs/update", {"run_id": run, "status": "FAILED"}),
        ("POST", f"{api}/runs/delete", {"run_id": run}),
        ("POST", f"{api}/runs/log-metric", point),
        ("POST", f"{api}/runs/log-batch", {"run_id": run, "metrics": [point]}),
        ("POST", f"{api}/runs/set-tag", {"run_id": run, "key": "a", "value": "b"}),
        ("POST", f"{api}/experiments/update", {"experiment_id": experiment, "new_name": "mine"}),
        ("POST", f"{api}/experiments/delete", {"experiment_id": experiment}),
        (
            "POST",
            f"{api}/experiments/set-experiment-tag",
            {"experiment_id": experiment, "key": "a", "value": "b"},
        ),
        ("POST", f"{api}/users/create", {"username": "eve", "password": "eve's long word"}),
        ("PATCH", f"{api}/users/update-password", {"username": "ada", "password": "bob's own word"}),
        ("PATCH", f"{api}/users/update-admin", {"username": "bob", "is_admin": True}),
    ]
    everything = "select md5(string_agg(m::text, ',' order by m::text)) from metrics m"
    before = stack.read(everything)
    answers = {path: stack.request(method, path, user="bob", body=body)[0] for method, path, body in tried}
    assert answers == dict.fromkeys(answers, 403)
    assert stack.read(everything) == before
    search = {"experiment_ids": [experiment], "max_results": 10}
    status, found = stack.request("POST", f"{api}/runs/search", user="bob", body=search)
    assert status == 403 or run not in found


@pytest.mark.slow
def test_fanin_says_in_one_line_that_a_user_has_no_rights(stack, swept, tmp_path, as_user):
    done = stack.fanin(*SWEEP, user="bob", folder=new_project(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'bob' has no right to this study (403)" in done.stderr
    assert not [*tmp_path.rglob("spool.jsonl")], "refused before the first run"
    as_user("bob")
    with pytest.raises(ConfigError, match="'initializers' has not been run yet, or this user may not read it: "):
        fanin.runs("initializers", project=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", [SWEEP, ["results", "initializers"]], ids=["sweep", "results"])
def test_fanin_says_in_one_line_that_a_password_is_wrong(command, stack, tmp_path):
    stack.users["eve"] = "no account, no password"
    done = stack.fanin(*command, user="eve", folder=new_project(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'eve' (401): set MLFLOW_TRACKING_USERNAME" in done.stderr and stack.users["eve"] not in done.stderr
    assert not [*tmp_path.rglob("spool.jsonl")]


@pytest.mark.slow
def test_the_service_sweep_runs_its_study_with_an_account_that_make_up_makes(stack, tmp_path):
    for _ in range(2):  # the second time it is there
        stack_tool.make_account("sweeper", stack.secrets["SWEEPER_PASSWORD"], values=stack.secrets)
    study = "batch_norm study.replicates=1 epochs=1 regularization=none initializer=normal data.n_train=400"
    values = stack.secrets | {"FANIN_SWEEP": f"{study} hardware.workers=1"}
    command = shlex.split(interpolate(SERVICES["sweep"]["command"], values))
    assert command[:2] == ["fanin", "sweep"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment("sweep", values, MLFLOW_TRACKING_URI=stack.uri),
        cwd=new_project(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0 and "not fully" not in done.stderr, done.stderr
    assert values["SWEEPER_PASSWORD"] not in done.stdout + done.stderr
    [experiment] = stack.read("select experiment_id from experiments where name = 'batch_norm'")
    asked = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}"
    assert [stack.request("GET", asked, user=user)[0] for user in ("admin", "ada")] == [200, 403]


@pytest.mark.slow
def test_make_up_says_what_to_do_when_the_admin_has_another_password_by_now(stack):
    with pytest.raises(stack_tool.StackError, match=r"account newcomer \(401\): make it yourself, with NEWCOMER_"):
        stack_tool.make_account("newcomer", "long enough", values=stack.secrets | {"MLFLOW_ADMIN_PASSWORD": "old"})


@pytest.mark.slow
def test_make_up_gives_the_database_an_index_by_which_a_run_is_found_and_any_number_of_times(
    stack, swept, monkeypatch, capfd
):
    monkeypatch.setattr(stack_tool, "compose", stack.compose)
    for _ in range(2):
        stack_tool.make_index()
    assert capfd.readouterr() == ("", "")
    looked_for = (
        "select r.run_uuid from runs r join tags t using (run_uuid) where t.key = 'fanin.run' and t.value = '9-r0'"
    )
    plan = stack.cluster.ask(
        f"""
        begin;
        create temporary table made as select experiment_id, artifact_uri from runs limit 1;
        insert into runs (run_uuid, experiment_id, artifact_uri, status, lifecycle_stage, start_time)
            select i, experiment_id, artifact_uri, 'FINISHED', 'active', 0 from made, generate_series(1, 3000) i;
        insert into tags (key, value, run_uuid) select 'fanin.run', i || '-r0', i from generate_series(1, 3000) i;
        analyze tags;
        explain {looked_for};
        rollback
        """,
        password=stack.secrets["MLFLOW_DB_PASSWORD"],
    )
    assert [line for line in plan if "Scan" in line and "fanin_run" in line], plan


def test_reading_with_a_wrong_password_raises_our_error(stack, tmp_path, as_user):
    stack.users["eve"] = "no account, no password"
    as_user("eve")
    with pytest.raises(TrackingRefused, match="401"):
        fanin.runs("initializers", project=tmp_path)


@pytest.mark.slow
def test_foreign_hosts_and_foreign_pages_are_refused(stack):
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert stack.request("GET", path, user="ada")[0] == 200
    assert stack.request("GET", path, user="ada", headers={"Host": "mlflow:5000"})[0] == 200
    assert stack.request("GET", path, user="ada", headers={"Host": "attacker.example"})[0] == 403
    body = {"name": "forged"}
    create = "/api/2.0/mlflow/experiments/create"
    foreign = {"Origin": "https://attacker.example"}
    assert stack.request("POST", create, user="ada", body=body, headers=foreign)[0] == 403
    assert stack.read("select count(*) from experiments where name = 'forged'") == ["0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["../../secret", "..%2F..%2Fsecret", "%2e%2e/%2e%2e/secret", "/etc/passwd", "%2Fetc%2Fpasswd"]
)
def test_an_artifact_path_cannot_leave_the_store(path, stack):
    (stack.artifacts.parent / "secret").write_text("outside")
    for root in ("/api/2.0/mlflow-artifacts/artifacts", "/ajax-api/2.0/mlflow-artifacts/artifacts"):
        status, text = stack.request("GET", f"{root}/{path}", user="admin")
        assert status >= 400 and "outside" not in text and "root:" not in text
        assert stack.request("PUT", f"{root}/{path}", user="admin", body={"a": 1})[0] >= 400
    assert (stack.artifacts.parent / "secret").read_text() == "outside"


@pytest.mark.slow
def test_the_reader_reads_results_and_nothing_else(stack, swept):
    assert int(stack.read("select count(*) from metrics")[0]) > 0
    # its sessions are read-only by default, and would have no right to write otherwise
    for statement in ("delete from metrics", "create table mine (i int)", "update runs set name = 'x'"):
        with pytest.raises(RuntimeError, match="read-only|permission denied"):
            stack.read(statement)
        with pytest.raises(RuntimeError, match="permission denied"):
            stack.read(f"begin read write; {statement}; commit")
    with pytest.raises(RuntimeError, match="permission denied for database"):
        stack.read("select 1", database="mlflow_auth")


@pytest.mark.slow
def test_a_role_reaches_its_own_databases_only(stack):
    secrets = stack.secrets
    for user, password, database in [
        ("optuna", secrets["OPTUNA_DB_PASSWORD"], "mlflow"),
        ("optuna", secrets["OPTUNA_DB_PASSWORD"], "mlflow_auth"),
        ("mlflow", secrets["MLFLOW_DB_PASSWORD"], "optuna"),
        ("reader", secrets["READER_DB_PASSWORD"], "postgres"),
    ]:
        with pytest.raises(RuntimeError, match="permission denied for database"):
            stack.cluster.ask("select 1", database=database, user=user, password=password)
    with pytest.raises(RuntimeError, match="password authentication failed"):
        stack.cluster.ask("select 1", password="guess")


@pytest.mark.slow
def test_the_reader_sees_studies_that_optuna_makes(stack):
    password = stack.secrets["OPTUNA_DB_PASSWORD"]
    for statement in ("create table studies (study_id int)", "insert into studies values (7)"):
        stack.cluster.ask(statement, database="optuna", user="optuna", password=password)
    assert stack.read("select study_id from studies", database="optuna") == ["7"]
    stack.cluster.ask("drop table studies", database="optuna", user="optuna", password=password)


@pytest.mark.slow
def test_no_secret_shows_in_logs_process_lists_or_the_project(stack, swept):
    hidden = [stack.secrets[name] for name in stack_tool.SECRETS] + [*stack.users.values()]
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any("--app-name basic-auth" in command for command in commands)
    files = [path for path in swept.rglob("*") if path.is_file() and "conf" not in path.parts]
    texts = [*commands, stack.log.read_text(), (stack.cluster.folder / "log").read_text()]
    texts += [path.read_bytes().decode(errors="ignore") for path in files]
    assert not [secret for secret in hidden for text in texts if secret in text]
    params = stack.read("select value from params") + stack.read("select value from tags")
    assert not [secret for secret in hidden for text in params if secret in text]


@pytest.mark.slow
def test_a_backup_brings_everything_back_after_all_is_lost(stack, swept, as_user, tmp_path, monkeypatch):
    """Last: it stops the server. Also shows that a server which starts again has its accounts and data."""
    monkeypatch.setattr(stack_tool, "compose", stack.compose)
    monkeypatch.chdir(tmp_path)
    as_user("ada")
    before = fanin.runs("initializers", project=swept)
    files = {path.relative_to(stack.artifacts) for path in stack.artifacts.rglob("*")}
    folder = tmp_path / "backups" / "now"
    stack_tool.backup(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    stack.request("DELETE", "/api/2.0/mlflow/users/delete", user="admin", body={"username": "ada"})
    password = stack.secrets["MLFLOW_DB_PASSWORD"]
    stack.stop()
    stack.cluster.ask("truncate experiments cascade", password=password)
    shutil.rmtree(stack.artifacts / "1", ignore_errors=True)
    stack_tool.restore(folder)
    stack.start()

    assert fanin.runs("initializers", project=swept).equals(before)
    assert {path.relative_to(stack.artifacts) for path in stack.artifacts.rglob("*")} == files
    with pytest.raises(RuntimeError, match="permission denied for database"):
        stack.read("select 1", database="mlflow_auth")
    assert int(stack.read("select count(*) from metrics")[0]) > 0, "the reader's rights are part of the backup"
