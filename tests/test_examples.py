"""The examples run as they are on a real study."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = ["data=digits", "data.n_train=100", "epochs=1", "model=mlp_narrow", "hardware.workers=1"]


def run(*command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def test_results_are_read_as_the_example_shows(project):
    sweep = [
        "-m",
        "fanin",
        "train",
        "-m",
        "initializer=he_normal,zeros",
        "study.replicates=2",
        "study.name=tiny",
        *TINY,
    ]
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    done = run("-W", "error", ROOT / "examples" / "read_results.py", "tiny")
    assert done.returncode == 0, done.stderr
    assert "['tiny']" in done.stdout and "he_normal" in done.stdout
    assert "layers.0" in done.stdout, "the gains before training"
    assert "paired by replicate" in done.stdout, "the comparison"
    picture = project / "reports" / "tiny-curves.png"
    if "tiny-curves.png" in done.stdout:
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_the_example_says_what_is_wrong_with_a_study_that_is_not_there(project):
    done = run(ROOT / "examples" / "read_results.py", "tiny")
    assert done.returncode == 1 and "there is no tracking database" in done.stderr
