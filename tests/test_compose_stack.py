"""docker-compose.yml as a document; and its services as processes of this machine, for want of Docker."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib

import psutil
import pytest
import yaml
from native_stack import (
    COMPOSE,
    ROOT,
    SERVICES,
    environment,
    import_stack,
    interpolate,
    lacking,
    new_project,
    running_stack,
)
from servers import free_port

import fanin
from fanin.errors import ConfigError
from fanin.source import READ_URI
from fanin.tracking import TrackingRefused

TEXT = (ROOT / "docker-compose.yml").read_text()
MANUAL = (ROOT / "docs" / "server.md").read_text()
OWN = [name for name, service in SERVICES.items() if "build" in service]  # our image, so our code
VARIABLE = re.compile(r"\$\{(\w+)")
stack_tool = import_stack()


def strings(node):
    """Every string in a YAML document."""
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def mounts(service):
    return [volume.split(":")[0] for volume in SERVICES[service].get("volumes", [])]


def variables_of(*services):
    """Names of the variables in .env that these services get."""
    return {name for service in services for text in strings(SERVICES[service]) for name in VARIABLE.findall(text)}


def test_the_file_obeys_the_schema_of_the_compose_specification():
    pytest.importorskip("check_jsonschema", reason="needs `pip install check-jsonschema`")
    command = [
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        ROOT / "docker-compose.yml",
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_pinned_to_a_release(service):
    name, _, tag = SERVICES[service]["image"].rpartition(":")
    assert name and re.match(r"v?\d+\.\d+", tag)


def test_the_server_is_of_the_version_that_clients_are_tested_with():
    pinned = re.search(r"^mlflow==(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)[1]
    assert SERVICES["mlflow"]["image"].endswith(f":v{pinned}-full")


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_published_beyond_this_machine(service):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", []))
    assert SERVICES[service].get("network_mode", "none") == "none"


def test_the_database_is_on_a_network_without_a_way_out():
    assert SERVICES["postgres"]["networks"] == ["database"] and "ports" not in SERVICES["postgres"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_our_own_image_has_the_version_of_the_package_and_is_never_pulled():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in OWN:
        options = SERVICES[service]
        assert options["image"] == f"fanin:{version}" and options["pull_policy"] == "build"
        assert (ROOT / options["build"]["context"] / options["build"]["dockerfile"]).is_file()


def test_only_the_server_reaches_where_the_data_are():
    on = {
        network: {name for name in SERVICES if network in SERVICES[name].get("networks", [])}
        for network in COMPOSE["networks"]
    }
    assert on["database"] == {"postgres", "mlflow", "optuna-dashboard"}
    assert on["storage"] == {"s3", "mlflow"} and COMPOSE["networks"]["storage"] == {"internal": True}
    assert on["training"] == {"mlflow", *OWN}
    assert not {"postgres", "s3", *OWN} & on["published"]
    assert not [name for name in (*OWN, "s3") if "ports" in SERVICES[name]]


def test_what_trains_knows_no_secret_but_its_own():
    """A study is code: it must not be able to read or delete what others made."""
    assert variables_of(*OWN) & {*stack_tool.SECRETS} == {"SWEEPER_PASSWORD", "RAY_AUTH_TOKEN"}
    assert variables_of("ray-worker") & {*stack_tool.SECRETS} == {"RAY_AUTH_TOKEN"}, "the head talks to MLflow"
    assert variables_of("s3") & {*stack_tool.SECRETS} == {"S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_RPC_SECRET"}
    assert not variables_of("artifacts-owner", "s3-owner")
    for service in OWN:
        assert {*mounts(service)} <= {"project", "./conf", "./sweeps"}, "the folder itself holds .env"
        assert all(volume.endswith(":ro") for volume in SERVICES[service].get("volumes", []) if volume[0] == ".")


def test_a_ray_cluster_asks_for_a_token():
    for service in ("ray-head", "ray-worker"):
        assert SERVICES[service]["environment"]["RAY_AUTH_MODE"] == "token"


def test_the_profiles_are_those_that_make_up_knows():
    assert {profile for service in SERVICES.values() for profile in service.get("profiles", [])} == {
        *stack_tool.PROFILES
    }
    assert [name for name in SERVICES if "profiles" not in SERVICES[name]] == ["postgres", "artifacts-owner", "mlflow"]


def test_whoever_is_waited_for_says_when_it_is_ready():
    for service in SERVICES.values():
        for other, need in service.get("depends_on", {}).items():
            if need["condition"] == "service_healthy":
                assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"
            else:
                assert need["condition"] == "service_completed_successfully" and other.endswith("-owner")
            optional = "profiles" in SERVICES[other] and SERVICES[other]["profiles"] != service.get("profiles")
            assert need.get("required", True) is not optional, "a service of another profile may not be there"


def test_every_variable_is_required_and_made_by_make_up():
    used = re.findall(r"\$\{(\w+)([^}]*)\}", TEXT)
    assert {rule for _, rule in used} == {":?run make up"}, "a default would be the same everywhere"
    assert {name for name, _ in used} == {*stack_tool.SECRETS, *stack_tool.SETTINGS}


@pytest.mark.parametrize("service", SERVICES)
def test_a_secret_is_never_written_down(service):
    for name, value in SERVICES[service].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|KEY|TOKEN", name):
            assert re.fullmatch(r"\$\{\w+:\?run make up\}", value), name
    assert not re.search(r"://[^/\s]*:[^/\s]*@", TEXT), "an address with a password"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_more_rights_than_it_needs(service):
    options = SERVICES[service]
    assert options["cap_drop"] == ["ALL"] and options["security_opt"] == ["no-new-privileges:true"]
    assert options["read_only"] is True
    assert not {"privileged", "devices", "pid", "ipc"} & {*options}
    assert not any("docker.sock" in mount for mount in mounts(service))
    root = options["user"].split(":")[0] in ("0", "root")
    assert not root or (options["cap_add"] == ["CHOWN"] and options["network_mode"] == "none")


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_cannot_take_the_machine(service):
    options = SERVICES[service]
    assert options["mem_limit"] and options["pids_limit"] and ("cpus" in options or "cpuset" in options)
    assert {"max-size", "max-file"} <= {*options["logging"]["options"]}


@pytest.mark.parametrize("service", SERVICES)
def test_every_mounted_file_and_volume_exists(service):
    for source in mounts(service):
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_workers_cannot_ask_for_more_connections_than_the_database_has():
    settings = SERVICES["mlflow"]["environment"]
    pool = settings["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] + settings["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"]
    most = int(re.search(r"max_connections=(\d+)", " ".join(SERVICES["postgres"]["command"]))[1])
    assert (settings["MLFLOW_WORKERS"] + 1) * 2 * pool < most


def test_neither_secrets_nor_backups_are_ever_committed():
    for name in (".env", "backups/20260101-000000/mlflow.dump"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 0


def test_secrets_are_random_private_and_made_once(tmp_path):
    path, other = tmp_path / ".env", tmp_path / "other"
    made = stack_tool.complete_env(path)
    values = stack_tool.read_env(path)
    assert {*made} == {*values} == {*stack_tool.SECRETS, *stack_tool.SETTINGS}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stack_tool.complete_env(path) == [] and stack_tool.read_env(path) == values
    stack_tool.complete_env(other)
    secrets = [found[name] for found in (values, stack_tool.read_env(other)) for name in stack_tool.SECRETS]
    assert len({*secrets}) == 2 * len(stack_tool.SECRETS) and all(len(secret) >= 32 for secret in secrets)


def test_a_value_that_the_user_has_set_stays_and_only_what_lacks_is_added(tmp_path):
    path = tmp_path / ".env"
    path.write_text("# ours\nFANIN_PORT=5050\nMLFLOW_ADMIN_PASSWORD=chosen by hand")  # no newline at its end
    path.chmod(0o644)
    made = stack_tool.complete_env(path)
    values = stack_tool.read_env(path)
    assert values["FANIN_PORT"] == "5050" and values["MLFLOW_ADMIN_PASSWORD"] == "chosen by hand"
    assert "FANIN_PORT" not in made and "POSTGRES_PASSWORD" in made
    assert path.read_text().startswith("# ours\n") and stat.S_IMODE(path.stat().st_mode) == 0o600


def run_tool(folder, *arguments, compose):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "stack.py", *arguments],
        cwd=folder,
        env=os.environ | {"COMPOSE": compose},
        capture_output=True,
        text=True,
        check=False,
    )


def test_up_tells_where_to_log_in_and_shows_no_password(tmp_path):
    done = run_tool(tmp_path, "up", compose="true")
    values = stack_tool.read_env(tmp_path / ".env")
    assert done.returncode == 0 and f"http://127.0.0.1:{values['FANIN_PORT']}" in done.stdout
    assert not any(values[name] in done.stdout + done.stderr for name in stack_tool.SECRETS)


@pytest.fixture
def recorder(tmp_path):
    """A Compose that does nothing, and what it was told to do with services."""
    log = tmp_path / "log"
    script = tmp_path / "compose"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    script.chmod(0o755)
    return str(script), lambda: [line for line in log.read_text().splitlines() if " --" in line and "psql" not in line]


def test_the_object_store_once_chosen_is_started_every_time(tmp_path, recorder):
    compose, told = recorder
    assert run_tool(tmp_path, "up", "--profile=s3,dashboard", compose=compose).returncode == 0
    assert stack_tool.read_env(tmp_path / ".env")["FANIN_ARTIFACTS"] == "s3://artifacts"
    assert run_tool(tmp_path, "up", compose=compose).returncode == 0
    assert told() == ["--profile dashboard --profile s3 up --detach --wait", "--profile s3 up --detach --wait"]


@pytest.mark.parametrize("before", ["", "FANIN_PORT=5000\n"], ids=["of now", "of an older version"])
def test_files_that_are_on_a_volume_are_not_left_behind_for_an_object_store(before, tmp_path, recorder):
    compose, told = recorder
    (tmp_path / ".env").write_text(before)
    run_tool(tmp_path, "up", compose=compose)
    done = run_tool(tmp_path, "up", "--profile=s3", compose=compose)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "FANIN_ARTIFACTS=/artifacts in .env" in done.stderr and len(told()) == 1


def test_an_object_store_of_ones_own_needs_no_profile(tmp_path, recorder):
    compose, told = recorder
    (tmp_path / ".env").write_text("FANIN_ARTIFACTS=s3://ours/fanin\nFANIN_S3_ENDPOINT=https://s3.example.com\n")
    assert run_tool(tmp_path, "up", compose=compose).returncode == 0
    assert told() == ["up --detach --wait"]


@pytest.mark.parametrize("given", ["s4", "s3,rya", "workers everything"])
def test_a_profile_that_does_not_exist_is_refused_before_anything_is_made(given, tmp_path):
    done = run_tool(tmp_path, "up", f"--profile={given}", compose="true")
    assert done.returncode == 1 and "is none of dashboard, s3, workers, ray" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_sweep_is_not_started_before_its_account_is_there(tmp_path, recorder):
    compose, told = recorder
    (tmp_path / ".env").write_text(f"FANIN_PORT={free_port()}\n")  # where nobody answers
    done = run_tool(tmp_path, "up", "--profile=ray,workers", compose=compose)
    assert done.returncode == 1 and "does not answer" in done.stderr
    assert told() == ["--profile ray up --detach --wait"]


def test_down_stops_whatever_a_profile_started(tmp_path, recorder):
    compose, told = recorder
    assert run_tool(tmp_path, "down", compose=compose).returncode == 0
    [command] = told()
    assert all(f"--profile {profile}" in command for profile in stack_tool.PROFILES) and command.endswith("down")


@pytest.mark.parametrize("action", ["up", "down", "backup"])
def test_without_compose_one_line_says_so_and_nothing_is_made(action, tmp_path):
    done = run_tool(tmp_path, action, compose="no-such-program compose")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Compose" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_restore_names_what_is_wrong_with_its_folder_before_it_complains_about_docker(tmp_path):
    def said(*arguments):
        done = run_tool(tmp_path, "restore", *arguments, compose="no-such-program compose")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and not (tmp_path / ".env").exists()
        return done.stderr

    assert "which backup? make restore FROM=backups/... (there is none in backups/ yet)" in said()
    assert "FROM=backups/1: there is no such folder; there is none in backups/" in said("--from", "backups/1")
    for name in ("20260101-000000", "20260201-000000"):
        (tmp_path / "backups" / name).mkdir(parents=True)
        for file in stack_tool.files_of_a_backup():
            (tmp_path / "backups" / name / file).touch()
    (tmp_path / "backups" / "20260301-000000").mkdir()
    assert "make restore FROM=backups/20260201-000000" in said()
    assert "the newest in backups/ is backups/20260201-000000" in said("--from", "nowhere")
    assert "it lacks mlflow.dump, " in said("--from", "backups/20260301-000000")
    assert "Compose" in said("--from", "backups/20260201-000000")


def test_a_backup_that_failed_half_way_is_not_taken_for_one(tmp_path):
    done = run_tool(tmp_path, "backup", compose="sh -c 'test $0 = version'")
    assert done.returncode == 1 and "failed" in done.stderr
    assert [path.suffix for path in (tmp_path / "backups").iterdir()] == [".part"]
    half = run_tool(tmp_path, "restore", "--from", str(tmp_path / "backups"), compose="true")
    assert half.returncode == 1 and "artifacts.tar" in half.stderr


def test_the_manual_names_what_there_is():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {*re.findall(r"(?:`|^ {4})make ([a-z]+)", MANUAL, flags=re.MULTILINE)} <= {*targets}
    assert {*re.findall(r"\bFANIN_\w+", MANUAL)} <= {*stack_tool.SETTINGS, READ_URI, "FANIN_DATA", "FANIN_STATE_URI"}
    assert {*re.findall(r"PROFILE=([\w,]+)", MANUAL)} >= {*stack_tool.PROFILES}
    assert yaml.safe_load(TEXT)["name"] in MANUAL


# The services as processes. One cluster and one server for all of what follows.

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
