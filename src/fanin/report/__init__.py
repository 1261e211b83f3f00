"""`fanin report`: a study as one HTML page that needs nothing else, in reports/ and in MLflow.

The page is static HTML with its numbers as JSON; a few hundred lines of script of our own draw the plots as
SVG, because a plotting library's bundle alone would be larger than the page may be (plotly.js: 4.7 MB).
"""

from dataclasses import dataclass
from pathlib import Path

from fanin.errors import ConfigError
from fanin.query import About
from fanin.report.material import gather
from fanin.report.page import render
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

FOLDER = "reports"


@dataclass(frozen=True)
class Report:
    """The file, and why it is not attached to the parent run ("" if it is)."""

    path: Path
    unattached: str


def write(study: str, *, project: Path) -> Report:
    """Write reports/<study>.html and attach it to the study's parent run.

    Raises ConfigError for a study that does not exist, and for a file that cannot be written.
    """
    material = gather(study, project=project)
    path = project / FOLDER / f"{study}.html"
    text = render(material)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    return Report(path, _attach(path, study, material.about, project))


def _attach(path: Path, study: str, about: About, project: Path) -> str:
    """ "" or what went wrong: the file is there whatever the tracking store says."""
    tags = {key: about.tags[key] for key in ("fanin.study", "fanin.run")}
    tracker = Tracker(project=project)
    try:
        for run in tracker.find(study, tags)[-1:]:
            tracker.attach(run.id, path)
    except (TrackingDown, TrackingRefused) as error:
        return str(error)
    return ""
