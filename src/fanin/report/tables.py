"""The report's texts and tables as HTML: whatever must be readable without a script, and on paper."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape

import pandas

from fanin import leaderboard
from fanin.diagnose import name_of
from fanin.noise import Noise
from fanin.query import OF_A_RUN
from fanin.report.figures import name, title
from fanin.report.material import Material
from fanin.sweep.factors import Factors

SHOWN = 15  # rows of a long table that are shown at first
SECRET = re.compile(r"(?<=://)[^/@\s]+@")
MACHINE = ("hardware", "tracking")  # groups that do not change what is computed


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Container[int] = (),
    classes: Sequence[str] = (),
) -> str:
    """A plain table of texts; the columns `numbers` are set to the right; each row may have a class."""
    cell = [' class="number"' if i in numbers else "" for i in range(len(head))]
    lines = [f"<tr>{''.join(f'<th{c}>{escape(t)}</th>' for c, t in zip(cell, head, strict=True))}</tr>"]
    for place, row in enumerate(rows):
        kind = f' class="{classes[place]}"' if classes else ""
        texts = (f"<td{c}>{escape(clean(text))}</td>" for c, text in zip(cell, row, strict=True))
        lines.append(f"<tr{kind}>{''.join(texts)}</tr>")
    return f'<div class="wide"><table>{lines[0]}{"".join(lines[1:])}</table></div>'


def clean(text: str) -> str:
    """Without the user and password of an address."""
    return SECRET.sub("…@", text)


def board(material: Material) -> str:
    """The leaderboard, with a place in each row for its plot."""
    head, *body = leaderboard.tabulate(material.board)
    metric = 1 + len(material.by)
    texts = [escape(text) for text in head]
    columns = "".join(f"<th{_class(i, metric)}>{text}</th>" for i, text in enumerate(texts[: metric + 1]))
    columns += '<th class="strip"></th>' + "".join(f'<th class="number aside">{t}</th>' for t in texts[metric + 1 :])
    rows = []
    for place, row in enumerate(body):
        cells = [escape(text) for text in row]
        first = f'<td class="number rank"><span class="key"></span>{cells[0]}</td>'
        keys = "".join(f"<td{_class(i, metric)}>{t}</td>" for i, t in enumerate(cells[1 : metric + 1], start=1))
        rest = "".join(f'<td class="number aside">{text}</td>' for text in cells[metric + 1 :])
        kind = ' class="rest"' if place >= SHOWN else ""
        rows.append(f'<tr data-v="{place}"{kind}>{first}{keys}<td class="strip"></td>{rest}</tr>')
    inner = f"<thead><tr>{columns}</tr></thead><tbody>{chr(10).join(rows)}</tbody>"
    return f'<div class="wide"><table id="board">{inner}</table></div>'


def _class(column: int, metric: int) -> str:
    return ' class="number"' if column in (0, metric) else ""


def ended(material: Material) -> str:
    """The runs that diverged, or did not come to their end, with the reason; those of a variant that ended alike in
    one row, with the seconds of one."""
    runs = material.runs
    epochs = material.curves.groupby("run_id")["step"].max()
    alike: dict[tuple[str, ...], list[Mapping]] = {}
    chosen = runs[~runs["complete"] | runs["diverged"]].sort_values(["place", "replicate"])
    for run in chosen.to_dict("records"):
        reason = "" if pandas.isna(run["reason"]) else str(run["reason"])
        variant = title(material.board.iloc[run["place"]], material.by)
        epoch = str(int(epochs[run["run_id"]])) if run["run_id"] in epochs.index else "-"
        alike.setdefault((outcome(run), variant, reason, epoch), []).append(run)
    if not alike:
        return "<p>None: every run came to its end, and none diverged.</p>"
    rows = []
    for (end, variant, reason, epoch), some in sorted(alike.items(), key=lambda item: item[0][0]):
        replicates = ", ".join(str(run["replicate"]) for run in some)
        seconds = _seconds(pandas.Series([run["seconds"] for run in some]).mean())
        rows.append([variant, replicates, end, reason, epoch, seconds])
    shown = table(["variant", "replicates", "outcome", "reason", "epochs", "seconds"], rows, numbers=(1, 4, 5))
    return shown if len(rows) <= SHOWN else f"<details><summary>{len(chosen)} runs</summary>{shown}</details>"


def _seconds(value: float) -> str:
    return "-" if pandas.isna(value) else f"{value:.1f}"


def outcome(run: Mapping | pandas.Series) -> str:
    """How a run ended, in a word."""
    reason = "" if pandas.isna(run["reason"]) else str(run["reason"])
    if run["diverged"]:
        return "diverged"
    if reason.startswith("pruned"):
        return "pruned"
    return {"FINISHED": "finished", "RUNNING": "running", "FAILED": "failed"}.get(run["status"], "interrupted")


def outcomes(material: Material) -> str:
    """The number of runs and how they ended: `45 runs: 40 finished, 5 diverged`."""
    counts = material.runs.apply(outcome, axis=1).value_counts()
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{len(material.runs)} {'run' if len(material.runs) == 1 else 'runs'}: {said}"


def diagnoses(material: Material) -> str:
    """What is wrong with the runs of each variant: how many have which finding, and one run's numbers; empty if
    nothing is wrong with any."""
    if "diagnosis" not in material.runs or material.runs["diagnosis"].isna().all():
        return ""
    found = material.runs.dropna(subset=["diagnosis"])
    names = found["diagnosis"].astype(str).map(name_of).rename("finding")
    rows = [
        [
            title(material.board.iloc[group["place"].iloc[0]], material.by),
            str(len(group)),
            str(group["diagnosis"].iloc[0]),
        ]
        for _, group in found.groupby([found["place"], names], observed=True)
    ]
    shown = table(["variant", "runs", "what is wrong, in the first of them"], rows, numbers=(1,))
    if len(rows) <= SHOWN:
        return shown
    counts = found.groupby(names)["place"].agg(["count", "nunique"]).sort_values("count", ascending=False)
    totals = [[finding, str(runs), str(of)] for finding, runs, of in counts.itertuples()]
    short = table(["first finding", "runs", "variants"], totals, numbers=(1, 2))
    return f"{short}<details><summary>of each variant</summary>{shown}</details>"


def importance(factors: Factors) -> str:
    """A bar per factor."""
    rows = []
    for one in factors.shares:
        corrected = "" if pandas.isna(one.corrected) else f"{one.corrected:z.1%}"
        bar = f'<span class="bar" style="width: {max(0.0, min(1.0, one.share)) * 100:.1f}%"></span>'
        cells = f'<td class="bars">{bar}</td><td class="number">{one.share:z.1%}</td>'
        rows.append(f"<tr><th>{escape(one.factor)}</th>{cells}<td class='number soft'>{corrected}</td></tr>")
    beyond = any(not pandas.isna(one.corrected) for one in factors.shares)
    names = ["", "", "share", "beyond chance" * beyond]
    head = f"<tr>{''.join(f'<th class=number>{text}</th>' for text in names)}</tr>"
    note = f"<p>{escape(factors.note)}</p>" if factors.note else ""
    what = f"<p>{escape(factors.what[:1].upper() + factors.what[1:])}.</p>"
    return f'{what}<div class="wide"><table class="importance">{head}{"".join(rows)}</table></div>{note}'


def scatter(noise: Noise) -> str:
    """The share of each source of noise, with its interval as a bar."""
    rows = []
    for source, sd, share, low, high in noise.table.itertuples(index=False):
        known = not pandas.isna(low)
        bar = f'<span class="span" style="margin-left: {low:.1%}; width: {high - low:.1%}"></span>' if known else ""
        bar += f'<span class="bar" style="width: {share:.1%}"></span>' if known else ""
        said = f"{low:.0%} to {high:.0%}" if known else ""
        cells = f'<td class="bars">{bar}</td><td class="number">{share:.0%}</td><td class="number soft">{said}</td>'
        rows.append(f'<tr><th>{escape(source)}</th>{cells}<td class="number">{sd:.2g}</td></tr>')
    names = ["", "", "share of variance", "95 % interval", "sd"]
    head = f"<tr>{''.join(f'<th class=number>{text}</th>' for text in names)}</tr>"
    shown = f'<div class="wide"><table class="importance">{head}{"".join(rows)}</table></div>'
    return f"<p>{escape(noise.what)}. {escape(noise.note)}</p>{shown}"


def swept(material: Material) -> str:
    rows = []
    for key in material.about.swept:
        if key in material.runs:
            rows.append([key, _span(material.runs[key])])
    return table(["swept", "values"], rows) if rows else "<p>Nothing was swept.</p>"


def _span(values: pandas.Series) -> str:
    """All values if they are few, else how many there are and their range."""
    known = sorted(values.dropna().unique())
    if len(known) > 12 and not isinstance(known[0], str):
        return f"{len(known)} values from {name(known[0])} to {name(known[-1])}"
    return ", ".join([*map(name, known), *["null"] * bool(values.isna().any())])


def fixed(material: Material) -> str:
    """The configuration that all runs share, and below it what follows from the swept keys."""
    params = _params(material)
    varies = {key: len(column.drop_duplicates()) > 1 for key, column in params.items()}
    rows = [[key, _span(column)] for key, column in params.items() if not varies[key]]
    shown = table(["fixed", "value"], rows)
    follows = [[key, _span(column)] for key, column in params.items() if varies[key]]
    return shown + (table(["follows from what was swept", "values"], follows) if follows else "")


def _params(material: Material) -> Mapping[str, pandas.Series]:
    """The config columns that are not swept and decide what is computed."""
    metrics = {*material.curves["metric"].unique(), material.about.metric, "seconds"}
    other = {*OF_A_RUN, *material.about.swept, *metrics, "complete", "place"}
    return {
        str(key): column
        for key, column in material.runs.items()
        if key not in other and not str(key).startswith("best ") and str(key).split(".")[0] not in MACHINE
    }
