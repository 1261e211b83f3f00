"""Pre-flight of a plan: a verdict on every variant before anything is trained, shown, stored, and obeyed if asked.

A variant is flown once for all replicates, under the seeds of the first; what decides nothing at initialization (the
optimizer, the number of epochs) makes no further flight. Verdicts are functions of the configuration, so a resumed
study leaves out the same variants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fanin.errors import ConfigError
from fanin.folders import write_json
from fanin.sweep.checks import here, try_call
from fanin.sweep.display import waiting
from fanin.sweep.folder import StudyFolder
from fanin.sweep.identity import hash_of
from fanin.sweep.pool import Pool
from fanin.sweep.study import Study, Variant

MODES = ("warn", "skip", "off")
FLOWN = 100  # different initial networks; to fly more would hold up the first epoch
PATIENCE = 10.0  # seconds, and one more for each network
WIDTH = 100
TOLD = 5  # variants that are warned of
DECISIVE = ("model", "initializer", "data", "regularization", "seed", "seeds", "replicate")
HOPELESS = ("symmetric", "explodes", "vanishes")

Flight = Mapping[str, Any]  # what fanin.preflight.fly found


@dataclass(frozen=True)
class Flown:
    """The variants that were planned, and the flights of those that were looked at, by their keys."""

    variants: Sequence[Variant]
    flights: Mapping[str, Flight]

    def is_hopeless(self, variant: Variant) -> bool:
        return self.flights.get(variant.key, {}).get("verdict") in HOPELESS


def fly(study: Study, variants: Sequence[Variant], pool: Pool) -> Flown:
    """No flights with study.preflight=off. Raises ConfigError for a variant that cannot be built on its data."""
    distinct = list({one.key: one for one in variants}.values())
    if study.preflight == "off":
        return Flown(distinct, {})
    networks = {one.key: network(one.composition.config) for one in distinct}
    configs = {networks[one.key]: one.composition.config for one in reversed(distinct)}
    flown = list(dict.fromkeys(networks.values()))[:FLOWN]
    with waiting("pre-flight"):
        given = [here(configs[key]) for key in flown]
        flights, why = try_call(pool, "preflight", given, seconds=PATIENCE + len(given))
    if flights is None:
        print(f"  no pre-flight: {why}"[:WIDTH])
        return Flown(distinct, {})
    found = dict(zip(flown, flights, strict=True))
    return Flown(distinct, {key: found[start] for key, start in networks.items() if start in found})


def network(config: Mapping[str, Any]) -> str:
    """The same for configurations that start from the same network and images."""
    return hash_of([config.get(group) for group in DECISIVE])


def warn(study: Study, flown: Flown) -> None:
    """Print which variants are hopeless, and what becomes of them."""
    bad = [one for one in flown.variants if flown.is_hopeless(one)]
    what = "left out" if study.preflight == "skip" else "pre-flight"
    for one in bad[:TOLD]:
        print(f"  {what}: {one.name}: {describe(flown.flights[one.key])}"[:WIDTH])
    if len(bad) > TOLD:
        print(f"  {what}: {len(bad) - TOLD} more; all are in preflight.json")


def keep(study: Study, flown: Flown) -> list[Variant]:
    """The variants to run. Raises ConfigError if study.preflight=skip leaves none."""
    kept = [one for one in flown.variants if study.preflight != "skip" or not flown.is_hopeless(one)]
    if flown.variants and not kept:
        reason = describe(flown.flights[flown.variants[0].key])
        raise ConfigError(f"study.preflight: skip leaves no variant, since all are hopeless ({reason}); warn runs them")
    return kept


def store(study: Study, flown: Flown | None, folder: StudyFolder) -> None:
    """Write preflight.json in the study's folder and among its artifacts, which go to its run in MLflow."""
    if flown is None or not flown.flights:
        return
    skips = study.preflight == "skip"
    rows = [
        {"variant": one.key, "name": one.name, **flown.flights[one.key], "skipped": skips and flown.is_hopeless(one)}
        for one in flown.variants
        if one.key in flown.flights
    ]
    folder.folder.artifacts.mkdir(exist_ok=True)
    for path in (folder.path, folder.folder.artifacts):
        write_json(path / "preflight.json", rows, indent=1)


def describe(flight: Flight) -> str:
    return f"{flight['verdict']}: {flight['reason']}" if flight["reason"] else str(flight["verdict"])


def columns(flight: Flight | None) -> tuple[str, str, str]:
    """Forward and backward gain, measured and (predicted), and the verdict, for a table."""
    if flight is None:
        return "", "", ""
    pairs = [(flight.get(side), flight.get(f"predicted_{side}")) for side in ("forward", "backward")]
    forward, backward = (f"{_number(a)} ({_number(b)})" for a, b in pairs)
    return forward, backward, str(flight["verdict"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
