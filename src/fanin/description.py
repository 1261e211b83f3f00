"""What MLflow is told about a run besides its metrics: name, tags and params, in the characters it allows."""

import getpass
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LONGEST_KEY, LONGEST_NAME, LONGEST_TAG = 250, 250, 8000
LONGEST_PARAM = 6000  # MLflow cuts what is longer without a word
NOT_ON_A_RUN = {"study", "profile"}  # config that describes the study: it is on the parent run
WHERE_DATA_LIE = ("root", "download")
# What decides no number of a run would stand between what does whenever runs are compared.
UNTOLD = {"tracking", *(f"tracking.{key}" for key in ("uri", "artifacts", "state"))}
UNTOLD |= {f"data.{key}" for key in WHERE_DATA_LIE}
UNTOLD |= {f"hardware.{key}" for key in ("workers", "gpus_per_run", "patience", "checkpoint", "cluster")}
CLUSTER = "hardware.slurm"
OWN = ("fanin.", "torch.")  # a `_target_` in these is known by the name of its choice


@dataclass(frozen=True)
class DataUsed:
    """What a run was trained on, as MLflow's column Dataset and its filter show it."""

    name: str  # the choice
    digest: str  # of the configuration that decides which images the run saw
    source: str  # JSON: where they come from
    profile: str  # JSON: their shape, scale and split


@dataclass(frozen=True)
class Description:
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    files: dict[str, str]  # artifact path -> text: the params that are too long for MLflow, in full
    data: DataUsed | None = None


def describe_study(spec: Mapping) -> Description:
    tags = {
        "fanin.study": spec["study"],
        "fanin.run": spec["key"],
        "fanin.question": spec["question"],
        "fanin.swept": json.dumps(spec["swept"]),
        "fanin.metric": spec["metric"],
        "fanin.direction": spec["direction"],
        "fanin.criteria": spec.get("criteria"),
    }
    return Description(spec["name"][:LONGEST_NAME], clean_tags(source() | spec["tags"] | tags), {}, {})


def describe_run(spec: Mapping, *, study: Mapping, parent: str) -> Description:
    tags = {
        "fanin.study": spec["study"],
        "fanin.run": spec["key"],
        "fanin.variant": spec["variant"],
        "fanin.replicate": str(spec["replicate"]),
        "mlflow.parentRunId": parent,
    }
    full = flatten_spec(spec)
    files = {f"params/{key.replace('/', '_')}.txt": text for key, text in full.items() if is_long(text)}
    params = {key: abridge(text) for key, text in full.items()}
    every = clean_tags(source() | study["tags"] | tags)
    return Description(spec["name"][:LONGEST_NAME], every, params, files, describe_data(spec))


def describe_data(spec: Mapping) -> DataUsed | None:
    """None for a foreign program, whose configuration says nothing we could read."""
    name, data = spec["choices"].get("data"), spec["config"].get("data")
    if not isinstance(name, str) or not isinstance(data, Mapping) or "_target_" not in data:
        return None
    decisive = {key: value for key, value in data.items() if key not in WHERE_DATA_LIE}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:8]
    profile = {key: value for key, value in decisive.items() if key != "_target_"}
    where = {"loader": data["_target_"], "root": data.get("root")}
    return DataUsed(name, digest, json.dumps(where), json.dumps(profile, default=str))


def flatten_spec(spec: Mapping) -> dict[str, str]:
    """A run's params: what is swept comes first, and is always there."""
    full = flatten(spec["config"], spec["choices"])
    swept = [allowed(key) for key in spec["overrides"]]
    told = {key: text for key, text in full.items() if not is_noise(key, text)}
    return {key: full[key] for key in swept if key in full} | told


def swept_values(spec: Mapping, swept: Sequence[str]) -> list[str]:
    """The params `swept` of a run."""
    full = flatten(spec["config"], spec["choices"])
    return [full.get(allowed(key), "null") for key in swept]


def flatten(config: Mapping, choices: Mapping) -> dict[str, str]:
    """Dotted key -> text: `initializer`: the choice, `initializer.gain`: its argument, ..."""
    pairs = {key: render(value) for key, value in leaves(config) if key.split(".")[0] not in NOT_ON_A_RUN}
    names = {group: render(choice) for group, choice in choices.items()}
    return {allowed(key): text for key, text in (names | pairs | names).items()}


def is_noise(key: str, text: str) -> bool:
    if key.startswith("seeds.") and text == "null":
        return True
    return key in UNTOLD or key.startswith(CLUSTER) or (key.endswith("._target_") and text.startswith(OWN))


def leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything in nested mappings; an empty one is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def render(value: object) -> str:
    """As YAML spells it: null, true, 0.1, [256, 256]; a string as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


@lru_cache(4096)  # asked for every point
def allowed(key: str) -> str:
    """`key` if MLflow takes it as a name, else one like it, told apart from all others by a hash.

    MLflow takes letters, digits and `_-. :/`, at most 250 of them, and nothing that means another path.
    """
    clean = posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", key)).lstrip("./")
    if clean and clean == key and len(key) <= LONGEST_KEY:
        return key
    return f"{clean[: LONGEST_KEY - 9]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def is_long(text: str) -> bool:
    return len(text) > LONGEST_PARAM


def abridge(text: str, *, longest: int = LONGEST_PARAM) -> str:
    """At most `longest` characters, ending in a note if any had to go."""
    note = f" ... ({len(text)} characters; in full among the artifacts)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def clean_tags(tags: Mapping[str, object]) -> dict[str, str]:
    return {allowed(key): str(value)[:LONGEST_TAG] for key, value in tags.items() if value is not None}


def source() -> dict[str, str]:
    """The tags behind the UI's columns User and Source."""
    tags = {"mlflow.source.name": "fanin", "mlflow.source.type": "LOCAL"}
    try:
        return tags | {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return tags
