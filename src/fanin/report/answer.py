"""The first thing on the page: how far the study is, what it says, and how sure that is."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import pandas

from fanin import leaderboard
from fanin.comparison.every import compare_every
from fanin.comparison.result import Comparison
from fanin.comparison.words import name, number, probability
from fanin.criteria import words
from fanin.criteria.judge import Verdict
from fanin.noise import sentence
from fanin.report import tables
from fanin.report.figures import texts, title
from fanin.report.material import Material

RACED = re.compile(r"^(The race for .*:)\n\n((?:- .*\n?)+)", flags=re.MULTILINE)
FENCED = re.compile(r"^```\n(.*?)\n```", flags=re.MULTILINE | re.DOTALL)
HEAD = ["", "difference", "95 % interval", "p (Holm)", "P(better)", "pairs", "verdict"]


def answer(material: Material) -> str:
    """The state of the study if it has not ended well, the verdict, the leaderboard and its notes."""
    if material.runs.empty:
        return "<p>No run of this study is recorded yet. This page is complete once some are.</p>"
    found = comparisons(material)
    note = material.about.tags.get("mlflow.note.content", "")
    remarks = leaderboard.remarks(material.board, len(material.board))
    return "".join(
        [
            unfinished(material),
            f'<div class="verdict">{leader(material, found)}{decided(found)}{raced(note)}{scattered(material)}</div>',
            claims(material.verdicts),
            '<div class="controls" data-controls="board"></div>',
            tables.board(material),
            *(f"<p>{escape(text)}</p>" for text in remarks),
            *(f"<pre>{escape(text)}</pre>" for text in FENCED.findall(note)),  # the best, to every digit
            *(differences(one) for one in found),
        ]
    )


def claims(verdicts: Sequence[Verdict]) -> str:
    """The criteria of the study, each with its verdict."""
    if not verdicts:
        return ""
    rows = [[one.status, one.criterion.says, words.measured(one), words.required(one)] for one in verdicts]
    shown = tables.table(words.HEAD, rows, classes=[one.status for one in verdicts])
    return f'<div class="claims"><p><b>Verdict: {escape(words.summary(verdicts))}</b></p>{shown}</div>'


def unfinished(material: Material) -> str:
    """What is missing, of a study that still runs or was interrupted."""
    reason = material.about.tags.get("fanin.reason")
    running = int(material.runs["status"].eq("RUNNING").sum())
    if not running and (reason == "done" or not material.about.swept):  # single trainings never are a whole
        return ""
    early = reason and reason != "done"
    said = f"The study ended early: {escape(str(reason))}." if early else "The study has not ended."
    still = f" {running} of its runs {'is' if running == 1 else 'are'} still running." if running else ""
    return f'<p class="warning">{said}{still} What follows is what is recorded so far.</p>'


def comparisons(material: Material) -> list[Comparison]:
    """One for each swept key of a grid that has replicates; none of a race, whose replicates depend on what
    was seen, so that only its own tests hold."""
    if "fanin.racing" in material.about.tags:
        return []
    return compare_every(
        material.runs,
        swept=material.about.swept,
        metric=material.about.metric,
        direction=material.about.direction,
        classes=material.classes,
    )


def leader(material: Material, found: list[Comparison]) -> str:
    """Which variant leads, by how much; and how sure that is where nothing was compared."""
    board = material.board[material.board["n"] > 0]
    metric = escape(material.about.metric)
    if board.empty:
        return "<p>No variant has a finished run yet.</p>"
    first, values = board.iloc[0], texts(board)
    if len(material.board) < 2:
        return f"<p>{metric}: <b>{values[0]}</b></p>"
    said = f"<b>{escape(title(first, material.by))}</b> has the best mean {metric}: <b>{values[0]}</b>"
    said += f" over {first['n']} replicates." if first["n"] > 1 else "."
    if len(board) > 1:
        said += f" Next is {escape(title(board.iloc[1], material.by))} with {values[1]}."
        said += "" if found else f" {_overlap(board, material.about.direction)}"
    return f"<p>{said}</p>"


def _overlap(board: pandas.DataFrame, direction: str) -> str:
    """How many of the others have intervals that overlap the leader's."""
    first, others = board.iloc[0], board.iloc[1:]
    known = others[others["low"].notna()]
    if math.isnan(first["low"]) or known.empty:
        return "With one run a variant there is no interval: a small lead may be chance."
    near = known["high"] >= first["low"] if direction == "maximize" else known["low"] <= first["high"]
    count = int(near.sum())
    return f"The intervals of {count or 'none'} of the other {len(known)} overlap its own."


def decided(found: list[Comparison]) -> str:
    """What is decided for each key, one sentence after the other; how, and what to know of it."""
    said = []
    common = [note for note in found[0].notes if all(note in one.notes for one in found)] if len(found) > 1 else []
    for one in found:
        how, *sentences = one.sentences
        what = f"<b>{escape(one.by)}</b>: " if len(found) > 1 else ""
        items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
        items += "".join(f"<li class='soft'>{escape(text)}</li>" for text in one.notes if text not in common)
        said.append(f"<p class='soft'>{what}{escape(how)}</p><ul>{items}</ul>")
    said += [f"<p class='soft'>{escape(note)}</p>" for note in common]
    return "".join(said)


def raced(note: str) -> str:
    """How a race went, as the study's description in MLflow tells it."""
    match = RACED.search(note)
    if not match:
        return ""
    items = "".join(f"<li>{escape(line.removeprefix('- '))}</li>" for line in match[2].splitlines())
    return f"<p>{escape(match[1])}</p><ul>{items}</ul>"


def scattered(material: Material) -> str:
    return f"<p class='soft'>{escape(sentence(material.noise))}</p>" if material.noise else ""


def differences(found: Comparison) -> str:
    """Every level against the reference."""
    rows = [_difference(row) for row in found.differences.to_dict("records")]
    head = f"{escape(found.by)}: differences from {escape(name(found.reference))}, pair by pair"
    shown = tables.table([found.by, *HEAD[1:]], rows, numbers=range(1, len(HEAD) - 1))
    return f"<details><summary>{head}</summary>{shown}</details>"


def _difference(row: Mapping) -> list[str]:
    if not row["n"]:
        return [name(row["level"]), "-", "-", "-", "-", "0", f"{row['verdict']}: {row['why']}"]
    interval = "-" if math.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
    chance = [probability(row["holm"]), f"{row['improvement']:.2f}"]
    return [
        *(name(row["level"]), number(row["difference"]), interval, *chance, str(row["n"])),
        ": ".join(filter(None, [str(row["verdict"]), row["why"]])),
    ]
