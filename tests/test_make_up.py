"""`make up`, `down`, `backup` and `restore` without Docker: what they write, refuse and say."""

import os
import stat
import subprocess
import sys

import pytest
from native_stack import ROOT, import_stack
from servers import free_port

stack_tool = import_stack()


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
