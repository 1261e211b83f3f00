"""The image of what trains, deploy/Dockerfile: as text, for no engine that could build it is at hand."""

import importlib.metadata
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch

import pytest
from native_stack import ROOT, SERVICES, program
from packaging.requirements import Requirement

FILE = ROOT / "deploy" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = [name for name in SERVICES if "build" in SERVICES[name]]
LINES = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in re.sub(r"\\\n\s*", "", "\n".join(LINES)).splitlines()]


def arguments(kind):
    return [text for word, text in INSTRUCTIONS if word == kind]


def test_the_linter_has_nothing_to_say():
    if not (hadolint := program("hadolint")):
        pytest.skip("hadolint is not installed (pip install 'fanin[stack]')")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_both_stages_start_from_the_same_release_of_a_python_that_fanin_runs_on():
    bases = {text.split()[0] for text in arguments("FROM")}
    [version] = [re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+", base) for base in bases]
    assert f">={version[1]}.{version[2]}" == PROJECT["requires-python"], "the version that everything is tested with"


def test_it_runs_as_the_user_that_the_services_run_as_who_owns_the_project_folder():
    users = {SERVICES[name]["user"] for name in OWN}
    [user] = arguments("USER")
    assert users == {user} and user.split(":")[0] == "10001"
    words = [word for word, _ in INSTRUCTIONS]
    assert "RUN" not in words[words.index("USER") :], "nothing is written as root afterwards"
    [made] = [text for text in arguments("RUN") if "useradd" in text]
    assert "--uid=10001" in made and re.search(r"install --directory --owner=fanin \S+ /project\b", made)
    assert arguments("WORKDIR")[-1] == "/project"
    assert all(
        target.startswith("/project") for name in SERVICES if "build" in SERVICES[name] for target in targets(name)
    )


def targets(service):
    return [volume.split(":")[1] for volume in SERVICES[service].get("volumes", [])]


def test_no_secret_is_built_in_and_nothing_is_fetched_past_the_package_index():
    assert not arguments("ADD")
    names = [
        word.partition("=")[0] for kind in ("ARG", "ENV") for text in arguments(kind) for word in shlex.split(text)
    ]
    assert names and not [name for name in names if re.search("PASSWORD|SECRET|TOKEN|KEY", name)]
    assert not re.search(r"https?://|curl|wget|latest", FILE.read_text())


def test_no_cache_is_left_in_a_layer():
    assert all("--no-cache-dir" in text for text in arguments("RUN") if re.search(r"(?<!uv )pip install", text))
    assert any("UV_NO_CACHE=1" in text for text in arguments("ENV"))


def test_the_builder_sees_the_files_it_copies_and_no_others():
    """By the rules of .dockerignore: the last line that matches decides."""
    rules = FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for text in arguments("COPY") if "--from" not in text for word in shlex.split(text)[:-1]}
    assert copied == allowed and all((ROOT / name).exists() for name in copied)
    kept_out = (".env", ".git", "backups", "mlflow.db", "deploy/auth.ini", "conf")
    assert not [name for name in kept_out for rule in allowed if fnmatch(name, rule)]


def test_the_options_that_are_given_to_uv_exist():
    if not (uv := program("uv")):
        pytest.skip("uv is not installed")
    known = subprocess.run([uv, "pip", "install", "--help"], capture_output=True, text=True, check=True).stdout
    used = {option for text in arguments("RUN") if "uv pip" in text for option in re.findall(r"--[a-z-]+", text)}
    used -= {"--no-cache-dir", "--without-pip"}
    assert {"--torch-backend", "--constraints"} <= used
    assert not [option for option in used if not re.search(rf"{option}\b", known)]


def test_everything_that_is_installed_has_its_version_pinned():
    pytest.importorskip("ray", reason="needs the extra fanin[ray]")
    pinned = {}
    for file in (ROOT / "requirements.txt", ROOT / "deploy" / "constraints.txt"):
        pinned |= dict(re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(), flags=re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    needed = closure([*PROJECT["dependencies"], *extras["server"], *extras["ray"]])
    assert {"ray", "torch", "psycopg", "flask-wtf"} <= needed
    assert not needed - {*pinned}
    assert importlib.metadata.version("ray") == pinned["ray"], "the version that tests/test_ray.py runs"


def closure(requirements):
    """Names of all distributions that these requirements install on this machine, without CUDA's libraries."""
    found, wanted = set(), [(Requirement(text), "") for text in requirements]
    while wanted:
        requirement, extra = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if re.match("nvidia-|cuda-|triton", name) or (name, *requirement.extras) in found:
            continue
        found.add((name, *requirement.extras))
        below = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        wanted += [(other, extra) for other in below for extra in ("", *requirement.extras)]
    return {name for name, *_ in found}
