"""`fanin report`: a study as one HTML page that needs nothing else, in reports/ and in MLflow.

The page is static HTML with its numbers as JSON; a few hundred lines of script of our own draw the plots as
SVG, because a plotting library's bundle alone would be larger than the page may be (plotly.js: 4.7 MB).
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fanin.errors import ConfigError
from fanin.query import About
from fanin.report import figures, stills
from fanin.report.material import gather
from fanin.report.page import render
from fanin.tracking import Tracker, TrackingDown, TrackingRefused

FOLDER = "reports"
FIGURES = "figures"  # among the parent run's artifacts


@dataclass(frozen=True)
class Report:
    """The file, and why it is not attached to the parent run ("" if it is)."""

    path: Path
    unattached: str


def write(study: str, *, project: Path) -> Report:
    """Write reports/<study>.html and attach it to the study's parent run, with its key figures as PNG files.

    Raises ConfigError for a study that does not exist, and for a file that cannot be written.
    """
    material = gather(study, project=project)
    path = project / FOLDER / f"{study}.html"
    drawn = figures.draw(material)
    text = render(material, drawn)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    with tempfile.TemporaryDirectory() as folder:
        pictures = stills.write(drawn, Path(folder)) if drawn else []
        return Report(path, _attach(path, pictures, study, material.about, project))


def _attach(path: Path, pictures: Sequence[Path], study: str, about: About, project: Path) -> str:
    """ "" or what went wrong: the file is there whatever the tracking store says."""
    tags = {key: about.tags[key] for key in ("fanin.study", "fanin.run")}
    tracker = Tracker(project=project)
    try:
        for run in tracker.find(study, tags)[-1:]:
            tracker.attach(run.id, path)
            for picture in pictures:
                tracker.attach(run.id, picture, folder=FIGURES)
    except (TrackingDown, TrackingRefused) as error:
        return str(error)
    return ""
