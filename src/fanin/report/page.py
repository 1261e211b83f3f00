"""The report as one HTML page: nothing in it refers to anything outside of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import Any

from fanin.report import tables
from fanin.report.material import Material
from fanin.report.sections import sections

PARTS = ("chart", "lines", "plots", "save", "legend", "board", "factors", "budget", "layers", "weights", "page")


def render(material: Material, drawn: Mapping[str, Any] | None) -> str:
    """The page's text. Whatever a study's author named is escaped. `drawn`: see figures.draw; None before there are
    runs."""
    return _filled(
        _part("page.html"),
        {
            "title": escape(material.about.question or material.study),
            "study": escape(material.study),
            "summary": escape(_summary(material)),
            "sections": "\n".join(sections(material, drawn)),
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "style": _part("page.css"),
            "script": "\n".join(_part(f"{name}.js") for name in PARTS) if drawn else "",
            "data": as_json(drawn) if drawn else "null",
        },
    )


def as_json(value: object) -> str:
    """JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return files("fanin.report").joinpath(name).read_text(encoding="utf-8")


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced, in one pass: what is put in is not looked at again."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        key, rest = piece.split("}}", 1)
        filled += [values[key], rest]
    return "".join(filled)


def _summary(material: Material) -> str:
    if material.runs.empty:
        return "no run is recorded yet"
    count = len(material.board)
    started = material.runs["start"].min()
    words = [f"{count} {'variant' if count == 1 else 'variants'}", tables.outcomes(material)]
    return " · ".join([*words, f"begun {started:%Y-%m-%d %H:%M} UTC"])
