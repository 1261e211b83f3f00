"""Verdicts as people read them: in the terminal, in MLflow's description, as cells of a page's table."""

import math
import textwrap
from collections.abc import Sequence

from fanin.criteria.judge import FAIL, INCONCLUSIVE, PASS, Verdict, overall

MARKS = {PASS: "pass", FAIL: "FAIL", INCONCLUSIVE: "?"}
HEAD = ("verdict", "claim", "number", "bound")


def summary(verdicts: Sequence[Verdict]) -> str:
    """fail: 4 of 5 criteria pass, 1 fails, 0 inconclusive"""
    counts = [sum(one.status == status for one in verdicts) for status in (PASS, FAIL, INCONCLUSIVE)]
    words = [f"{counts[0]} of {len(verdicts)} criteria pass"]
    words += [f"{count} {word}" for count, word in zip(counts[1:], ("fail", "inconclusive"), strict=True) if count]
    return f"{overall(verdicts)}: {', '.join(words)}"


def render(verdicts: Sequence[Verdict]) -> str:
    """As plain text of at most 100 columns."""
    lines = [f"Verdict: {summary(verdicts)}", ""]
    for one in verdicts:
        lines.append(_wrap(f"{one.criterion.id}: {one.criterion.says}", mark=MARKS[one.status]))
        lines.append(_wrap(f"{measured(one)}; must be {required(one)}"))
    return "\n".join(lines)


def _wrap(text: str, *, mark: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=f"  {mark:<5}", subsequent_indent=" " * 7, break_on_hyphens=False)


def render_markdown(verdicts: Sequence[Verdict]) -> str:
    rows = [[one.status, one.criterion.says, measured(one), required(one)] for one in verdicts]
    lines = [[f"{cell} &nbsp;".replace("|", "\\|") for cell in row] for row in (HEAD, *rows)]
    table = [f"| {' | '.join(row)} |" for row in lines]
    table.insert(1, "| --- " * len(HEAD) + "|")
    return "\n".join([f"**Verdict: {summary(verdicts)}**", "", *table])


def measured(one: Verdict) -> str:
    """The number with its interval, what it is, and why it decides nothing where it does not."""
    parts = [f"{what(one)} {_number(one.value)}"]
    if one.low != one.high and not math.isnan(one.low):
        parts.append(f"({_number(one.low)} to {_number(one.high)}{_kind(one)})")
    elif one.count > 1 and not one.criterion.against:
        parts.append(f"({_replicates(one)})")
    return " ".join(parts) + (f": {one.why}" if one.why else "")


def _kind(one: Verdict) -> str:
    if one.criterion.over is None:
        return f", 90 % interval of {one.count}"
    return f" in {_replicates(one)}"


def _replicates(one: Verdict) -> str:
    over = one.criterion.over
    if over is not None and over < 1:
        return f"{one.count} replicates, {one.holding} satisfy it"
    return f"{one.count} replicates"


def what(one: Verdict) -> str:
    """What the number is, in the grammar's words."""
    criterion = one.criterion
    name = criterion.metric
    if criterion.layers:
        name += f" ({criterion.layers} over layers)"
    if criterion.reaches:
        name = f"epochs to {name} {criterion.reaches.text}"
    elif criterion.at != "last":
        name += f" ({f'epoch {criterion.at}' if isinstance(criterion.at, int) else criterion.at})"
    if criterion.key:
        name = {"spread": "spread of {} over {}", "share": "share of {}'s variance by {}"}.get(
            criterion.runs, "{}'s best {}"
        ).format(name, criterion.key)
    elif criterion.runs != "mean":
        name = f"{criterion.runs} {name}"
    if criterion.against:
        name = f"rank correlation of {name} with the prediction:"
    return f"{criterion.contrast} in {name}" if criterion.contrast else name


def required(one: Verdict) -> str:
    over = one.criterion.over
    if one.criterion.against or over is None:
        return one.criterion.bound.text
    return f"{one.criterion.bound.text} in {'each' if over == 1 else f'{over} of them'}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "never" if value == math.inf else f"{value:.4g}"
