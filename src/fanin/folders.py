"""What lies where under `.fanin/`, the project's durable memory of its studies and runs.

    .fanin/<study>/             a study: run.json, spool.jsonl, artifacts/, shipped.json
    .fanin/<study>/runs/<key>/  a run:   the same four, and checkpoint.pt

run.json says what is to be done and is written before it is; spool.jsonl what happened; artifacts/ holds
files to upload; shipped.json remembers how much of it MLflow has. A study is shipped like a run: as its
parent run.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fanin.errors import require

MEMORY = ".fanin"


@dataclass(frozen=True)
class Shipped:
    """How much of a folder the tracking store at `uri` has."""

    uri: str
    run: str = ""  # MLflow's run id
    offset: int = 0  # bytes of the spool
    status: str = ""  # the run's status there
    doubtful: bool = False  # a run was asked for and no answer came: there may be two


@dataclass(frozen=True)
class Folder:
    """The folder of a run, or of a study."""

    path: Path

    @property
    def spool(self) -> Path:
        return self.path / "spool.jsonl"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def study(self) -> "Folder":
        """The study's folder; a study is its own."""
        return Folder(self.path.parent.parent) if self.path.parent.name == "runs" else self

    def spec(self) -> dict:
        return json.loads((self.path / "run.json").read_text())

    def variants(self) -> dict[str, list["Folder"]]:
        """A study's planned runs by variant, each the lowest replicate first."""
        found: dict[str, list[Folder]] = {}
        for path in sorted(self.path.glob("runs/*"), key=lambda path: (len(path.name), path.name)):
            found.setdefault(path.name.partition("-r")[0], []).append(Folder(path))
        return found

    def shipped(self, uri: str) -> Shipped:
        """What the store at `uri` has; nothing, if what was shipped went to another store."""
        state = read_json(self.path / "shipped.json")
        return Shipped(**state) if state and state["uri"] == uri else Shipped(uri)

    def remember(self, shipped: Shipped) -> None:
        write_json(self.path / "shipped.json", asdict(shipped))

    def forget(self) -> None:
        (self.path / "shipped.json").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what only an unfinished run needs, and what MLflow has."""
        self.checkpoint.unlink(missing_ok=True)
        if self.artifacts.exists():
            shutil.rmtree(self.artifacts)


def declare_study(
    project: Path,
    name: str,
    *,
    question: str,
    identity: str = "",
    swept: Sequence[str] = (),
    metric: str = "",
    direction: str = "",
    replicates: int = 1,
    criteria: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Folder:
    """Write down a study, so that it can be shipped now or whenever the tracking store answers.

    `identity` tells apart studies that bear one name in turn: another identity, another parent run.
    `swept` are the keys that vary; `criteria` (JSON) is what it claims; `tags` are put on the parent run and on
    every run of the study.
    """
    require(name and "/" not in name and not name.startswith("."), "study.name", "must name a folder", name)
    folder = Folder(project / MEMORY / name)
    spec = {
        "study": name,
        "key": f"{name}-{identity}" if identity else name,
        "name": name,
        "question": question,
        "swept": list(swept),
        "metric": metric,
        "direction": direction,
        "replicates": replicates,
        "criteria": criteria,
        "tags": dict(tags or {}),
    }
    write_json(folder.path / "run.json", spec)
    return folder


def declare_run(study: Folder, spec: dict) -> Folder:
    """Write down a run of `study`: spec has key, variant, replicate, name, choices, config and overrides."""
    folder = Folder(study.path / "runs" / spec["key"])
    write_json(folder.path / "run.json", {"study": study.path.name} | spec)
    return folder


def remembered(project: Path) -> Iterator[Folder]:
    """Every study and run that has a spool: each study before its runs."""
    for study in sorted((project / MEMORY).glob("*/run.json")):
        for spec in [study, *sorted(study.parent.glob("runs/*/run.json"))]:
            if (spec.parent / "spool.jsonl").exists():
                yield Folder(spec.parent)


def write_json(path: Path, value: object, *, indent: int | None = None) -> None:
    write_whole(path, json.dumps(value, indent=indent).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at once, so that no reader and no kill -9 ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_json(path: Path) -> dict | None:
    """None if there is no such file, or a power failure emptied it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
