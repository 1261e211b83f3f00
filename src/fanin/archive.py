"""Every point of a run as one Parquet file among its artifacts, which can be checked against MLflow.

Anything that knows Parquet reads it (pandas, pyarrow.dataset, DuckDB), without a server's work for each metric:
columns metric, step, value (with NaN and the infinities), time. A tag of the run seals it: the number of its points
and a digest that whoever has the points from elsewhere can compute again.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from fanin.points import Point

FILE = "points.parquet"
TAG = "fanin.points"


def write(path: Path, points: Sequence[Point]) -> str:
    """Write the file; returns its seal."""
    import pyarrow
    from pyarrow import parquet

    rows = _sorted(points)
    table = pyarrow.table(
        {
            "metric": pyarrow.array([point.key for point in rows]).dictionary_encode(),
            "step": pyarrow.array([point.step for point in rows], pyarrow.int64()),
            "value": pyarrow.array([point.value for point in rows], pyarrow.float64()),
            "time": pyarrow.array([point.time for point in rows], pyarrow.timestamp("ms", tz="UTC")),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, compression="zstd")
    return seal(rows)


def read(content: bytes) -> list[Point]:
    """The points of a file, by metric, step and time. Raises ValueError for what is none of ours."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(io.BytesIO(content)).read(["metric", "value", "time", "step"])
        times = table.column("time").cast(pyarrow.int64())
        columns = [table.column("metric"), table.column("value"), times, table.column("step")]
    except (OSError, KeyError) as error:  # pyarrow's errors are ValueErrors but for these
        raise ValueError(f"no file of points: {error}") from error
    return [Point(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]


def seal(points: Sequence[Point]) -> str:
    """How many points there are, and a SHA-256 of one line for each, by metric, step and time:
    metric, step, time (unix ms) and the value as C's %a writes it, between tabs."""
    lines = [f"{p.key}\t{p.step}\t{p.time}\t{(p.value + 0.0).hex()}\n" for p in _sorted(points)]  # SQL has no -0.0
    return f"{len(lines)} sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _sorted(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.key, point.step, point.time))
