"""The sections of the page in their order: a heading, how to read it, and a table or a place to plot in."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from fanin.report import tables
from fanin.report.answer import answer
from fanin.report.material import Material

CURVES = """Mean over a variant's replicates. × marks where a run diverged: from there it counts as a guess
would, as in the leaderboard. Epoch 0 is the untrained network."""
NO_CURVES = "No run has recorded a second epoch yet."
GRID = "Mean of each cell; in light colours the darker, in dark ones the brighter, the higher."
PARALLEL = """Each line is a variant; dashed ones were stopped early and are drawn at their last value. Drag
along an axis to select, click it to let go."""
SLICES = """The value of each variant; hollow ones were stopped early and at their last value. In a grid, a
bar is the mean of a choice. Arrows at the edge are values beyond it."""
BUDGET = """The value to expect of the best of n variants, had they been tried in random order: the mean over all ways
to choose n of them (unbiased). A variant that was stopped counts with its last value."""
DEPTH = """From the input (left) to the output (right), on held-out images; median over replicates. A gain of
1 keeps the signal as it is; on a log scale, zeros lie on the lower edge."""
EPOCHS = "The same layers over the epochs; median over replicates."
WEIGHTS = """The distribution of a layer's weights in one run, from the first epoch (dark) to the last (bright); of
large layers a sample."""
NO_LAYERS = "No statistics of layers are recorded: they are switched off, or no run has got that far."
REPEATS = "The same seeds give the same numbers on the same machine, whatever the number of workers."
NO_COMMIT = "No commit is recorded: the project folder was not under version control."
CHANGES = "The folder had changes that were not committed: this commit alone may give other numbers."


def sections(material: Material, drawn: Mapping[str, Any] | None) -> list[str]:
    """All that a study has material for; `drawn` are the plots, None before there are runs."""
    first = section("answer", "The answer", answer(material))
    last = section("reproduce", "How to reproduce it", reproduce(material))
    if drawn is None:
        return [first, last]
    legend = '<div id="legend" hidden></div>'
    scatter = [section("noise", "Where the noise comes from", tables.scatter(one)) for one in [material.noise] if one]
    return [first, *scatter, legend, *_over_factors(material, drawn), _layers(drawn), *_runs(material), last]


def _over_factors(material: Material, drawn: Mapping[str, Any]) -> list[str]:
    several = len(material.by) > 1
    parts = [section("curves", "Over the epochs", plot("curves", CURVES) if drawn["curves"] else note(NO_CURVES))]
    if drawn["grids"]:
        parts.append(section("grid", "The grid", plot("heat", GRID)))
    if several:
        parts.append(section("parallel", "All factors at once", plot("parallel", PARALLEL)))
    if several or drawn["axes"][0]["number"]:
        parts.append(section("slices", "Each factor by itself", plot("slices", SLICES, kind="panels")))
    if drawn["budget"]:
        parts.append(section("budget", "What a budget buys", plot("budget", BUDGET)))
    return parts


def _layers(drawn: Mapping[str, Any]) -> str:
    if not drawn["layers"]:
        return section("layers", "Inside the network", note(NO_LAYERS))
    count = drawn["layers"]["left_out"]
    thin = f" To keep this file small, the {count} worst variants are left out of these." if count else ""
    shapes = plot("weights", WEIGHTS, kind="panels") if drawn["weights"] else ""
    plots = plot("depth", DEPTH, kind="panels pairs") + plot("epochs", EPOCHS + thin, kind="panels")
    return section("layers", "Inside the network", plots + shapes)


def _runs(material: Material) -> list[str]:
    parts = []
    if material.factors:
        parts.append(section("importance", "Which factor matters", tables.importance(material.factors)))
    parts.append(section("ended", "Pruned, failed and diverged runs", tables.ended(material)))
    if found := tables.diagnoses(material):
        parts.append(section("diagnosis", "Diagnosis", found))
    return parts


def reproduce(material: Material) -> str:
    """The command, the commit, the versions; then what was swept and what was fixed."""
    tags = material.about.tags
    command = tables.clean(tags.get("fanin.command") or f"fanin sweep {material.study}")
    commit = tags.get("fanin.git", "")
    lines = [f"git checkout {commit.removesuffix('+changes')}"] * bool(commit) + [command]
    parts = [f"<pre>{escape(chr(10).join(lines))}</pre>"]
    if not commit or commit.endswith("+changes"):
        parts.append(f"<p>{CHANGES if commit else NO_COMMIT}</p>")
    parts.append(f"<p>{REPEATS}</p>")
    if versions := tags.get("fanin.versions"):
        parts.append(tables.table(["package", "version"], list(json.loads(versions).items())))
    if not material.runs.empty:
        config = f"<details><summary>The configuration</summary>{tables.fixed(material)}</details>"
        parts += [tables.swept(material), config]
    return "".join(parts)


def section(key: str, heading: str, content: str) -> str:
    return f'<section id="{key}"><h2>{heading}</h2>{content}</section>'


def plot(key: str, text: str, *, kind: str = "plot") -> str:
    """A place for the script to draw in, with its controls and a text on how to read it."""
    above = f'<p>{text} <span class="caption" data-caption="{key}"></span></p>'
    controls = f'<div class="controls" data-controls="{key}"></div>'
    place = f'<div class="{kind}" data-plot="{key}">{note("This plot needs JavaScript.")}</div>'
    return above + controls + place


def note(text: str) -> str:
    """What there is instead of a plot."""
    return f'<p class="missing">{text}</p>'
