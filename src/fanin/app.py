"""The command line. Exit codes: 0 done, 1 runs failed, 2 bad input, 130 interrupted."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from fanin.errors import ConfigError, unknown
from fanin.tracking import TrackingDown, TrackingRefused

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
HELP = {
    "train": "train one run; with -m, every point of the overrides' grid (initializer=xavier_uniform,he_normal)",
    "sweep": "run or resume the study sweeps/STUDY.yaml",
    "results": "print a study's leaderboard, or write every run as a table",
    "report": "write a study's report, one HTML page, to reports/ and to MLflow",
    "ui": "the MLflow UI on http://127.0.0.1:5000",
    "sync": "ship to MLflow what the spool still holds",
    "doctor": "what device, data sets and tracking store this machine has, and what is wrong",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: the process's own) and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own models and data sets live in the project folder
    try:
        return int(options.run(options) or DONE)
    except ConfigError as error:
        print(f"fanin: {error}", file=sys.stderr)
        return BAD_INPUT
    except (TrackingDown, TrackingRefused) as error:
        print(f"fanin: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, TrackingRefused) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `fanin results | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fanin",
        description="Sweep weight initializers, regularizers, optimizers and architectures; see which of them matter.",
        epilog="Overrides are Hydra's: optimizer=sgd optimizer.lr=0.1 'regularization=[dropout,batchnorm]'.",
    )
    parser.add_argument("--version", action="version", version=f"fanin {version('fanin')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help=HELP["train"], description=HELP["train"])
    train.add_argument("-m", "--multirun", action="store_true", help="sweep over the overrides' values")
    _add_sweep_flags(train)
    train.set_defaults(run=_train)

    sweep = commands.add_parser("sweep", help=HELP["sweep"], description=HELP["sweep"])
    sweep.add_argument("study", help="a file in sweeps/, without .yaml")
    _add_sweep_flags(sweep)
    sweep.set_defaults(run=_sweep)

    results = commands.add_parser("results", help=HELP["results"], description=HELP["results"])
    results.add_argument("study")
    table = results.add_mutually_exclusive_group()
    table.add_argument("--csv", type=Path, metavar="F", help="write every run as one row")
    table.add_argument("--parquet", type=Path, metavar="F", help="the same, typed and compressed")
    results.set_defaults(run=_results)

    report = commands.add_parser("report", help=HELP["report"], description=HELP["report"])
    report.add_argument("study")
    report.set_defaults(run=_report)

    ui = commands.add_parser("ui", help=HELP["ui"], description=HELP["ui"])
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)

    commands.add_parser("sync", help=HELP["sync"], description=HELP["sync"]).set_defaults(run=_sync)
    commands.add_parser("doctor", help=HELP["doctor"], description=HELP["doctor"]).set_defaults(run=_doctor)
    return parser


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides; lists are swept")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, its size and a time estimate")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--extend", action="store_true", help="add points or replicates to a study's question")
    how.add_argument("--new", action="store_true", help="put the study's runs aside and start over")


# Imports are local to a command: `fanin results` must not wait for Hydra, nor `fanin --help` for anything.


def _train(options: argparse.Namespace) -> int:
    from fanin.sweep import launch

    if options.multirun:
        return launch.multirun(options.overrides, _launch_options(options))
    return launch.single(options.overrides, _launch_options(options))


def _sweep(options: argparse.Namespace) -> int:
    from fanin.sweep import launch

    studies = sorted(path.stem for path in Path("sweeps").glob("*.yaml"))
    name = Path(options.study).stem if options.study.endswith((".yaml", ".yml")) else options.study
    if name not in studies:
        raise (
            unknown("study", name, studies)
            if studies
            else ConfigError("no sweeps/ folder here: run fanin in a project")
        )
    return launch.multirun([f"+sweeps={name}", *options.overrides], _launch_options(options))


def _launch_options(options: argparse.Namespace) -> "engine.Options":  # type: ignore[name-defined]  # noqa: F821
    from fanin.sweep.engine import Options

    command = shlex.join(["fanin", *_command(options), *options.overrides])
    return Options(dry_run=options.dry_run, extend=options.extend, new=options.new, command=command)


def _command(options: argparse.Namespace) -> list[str]:
    if "study" in options:
        return ["sweep", options.study]
    return ["train", "-m"] if options.multirun else ["train"]


def _results(options: argparse.Namespace) -> int:
    from fanin import results

    if options.csv or options.parquet:
        print(results.write(options.study, project=Path.cwd(), csv=options.csv, parquet=options.parquet))
    else:
        print(results.show(options.study, project=Path.cwd()))
    return DONE


def _report(options: argparse.Namespace) -> int:
    from fanin import report

    written = report.write(options.study, project=Path.cwd())
    print(written.path.relative_to(Path.cwd()))
    if written.unattached:
        print(f"fanin: not attached to the study in MLflow: {written.unattached}", file=sys.stderr)
    return DONE


def _ui(options: argparse.Namespace) -> int:
    from fanin import ui

    return ui.serve(project=Path.cwd(), port=options.port)


def _sync(options: argparse.Namespace) -> int:
    from fanin.shipping import sync
    from fanin.tracking import Tracker

    report = sync(Path.cwd(), tracker=Tracker(project=Path.cwd()))
    print(f"in MLflow: {report.shipped} studies and runs; still being written: {report.running}")
    for folder in report.ended:
        print(f"  ended as KILLED, its process is gone: {folder.path.name}")
    for path, why in report.left.items():
        print(f"  not shipped: {path.name}: {why}", file=sys.stderr)
    return FAILED if report.left else DONE


def _doctor(options: argparse.Namespace) -> int:
    from fanin import doctor

    return doctor.examine(Path.cwd())
