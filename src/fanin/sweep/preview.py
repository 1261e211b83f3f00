"""`--dry-run`: the plan, its size, and how long it will take."""

from collections.abc import Sequence

from fanin.errors import ConfigError
from fanin.sweep.checks import call
from fanin.sweep.display import clock
from fanin.sweep.study import Study, Variant, hash_of
from fanin.sweep.workers import Pool

LISTED = 40  # variants
COSTLY = (
    "model",
    "data",
    "optimizer",
    "regularization",
    "batch_size",
    "stats",
)  # what decides an epoch's time


def show_plan(study: Study, variants: Sequence[Variant], pool: Pool) -> None:
    """Print what a sweep would do."""
    grid = study.sampler["name"] == "grid"
    count = len({one.key for one in variants}) if grid else study.budget.trials
    runs = "?" if count is None else count * study.replicates
    rows = [("study", f"{study.name}: {study.question or '(no question given)'}")]
    rows += [("axis", f"{axis.name}: {axis.text}") for axis in study.space.axes]
    rows += [
        ("search", "grid" if grid else f"{study.sampler['name']}, at most {count} trials"),
        ("runs", f"{count} variants x {study.replicates} replicates = {runs}"),
        ("judged by", ", ".join(f"{o.metric} ({o.direction})" for o in study.objectives)),
        ("workers", f"{pool.size} x {study.base.config['hardware']['threads']} thread(s)"),
        ("estimate", estimate(study, variants, pool)),
    ]
    for label, text in rows:
        print(f"{label:<10}{text}")
    if grid:
        for one in variants[:LISTED]:
            print(f"  {one.key}  {one.name}")
        if len(variants) > LISTED:
            print(f"  ... and {len(variants) - LISTED} more")


def estimate(study: Study, variants: Sequence[Variant], pool: Pool) -> str:
    """Training time, from a few measured batches of each architecture."""
    costs: dict[str, float] = {}
    total = 0.0
    for one in variants:
        config = one.composition.config
        key = hash_of([config[group] for group in COSTLY])
        try:
            costs[key] = costs.get(key) or call(pool, "estimate", config)
        except ConfigError as error:
            return f"unknown until the data are here ({error})"
        total += costs[key] * config["epochs"]
    if study.sampler["name"] != "grid":
        total *= (study.budget.trials or len(variants)) / len(variants)
    return f"about {clock(total * study.replicates / pool.size)} of training"
