"""The sizes of a study: `study.profiles` in its file names lists of overrides, `profile=smoke` applies one.

    study:
      profiles:
        smoke: [epochs=1, data.n_train=500, "model.depth=10,30"]

They come after the file and before what is typed, so that a user can still change each of them. Without a profile,
and as `profile=full`, a study is what its file says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fanin.errors import ConfigError, require, unknown

FULL = "full"
FILE = "+sweeps="


def with_profile(overrides: Sequence[str], *, sweeps: Path) -> list[str]:
    """The overrides of `fanin sweep` with those of the profile they ask for. Raises ConfigError for a profile that
    the study has not."""
    asked = [line.partition("=")[2] for line in overrides if line.startswith("profile=")]
    name = asked[-1] if asked else None
    if name in (None, FULL, "null"):
        return list(overrides)
    file = next((line for line in overrides if line.startswith(FILE)), None)
    require(file, "profile", "goes with a study: fanin sweep STUDY profile=...", name)
    assert file
    profiles = _profiles(sweeps / f"{file.removeprefix(FILE)}.yaml")
    if name not in profiles:
        raise unknown("profile", name, [*profiles, FULL])
    lines = profiles[name]
    fits = isinstance(lines, list) and all(isinstance(line, str) and "=" in line for line in lines)
    require(fits, f"study.profiles.{name}", "must be a list of overrides, such as [epochs=1]", lines)
    at = overrides.index(file) + 1
    return [*overrides[:at], *lines, *overrides[at:]]


def _profiles(path: Path) -> Mapping[str, Any]:
    try:
        study = (yaml.safe_load(path.read_text()) or {}).get("study") or {}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    profiles = study.get("profiles") or {}
    require(isinstance(profiles, Mapping), "study.profiles", "must look like {smoke: [epochs=1]}", profiles)
    return profiles
