"""The first thing on the page: how far the study is, what it says, and how sure that is."""

import math
from html import escape

import pandas

from fanin import leaderboard
from fanin.report import tables
from fanin.report.figures import texts, title
from fanin.report.material import Material


def answer(material: Material) -> str:
    """The state of the study if it has not ended well, the verdict, the leaderboard and its notes."""
    if material.runs.empty:
        return "<p>No run of this study is recorded yet. This page is complete once some are.</p>"
    notes = "".join(
        f"<p class='soft'>{escape(note)}</p>"
        for note in leaderboard.remarks(material.board, len(material.board))
    )
    controls = '<div class="controls" data-controls="board"></div>'
    parts = [unfinished(material), f'<div class="verdict">{verdict(material)}</div>', controls]
    return "".join([*parts, tables.board(material), notes])


def unfinished(material: Material) -> str:
    """What is missing, of a study that still runs or was interrupted."""
    reason = material.about.tags.get("fanin.reason")
    running = int(material.runs["status"].eq("RUNNING").sum())
    if reason == "done" and not running:
        return ""
    said = (
        f"The study ended early: {escape(reason)}."
        if reason and reason != "done"
        else "The study has not ended."
    )
    still = f" {running} of its runs {'is' if running == 1 else 'are'} still running." if running else ""
    return f'<p class="warning">{said}{still} What follows is what is recorded so far.</p>'


def verdict(material: Material) -> str:
    """The leader, its interval, and whose intervals reach into it."""
    board = material.board[material.board["n"] > 0]
    metric = escape(material.about.metric)
    if board.empty:
        return "<p>No variant has a finished run yet.</p>"
    first, values = board.iloc[0], texts(board)
    leader = f"<p><b>{escape(title(first, material.by))}</b> has the best mean {metric}: <b>{values[0]}</b>"
    leader += f" over {first['n']} replicates.</p>" if first["n"] > 1 else ".</p>"
    if len(board) < 2:
        return leader
    after = f"Next is {escape(title(board.iloc[1], material.by))} with {values[1]}."
    return f"{leader}<p>{after} {_overlap(board, material.about.direction)}</p>"


def _overlap(board: pandas.DataFrame, direction: str) -> str:
    """How many of the others have intervals that overlap the leader's."""
    first, others = board.iloc[0], board.iloc[1:]
    known = others[others["low"].notna()]
    if math.isnan(first["low"]) or known.empty:
        return "With one run a variant there is no interval: a small lead may be chance."
    near = known["high"] >= first["low"] if direction == "maximize" else known["low"] <= first["high"]
    count = int(near.sum())
    if not count:
        return f"No interval of the other {len(known)} overlaps its own."
    many = (
        f"{count} of the other {len(known)} have intervals that overlap"
        if len(known) > 1
        else "Its interval overlaps"
    )
    return f"{many} the leader's: between those, the order is not settled."
