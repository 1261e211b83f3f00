"""Which variant is best: means over replicates with 95 % intervals, for the terminal and as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from scipy.special import stdtrit  # scipy.stats takes three times as long to import

from fanin import noise
from fanin.chance import chance
from fanin.errors import require, unknown

CONFIDENCE = 0.95
GAP, NARROW = 2, 4  # between columns of text; a column is never narrower
COLUMNS = ["mean", "low", "high", "n", "diverged", "unfinished", "seconds"]


def leaderboard(
    runs: pandas.DataFrame, *, metric: str, direction: str, by: Sequence[str], classes: int
) -> pandas.DataFrame:
    """One row per variant (a combination of the columns `by`), the best first.

    mean, and low and high: the Student t interval over replicates (NaN with fewer than two; where seeds cross, see
    fanin.noise); n: runs it is of; diverged: how many of them diverged; unfinished: runs left out because they were
    killed, failed, pruned or still run; seconds: mean of a run. A diverged run counts as a guess would (fanin.chance),
    and for other metrics as the worst finite value of the study. It is never dropped, which would favour the variant
    that diverges more often.
    """
    choices = ("maximize", "minimize")
    require(direction in choices, "study.direction", "must be maximize or minimize", direction)
    if not runs["status"].eq("FINISHED").any():  # no run got as far as to have these columns, maybe
        runs = runs.reindex(columns=[*dict.fromkeys([*runs.columns, metric, *by])])
    for column in (metric, *by):
        if column not in runs:
            raise unknown("column", column, runs.columns)
    keys = list(by) or ["variant"]
    runs = counted(runs, metric=metric, direction=direction, classes=classes)
    groups = runs.groupby(keys, observed=True, dropna=False)
    rows = [dict(zip(keys, key, strict=True)) | _summary(group, metric) for key, group in groups]
    table = pandas.DataFrame(rows, columns=[*keys, *COLUMNS])
    table = table.sort_values("mean", ascending=direction == "minimize", kind="stable", ignore_index=True)
    table.index += 1  # the rank
    table.attrs = {"metric": metric, "direction": direction}
    return table


def render(table: pandas.DataFrame, *, width: int = 100, rows: int = 20) -> str:
    """The best `rows` variants as plain text of at most `width` columns."""
    cells, names = tabulate(table.head(rows)), len(_keys(table))
    if _breadth(_widths(cells)) > width:
        cells[0] = _shortened(cells[0], names)
    widths = _fit(_widths(cells), width, names=names)
    lines = [_line(row, widths, names=names) for row in cells]
    lines.insert(1, (" " * GAP).join("-" * size for size in widths))
    return "\n".join([_title(table), "", *lines, "", *remarks(table, rows)]).rstrip()


def render_markdown(table: pandas.DataFrame, *, rows: int = 20) -> str:
    """The same for MLflow's description of a run, which sets the columns of a table without a gap, and for
    pull requests."""
    head, *body = [[cell.replace("|", "\\|") + " &nbsp;" for cell in row] for row in tabulate(table.head(rows))]
    names = len(_keys(table))
    rule = ["---:"] + ["---"] * names + ["---:"] * (len(head) - names - 1)
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    notes = [note for line in remarks(table, rows) for note in ("", line)]
    return "\n".join([_title(table), "", *lines, *notes])


def lead(table: pandas.DataFrame) -> str:
    """The best variant in a Markdown sentence, which is all that MLflow shows of a folded description."""
    if table.empty or math.isnan(table["mean"].iloc[0]):
        return ""
    head, row = tabulate(table.head(1))
    names = " ".join(f"{key}={cell}" for key, cell in list(zip(head, row, strict=True))[1 : len(_keys(table)) + 1])
    metric = table.attrs["metric"]
    return f"**{names}** leads with {metric} **{row[head.index(metric)]}**."


def counted(runs: pandas.DataFrame, *, metric: str, direction: str, classes: int) -> pandas.DataFrame:
    """The runs with a column `complete`, and the metric as it counts: that of a diverged run (or one that is
    not finite at its end) is a guess's, or the worst of the study where there is no such thing."""
    return finished(runs).assign(**{metric: _values(runs, metric, direction, classes)})


def finished(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs with a column `complete`: neither pruned nor failed, killed or still running."""
    return runs.assign(complete=runs["diverged"] | (runs["status"].eq("FINISHED") & ~_pruned(runs)))


def _values(runs: pandas.DataFrame, metric: str, direction: str, classes: int) -> pandas.Series:
    values = runs[metric].astype(float)
    values = values.where(numpy.isfinite(values))
    worst = values.min() if direction == "maximize" else values.max()
    guess = chance(metric, classes=classes)
    lost = runs["diverged"] | (runs["status"].eq("FINISHED") & values.isna())
    return values.mask(lost, worst if guess is None else guess)


def _pruned(runs: pandas.DataFrame) -> pandas.Series:
    if "reason" not in runs:
        return pandas.Series(False, index=runs.index)
    return runs["reason"].astype(object).fillna("").str.startswith("pruned")


def _summary(group: pandas.DataFrame, metric: str) -> dict[str, float]:
    complete = group[group["complete"]]
    values = complete[metric].to_numpy(dtype=float)
    half = half_width(values) if noise.independent(complete) else noise.half_width(complete, metric)
    mean = values.mean() if len(values) else math.nan
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "n": len(values),
        "diverged": int(complete["diverged"].sum()),
        "unfinished": len(group) - len(complete),
        "seconds": complete["seconds"].mean(),
    }


def half_width(values: numpy.ndarray, *, confidence: float = CONFIDENCE) -> float:
    """Half of Student's t interval of the mean, t s / sqrt(n); NaN with fewer than two values."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(n))


def _keys(table: pandas.DataFrame) -> list[str]:
    return [column for column in table.columns if column not in COLUMNS]


def _title(table: pandas.DataFrame) -> str:
    best = {"maximize": "higher", "minimize": "lower"}[table.attrs["direction"]]
    return f"{table.attrs['metric']} ({best} is better): mean and 95 % interval over n replicates"


def remarks(table: pandas.DataFrame, rows: int) -> list[str]:
    """What a reader must know to read the numbers right."""
    notes = []
    if len(table) > rows:
        notes.append(f"{len(table) - rows} more variants are not shown.")
    if len(table) and table["n"].max() < 2:
        cure = " (study.replicates)" if table.attrs.get("replicable", True) else ""
        notes.append(f"One run a variant: no interval; small differences may be chance{cure}.")
    if table["diverged"].any():
        kind = table.attrs["metric"].rsplit("/", 1)[-1]
        rule = "as a guess would: accuracy 1/classes, loss ln(classes)"
        rule = rule if kind in ("accuracy", "loss") else "as the worst of the others"
        notes.append(f"Diverged runs count {rule}.")
    if table["unfinished"].any():
        notes.append("Unfinished: killed, failed, pruned or still running; not in the mean.")
    return notes


def tabulate(table: pandas.DataFrame) -> list[list[str]]:
    """The head and a row of texts per variant; columns that say nothing are left out."""
    counts = [column for column in ("diverged", "unfinished") if table[column].any()]
    digits = _digits(table["mean"])
    head = ["#", *_keys(table), table.attrs["metric"], "n", *counts, "seconds"]
    return [head] + [
        [
            str(rank),
            *(text(row[key]) for key in _keys(table)),
            _interval(row["mean"], row["high"] - row["mean"], digits),
            str(row["n"]),
            *(str(row[column]) for column in counts),
            "-" if math.isnan(row["seconds"]) else f"{row['seconds']:.1f}",
        ]
        for rank, row in zip(table.index, table.to_dict("records"), strict=True)
    ]


def _digits(means: pandas.Series) -> str:
    """One format for all, so that the columns line up: 4 decimals where they say something."""
    largest = means.abs().max()
    return ".4f" if 0.01 <= largest < 1000 else ".4g"


def _interval(mean: float, half: float, digits: str) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{digits}}" if math.isnan(half) else f"{mean:{digits}} ± {half:{digits}}"


def text(value: Any) -> str:
    """A variant's value as a cell: - where the variant does not have the key."""
    if pandas.isna(value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]


def _breadth(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _shortened(head: list[str], names: int) -> list[str]:
    """The keys by their last parts, where these tell them apart: lr for optimizer.lr."""
    short = [key.rpartition(".")[2] for key in head[1 : names + 1]]
    return [head[0], *short, *head[names + 1 :]] if len({*short}) == names else head


def _fit(widths: list[int], width: int, *, names: int) -> list[int]:
    """Column widths that fit on a line of `width`: taken from the widest names, and from numbers only when those have
    nothing left to give."""
    widths = list(widths)
    for columns in (range(1, names + 1), range(len(widths))):
        while _breadth(widths) > width and (widest := max(columns, key=lambda i: widths[i], default=0)):
            if widths[widest] <= NARROW:
                break
            widths[widest] -= 1
    return widths


def _line(row: list[str], widths: list[int], *, names: int) -> str:
    """Names to the left, the rank and numbers to the right; what does not fit ends in an ellipsis."""
    padded = []
    for i, (cell, size) in enumerate(zip(row, widths, strict=True)):
        cell = cell if len(cell) <= size else cell[: size - 1] + "…"
        padded.append(cell.ljust(size) if 1 <= i <= names else cell.rjust(size))
    return (" " * GAP).join(padded).rstrip()
