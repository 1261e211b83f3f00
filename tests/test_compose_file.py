"""docker-compose.yml as a document: what is pinned, published, mounted, secret and waited for; and its manual."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from native_stack import COMPOSE, ROOT, SERVICES, import_stack

from fanin.source import READ_URI

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


def test_the_manual_names_what_there_is():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {*re.findall(r"(?:`|^ {4})make ([a-z]+)", MANUAL, flags=re.MULTILINE)} <= {*targets}
    assert {*re.findall(r"\bFANIN_\w+", MANUAL)} <= {*stack_tool.SETTINGS, READ_URI, "FANIN_DATA", "FANIN_STATE_URI"}
    assert {*re.findall(r"PROFILE=([\w,]+)", MANUAL)} >= {*stack_tool.PROFILES}
    assert yaml.safe_load(TEXT)["name"] in MANUAL
