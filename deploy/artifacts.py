"""The files of all runs as one tar archive: `artifacts.py save > FILE`, `artifacts.py load < FILE`.

Runs where the MLflow server does (docker-compose.yml; tools/stack.py calls it) and finds the files where that keeps
them: MLFLOW_ARTIFACTS_DESTINATION is a folder, or s3://bucket[/prefix] on an object store. The names in the archive
are the same for both, so what was saved from one can be loaded into the other. Loading replaces files of the same
name and leaves others alone.
"""

import os
import posixpath
import sys
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

BLOCK = tarfile.RECORDSIZE


def main() -> None:
    [action] = sys.argv[1:]
    place = os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    store = Bucket(place.removeprefix("s3://")) if place.startswith("s3://") else Folder(place)
    if action == "save":
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", bufsize=BLOCK) as archive:
            store.save(archive)
    elif action == "load":
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", bufsize=BLOCK) as archive:
            store.load(archive)
    else:
        sys.exit(f"artifacts: save or load, not {action!r}")


class Folder:
    def __init__(self, path: str) -> None:
        self.path = path

    def save(self, archive: tarfile.TarFile) -> None:
        archive.add(self.path, arcname=".")

    def load(self, archive: tarfile.TarFile) -> None:
        archive.extractall(self.path, filter="data")  # raises FilterError for a name that leads out of the folder


class Bucket:
    def __init__(self, place: str) -> None:
        import boto3
        from botocore.config import Config

        self.bucket, _, self.prefix = place.rstrip("/").partition("/")
        style = Config(s3={"addressing_style": os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")})
        endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
        self.client: Any = boto3.client("s3", endpoint_url=endpoint, config=style)

    def save(self, archive: tarfile.TarFile) -> None:
        for key in self.keys():
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            member = tarfile.TarInfo(posixpath.relpath(key, self.prefix or "."))
            member.size, member.mtime, member.mode = answer["ContentLength"], answer["LastModified"].timestamp(), 0o644
            archive.addfile(member, answer["Body"])

    def keys(self) -> Iterator[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/" if self.prefix else ""
        )
        for page in pages:
            yield from (found["Key"] for found in page.get("Contents", []))

    def load(self, archive: tarfile.TarFile) -> None:
        for member in archive:
            if content := archive.extractfile(member):  # none of a folder
                key = posixpath.normpath(posixpath.join(self.prefix, member.name))
                # a member of a stream promises to seek and cannot: boto3 must take it for what can only be read
                self.client.upload_fileobj(SimpleNamespace(read=content.read), self.bucket, key)


if __name__ == "__main__":
    main()
