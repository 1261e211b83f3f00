"""Run the studies' smoke profiles, each in a temporary project of its own, and print their verdicts.

    python tools/studies.py                          all of them: minutes
    python tools/studies.py 04_he2015_depth          some of them
    python tools/studies.py --list                   the questions in sweeps/

Exit code 0 whatever the verdicts are: they are findings. 1 if a study could not be run. The temporary projects are
removed with their runs; `fanin sweep NAME profile=smoke` keeps them, as the study NAME.smoke.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from fanin import spool

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = ROOT / "sweeps"


def main() -> int:
    options = arguments()
    if options.list:
        for path in sorted(SWEEPS.glob("*.yaml")):
            print(f"{path.stem:<32}{question(path)}")
        return 0
    names = options.studies or sorted(path.stem for path in SWEEPS.glob("[0-9]*.yaml"))
    failed, texts = [], []
    width = max(map(len, names))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            code = run(name, Path(folder), profile=options.profile)
            note = verdict(Path(folder), name)
        head, *_ = note.splitlines() or [f"could not be run (exit code {code})"]
        print(f"{name:<{width}}  {time.monotonic() - began:4.0f} s  {head}", flush=True)
        texts += [f"\n{name}: {question(SWEEPS / f'{name}.yaml')}", note] if options.verbose and note else []
        failed += [name] if code else []
    print("\n".join(texts))
    print(f"Nothing of these runs is kept. To keep a study's: fanin sweep {names[0]} profile={options.profile}")
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", help="files in sweeps/, without .yaml; all that are numbered")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--verbose", action="store_true", help="with every criterion's number")
    parser.add_argument("--list", action="store_true", help="only the questions")
    return parser.parse_args()


def question(path: Path) -> str:
    """What the study asks: its `study.question`, else the first comment of its file, else nothing but a hint."""
    text = path.read_text()
    try:
        asked = (yaml.safe_load(text) or {}).get("study", {}).get("question")
    except (yaml.YAMLError, AttributeError):  # no mapping: the sweep itself will say so
        asked = None
    words = (line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line)
    return " ".join(str(asked or next(filter(None, words), "(asks nothing: study.question)")).split())


def run(name: str, folder: Path, *, profile: str) -> int:
    """In a folder that holds only what a project needs, so that the user's own records are left alone."""
    for part in ("conf", "sweeps"):
        (folder / part).symlink_to(ROOT / part)
    command = [sys.executable, "-m", "fanin", "sweep", name, f"profile={profile}", "tracking=none"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    data = os.environ.get("FANIN_DATA", str(ROOT / "data"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "FANIN_DATA": data}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    return done.returncode


def verdict(folder: Path, name: str) -> str:
    """As the study's record has it: the summary, then a line for each criterion."""
    for path in folder.glob(f".fanin/{name}*/spool.jsonl"):
        ends = [record for record in spool.read(path)[0] if record["kind"] == "end"]
        if ends and (text := ends[-1].get("verdict")):
            return str(text)
    return ""


if __name__ == "__main__":
    sys.exit(main())
