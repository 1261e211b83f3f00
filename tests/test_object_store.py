"""Where the server keeps files: deploy/artifacts.py on a folder, and the server with an object store in its place.

The store is `rclone serve s3`, which checks signatures as S3 does; Garage, the service s3, is not to be had as a
package."""

import importlib.util
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
from native_stack import ROOT, SERVICES, import_stack, lacking, new_project, program, running_stack
from recorded import wait_until
from servers import free_port

import fanin

TOOL = ROOT / "deploy" / "artifacts.py"
SWEEP = ["sweep", "initializers", "study.replicates=1", "epochs=1", "initializer=he_normal,zeros"]
SWEEP += ["data.n_train=400", "hardware.workers=1"]


def call(action, place, *, content=b"", check=True, **variables):
    environment = os.environ | {"MLFLOW_ARTIFACTS_DESTINATION": str(place)} | variables
    done = subprocess.run(
        [sys.executable, TOOL, action], input=content, capture_output=True, check=False, env=environment
    )
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


def fill(folder):
    """Files as runs leave them: nested, empty, large, with names that are not plain."""
    contents = {"1/a/artifacts/last.pt": os.urandom(3_000_000), "1/a/artifacts/empty": b"", "2/b/ä ö.txt": b"text"}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_from_a_folder_is_loaded_into_another_beside_what_is_there(tmp_path):
    contents = fill(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "later").write_bytes(b"stays")
    call("load", tmp_path / "new", content=call("save", tmp_path / "old").stdout)
    assert read(tmp_path / "new") == contents | {"later": b"stays"}


@pytest.mark.parametrize("name", ["../outside", "1/../../outside", "/outside"])
def test_no_name_in_an_archive_leads_out_of_the_folder(name, tmp_path):
    (tmp_path / "store").mkdir()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"bad"))
    done = call("load", tmp_path / "store", content=content.getvalue(), check=False)
    assert not (tmp_path / "outside").exists() and not Path("/outside").exists()
    assert done.returncode != 0 or (tmp_path / "store" / "outside").exists(), "refused, or kept inside"


def test_a_torn_archive_is_an_error(tmp_path):
    fill(tmp_path)
    whole = call("save", tmp_path).stdout
    (tmp_path / "new").mkdir()
    assert call("load", tmp_path / "new", content=whole[: len(whole) // 2], check=False).returncode != 0


@contextmanager
def object_store(folder, *, access, secret):
    """An S3 server with the bucket `artifacts` in `folder`; yields its address."""
    (folder / "artifacts").mkdir(parents=True)
    port = free_port()
    environment = os.environ | {"RCLONE_AUTH_KEY": f'"{access},{secret}"', "RCLONE_CONFIG": "/dev/null"}
    command = [program("rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", "--vfs-cache-mode=off", str(folder)]
    with (folder.parent / "s3.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port) or server.poll() is not None, seconds=30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def need_store():
    if not program("rclone") or not importlib.util.find_spec("boto3"):
        pytest.skip("rclone or boto3 is not installed (pip install 'fanin[stack]')")


@pytest.mark.parametrize("prefix", ["", "/of/ours"])
def test_what_is_saved_from_a_folder_is_loaded_into_a_bucket_and_back(prefix, tmp_path):
    need_store()
    contents = fill(tmp_path / "old")
    (tmp_path / "new").mkdir()
    with object_store(tmp_path / "s3", access="GK1", secret="the key") as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "GK1", "AWS_SECRET_ACCESS_KEY": "the key", "AWS_DEFAULT_REGION": "garage"}
        keys |= {"MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path"}
        place = f"s3://artifacts{prefix}"
        call("load", place, content=call("save", tmp_path / "old").stdout, **keys)
        call("load", tmp_path / "new", content=call("save", place, **keys).stdout)
        refused = call("save", place, check=False, **keys | {"AWS_SECRET_ACCESS_KEY": "another"})
    assert read(tmp_path / "s3" / "artifacts" / prefix.strip("/")) == read(tmp_path / "new") == contents
    assert refused.returncode != 0, "the store asks for the key"


@pytest.mark.slow
def test_a_server_with_an_object_store_serves_files_and_moves_them_from_there(tmp_path, monkeypatch):
    """The service mlflow as FANIN_ARTIFACTS=s3://artifacts makes it; then its backup restored onto a volume."""
    need_store()
    if missing := lacking():
        pytest.skip(missing)
    tool = import_stack()
    keys = {"access": "GK31c2f218a2e44f485b94239e31c2f218", "secret": "a secret of the object store"}
    with object_store(tmp_path / "s3", **keys) as endpoint:
        settings = {"FANIN_ARTIFACTS": "s3://artifacts", "FANIN_S3_ENDPOINT": endpoint}
        (tmp_path / ".env").write_text(f"S3_ACCESS_KEY={keys['access']}\nS3_SECRET_KEY={keys['secret']}\n")
        with running_stack(tmp_path, **settings) as stack:
            project = new_project(tmp_path / "ada")
            done = stack.fanin(*SWEEP, user="ada", folder=project)
            assert done.returncode == 0 and "not fully" not in done.stderr, done.stderr
            assert keys["secret"] not in done.stdout + done.stderr + stack.log.read_text()
            stored = read(tmp_path / "s3" / "artifacts")
            assert len([name for name in stored if name.endswith("last.pt")]) == 2
            assert not [name for name in read(stack.artifacts) if name.endswith("last.pt")], "none on the volume"
            [run] = stack.read(
                "select run_uuid from runs where artifact_uri like 'mlflow-artifacts:/%' and run_uuid "
                "in (select run_uuid from params where key = 'initializer' and value = 'zeros')"
            )
            answer = stack.request("GET", f"/get-artifact?path=config.yaml&run_uuid={run}", user="ada")
            assert answer[0] == 200 and "zeros" in answer[1]
            assert stack.request("GET", f"/get-artifact?path=config.yaml&run_uuid={run}", user="bob")[0] == 403

            monkeypatch.setattr(tool, "compose", stack.compose)
            monkeypatch.chdir(tmp_path)
            tool.backup(tmp_path / "backups" / "now")
            stack.stop()
            shutil.rmtree(tmp_path / "s3" / "artifacts")
            stack.secrets["FANIN_ARTIFACTS"] = "/artifacts"
            tool.restore(tmp_path / "backups" / "now")
            stack.start()
            assert stored.items() <= read(stack.artifacts).items()
            assert stack.request("GET", f"/get-artifact?path=config.yaml&run_uuid={run}", user="ada") == answer
            for name, value in stack.variables("ada").items():
                monkeypatch.setenv(name, value)
            assert len(fanin.runs("initializers", project=project)) == 2


def test_the_object_store_keeps_its_data_on_its_volume_and_has_the_bucket_that_make_up_names():
    tool = import_stack()
    garage = (ROOT / "deploy" / "garage.toml").read_text()
    config = tomllib.loads(garage)
    [volume, _] = SERVICES["s3"]["volumes"]
    place = volume.split(":")[1]
    assert config["metadata_dir"].startswith(f"{place}/") and config["data_dir"].startswith(f"{place}/")
    assert f"s3://{SERVICES['s3']['environment']['GARAGE_DEFAULT_BUCKET']}" == tool.BUCKET
    assert config["s3_api"]["s3_region"] == tool.SETTINGS["FANIN_S3_REGION"]
    assert tool.SETTINGS["FANIN_S3_ENDPOINT"] == f"http://s3:{config['s3_api']['api_bind_addr'].split(':')[1]}"
    assert config["rpc_bind_addr"].startswith("127.0.0.1:"), "no other node may join"
    assert not [name for name in ("admin", "s3_web") if name in config]
