"""The command line. Exit codes: 0 done; 1 runs failed, or the tracking store or the disk did, and trying again may
help; 2 bad input; 130 interrupted."""

import argparse
import errno
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fanin import exits
from fanin.errors import ConfigError, unknown
from fanin.tracking import TrackingDown, TrackingRefused

if TYPE_CHECKING:
    from fanin.sweep.engine import Options

HELP = {
    "train": "train one run; with -m, one for each combination of the values given",
    "sweep": "run the study sweeps/STUDY.yaml, or go on with it where it stopped",
    "results": "print a study's leaderboard, or write every run as a table",
    "report": "write a study's report, one HTML page, to reports/ and to MLflow",
    "register": "put the model of a study's best run into MLflow's model registry",
    "ui": "serve the MLflow UI on http://127.0.0.1:5000",
    "sync": "ship to MLflow what it does not have yet",
    "doctor": "say what device, data sets and tracking store there are, and what is wrong",
}
HAS_RUN = "one that has run, by its name"
EXAMPLES = """\
examples:
  fanin sweep initializers                        a study; the same command again goes on where it stopped
  fanin sweep initializers --dry-run              its plan, its size and how long it will take
  fanin results initializers                      its answer
  fanin train model=cnn_small optimizer.lr=0.01   one run; keys and choices are those of conf/
  fanin train 'regularization=[dropout,l1]'       two choices at once; the quotes are for the shell
  fanin train -m initializer=zeros,he_normal      a grid: one run of each
  fanin train -m hydra/sweeper=tpe hydra.sweeper.max_trials=30 'optimizer.lr=interval(0.001,0.1)'
                                                  a search of 30 trials

exit codes: 0 done, 1 runs failed (or MLflow is down, the disk full), 2 bad input, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: the process's own) and return its exit code."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own models and data sets live in the project folder
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        return int(options.run(options) or exits.DONE)
    except ConfigError as error:
        print(f"fanin: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except (TrackingDown, TrackingRefused) as error:
        print(f"fanin: {error}", file=sys.stderr)
        return exits.BAD_INPUT if isinstance(error, TrackingRefused) else exits.FAILED
    except BrokenPipeError:  # `fanin results | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        way = "make room, and run the same command again: it goes on from here"
        print(f"fanin: the disk is full ({error.filename or 'no space left'}): {way}", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:  # a sweep under way ends by itself, with its answer so far
        print("fanin: interrupted", file=sys.stderr)
        return exits.INTERRUPTED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options, in whatever order flags and overrides come. Raises ConfigError."""
    parser = _parser()
    if not arguments:
        raise ConfigError("which command? Here is the help.\n\n" + parser.format_help())
    if not arguments[0].startswith("-") and arguments[0] not in HELP:
        raise unknown("command", arguments[0], HELP)
    options, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-") or "overrides" not in options:
            raise ConfigError(f"{word}: no such option; see `fanin {arguments[0]} --help`")
        options.overrides.append(word)
    return options


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are bad input like any other."""

    def error(self, message: str) -> NoReturn:
        if "required: study" in message:
            names = ", ".join(sorted(path.stem for path in Path("sweeps").glob("*.yaml")))
            raise ConfigError(f"which study? {f'sweeps/ has {names}' if names else 'There is no sweeps/ folder here'}")
        raise ConfigError(f"{message}; see `{self.prog} --help`")


Commands = argparse._SubParsersAction  # which has no public name


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fanin",
        description="Sweep initializers, regularizers, optimizers and architectures; see what matters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fanin {version('fanin')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    train = _add(commands, "train", _train, epilog=_choices())
    train.add_argument("-m", "--multirun", action="store_true", help="sweep over the overrides' values")
    _add_sweep_flags(train)

    sweep = _add(commands, "sweep", _sweep, epilog=_studies())
    sweep.add_argument("study", help="a file in sweeps/, without .yaml")
    _add_sweep_flags(sweep)

    results = _add(commands, "results", _results)
    results.add_argument("study", help=HAS_RUN)
    table = results.add_mutually_exclusive_group()
    table.add_argument("--csv", type=Path, metavar="F", help="write every run as one row")
    table.add_argument("--parquet", type=Path, metavar="F", help="the same, typed and compressed")

    _add(commands, "report", _report).add_argument("study", help=HAS_RUN)
    _add(commands, "register", _register).add_argument("study", help=HAS_RUN)
    _add(commands, "ui", _ui).add_argument("--port", type=int, default=5000)
    _add(commands, "sync", _sync)
    _add(commands, "doctor", _doctor)
    return parser


def _add(commands: Commands, name: str, run: Callable[[argparse.Namespace], int], *, epilog: str = "") -> Parser:
    """The parser of a command, which `run` does; an epilog is shown as it is."""
    shape = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
    command = commands.add_parser(
        name, help=HELP[name], description=HELP[name], epilog=epilog or None, formatter_class=shape
    )
    command.set_defaults(run=run)
    return command


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides; lists are swept")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, its size and a time estimate")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--extend", action="store_true", help="add points or replicates to a study's question")
    how.add_argument("--new", action="store_true", help="put the study's runs aside and start over")


def _choices() -> str:
    """The groups of conf/ and what there is to choose from, for the help text."""
    groups = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in _folders("conf")}
    if not groups:
        return "run it in a project folder, one with conf/ and sweeps/"
    lines = [
        textwrap.fill(" ".join(names), 100, initial_indent=f"  {group:<15}", subsequent_indent=" " * 17)
        for group, names in groups.items()
    ]
    return "\n".join(["choices in conf/:", *lines, "", "e.g. fanin train model=cnn_small optimizer.lr=0.01"])


def _folders(name: str) -> list[Path]:
    return sorted(path for path in Path(name).glob("*") if path.is_dir())


def _studies() -> str:
    """The studies of sweeps/ with their questions, for the help text."""
    lines = []
    for path in sorted(Path("sweeps").glob("*.yaml")):
        comments = [line for line in path.read_text(errors="replace").splitlines() if line.startswith("# ")]
        question = next((line[2:] for line in comments if "@package" not in line), "")
        lines.append((path.stem, question))
    width = max([len(name) for name, _ in lines], default=0)
    rows = [
        f"  {name:<{width}}  {textwrap.shorten(question, 96 - width, placeholder=' ...')}" for name, question in lines
    ]
    return "\n".join(["studies in sweeps/:", *rows]) if rows else "there is no sweeps/ folder here"


# Imports are local to a command: `fanin results` must not wait for Hydra, nor `fanin --help` for anything.


def _train(options: argparse.Namespace) -> int:
    _warm_up()
    from fanin.sweep import launch

    if options.multirun:
        return launch.multirun(options.overrides, _launch_options(options))
    if options.extend or options.new:
        raise ConfigError("--extend and --new are for sweeps: a single run is trained anew each time")
    return launch.single(options.overrides, _launch_options(options))


def _sweep(options: argparse.Namespace) -> int:
    studies = sorted(path.stem for path in Path("sweeps").glob("*.yaml"))
    name = Path(options.study).stem if options.study.endswith((".yaml", ".yml")) else options.study
    if name not in studies:
        raise (
            unknown("study", name, studies)
            if studies
            else ConfigError("no sweeps/ folder here: run fanin in a project")
        )
    _warm_up()
    from fanin.sweep import launch

    return launch.multirun([f"+sweeps={name}", *options.overrides], _launch_options(options))


def _warm_up() -> None:
    """Have torch imported by the process that workers are forked from, while this one composes: both take
    seconds. How many threads a worker gets, it sets itself."""
    from fanin.sweep.workers import warm_up

    warm_up("fanin.run", threads=1)


def _launch_options(options: argparse.Namespace) -> "Options":
    from fanin.sweep.engine import Options  # not before a command needs it: --help is quick

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
    return exits.DONE


def _report(options: argparse.Namespace) -> int:
    from fanin import report

    written = report.write(options.study, project=Path.cwd())
    print(written.path.relative_to(Path.cwd()))
    if written.unattached:
        print(f"fanin: not attached to the study in MLflow: {written.unattached}", file=sys.stderr)
    return exits.DONE


def _register(options: argparse.Namespace) -> int:
    from fanin import registry

    print(registry.register(options.study, project=Path.cwd()))
    return exits.DONE


def _ui(options: argparse.Namespace) -> int:
    from fanin import ui

    return ui.serve(project=Path.cwd(), port=options.port)


def _sync(options: argparse.Namespace) -> int:
    from fanin.shared.late import Latecomer
    from fanin.shipping import sync
    from fanin.tracking import Tracker

    with closing(Latecomer(os.environ.get("FANIN_STATE_URI"))) as late:
        report = sync(Path.cwd(), tracker=Tracker(project=Path.cwd()), guard=late, twin=late.twin)
    print(f"in MLflow: {report.shipped} studies and runs; still being written: {report.running}")
    for folder in report.ended:
        print(f"  ended as KILLED, its process is gone: {folder.path.name}")
    for why in report.gone.values():
        print(f"  left alone: {why}")
    if report.files:
        print(f"  but {report.files} of the runs that ended here got the files that only this machine had")
    for path, why in report.left.items():
        print(f"  not shipped: {path.name}: {why}", file=sys.stderr)
    return exits.FAILED if report.left else exits.DONE


def _doctor(options: argparse.Namespace) -> int:
    from fanin import doctor

    return doctor.examine(Path.cwd())
