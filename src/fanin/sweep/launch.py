"""From a command to a running sweep: compose, check everything, take the study's folder, coordinate, sum up.

Both `fanin sweep STUDY` and Hydra's own `-m` end in `sweep`, called by the sweeper plugin.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from fanin import exits
from fanin.errors import ConfigError, require
from fanin.sweep import engine, grammar
from fanin.sweep.complaints import friendly_errors
from fanin.sweep.compose import Composer
from fanin.sweep.engine import Options
from fanin.sweep.profiles import with_profile
from fanin.sweep.reading import Settings, read_study
from fanin.sweep.single import train
from fanin.sweep.study import Budget

OWN_CONFIG = "config"
# Hydra 1.4 is of one base, and warns when it is told of another; 1.3 warns when it is not told.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
INSTEAD = {  # the sweeper's fields for other programs: their defaults, and what fanin has in their place
    "study": (None, "study.name"),
    "direction": ("minimize", "study.direction"),
    "seed": (0, "seed"),
    "workers": (None, "hardware.workers"),
    "threads": (1, "hardware.threads"),
    "change": ("refuse", "--extend or --new"),
    "warm_start": (None, "study.warm_start"),
}
UNNAMED = ("hardware", "tracking", "study.")  # overrides that say nothing of what is trained, and may be secret
DEFAULT_TRIALS = 20  # of a search that sets no max_trials


def own_task(config: Any) -> None:
    """Stands for fanin's own training in Hydra's interface; the engine runs it in workers, never here."""
    raise AssertionError("fanin's runs are trained by workers")


def multirun(overrides: Sequence[str], options: Options) -> int:
    """Compose fanin's configuration under `overrides` and hand it to the sweeper plugin it names."""
    from hydra._internal.callbacks import Callbacks

    grammar.check_spelling(overrides)
    overrides = with_profile(overrides, sweeps=Path("sweeps"))
    with terminable(), project_loader() as (loader, found):
        with friendly_errors(Composer(loader, config_name=OWN_CONFIG, fixed=found)):
            config = _with_sweeper(loader, [*found, *overrides])
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        sweeper: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=own_task, config=config
        )
        require(hasattr(sweeper, "options"), "hydra/sweeper", "must be one of fanin's own", type(sweeper).__name__)
        sweeper.options = options
        return int(sweeper.sweep(list(config.hydra.overrides.task)))


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM means what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_sweeper(loader: ConfigLoader, overrides: list[str]) -> Any:
    """The configuration of a multirun; the sweeper is grid where nobody chooses one.

    A default in conf/config.yaml would win over the choice of a study file. Hydra's own default does not know
    the keys of ours, so composing with it may fail for that reason alone.
    """
    config = None
    try:
        config = loader.load_configuration(OWN_CONFIG, overrides, run_mode=RunMode.MULTIRUN)
    except ConfigCompositionException:
        pass  # with the grid, it either works or says what else is wrong
    if config is None or config.hydra.runtime.choices["hydra/sweeper"] == "basic":
        chosen = any(line.startswith("hydra/sweeper=") for line in overrides)
        overrides = [line for line in overrides if line != "hydra/sweeper=basic"]
        grid = [] if chosen and config is None else ["hydra/sweeper=grid"]
        config = loader.load_configuration(OWN_CONFIG, overrides + grid, run_mode=RunMode.MULTIRUN)
    return config


@contextmanager
def project_loader() -> Iterator[tuple[ConfigLoader, list[str]]]:
    """Hydra's loader for the project in the working directory, and the override that finds sweeps/."""
    conf = Path("conf").absolute()  # not resolved: conf/ may be a link, and sweeps/ lies beside the link
    if not (conf / "config.yaml").is_file():
        raise ConfigError(f"{conf.parent} is no fanin project, it has no conf/config.yaml: change to one that has")
    beside = str(conf.parent).replace("\\", "\\\\").replace("'", "\\'")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), job_name="fanin", **VERSION_BASE):
        yield GlobalHydra.instance().config_loader(), [f"hydra.searchpath=['file://{beside}']"]


def single(overrides: Sequence[str], options: Options) -> int:
    """Train the one configuration that `overrides` describe; a sweep among them is refused."""
    grammar.check_spelling(overrides)
    with terminable(), project_loader() as (loader, found):
        space = grammar.parse(None, overrides=with_profile(overrides, sweeps=Path("sweeps")), loader=loader)
        named = next((line for line in space.fixed if line.startswith("study.name=")), None)
        require(named is None, "study.name", "names a sweep; single runs are all kept under train", named)
        swept = space.axes
        if swept:
            raise ConfigError(f"{swept[0].key}: {swept[0].text} has several values; sweep them with `fanin train -m`")
        settings = Settings(params=None, sampler={"name": "grid"}, pruner=None, budget=Budget())
        study = read_study(
            loader,
            config_name=OWN_CONFIG,
            hydra_overrides=found,
            arguments=[*overrides, "study.name=train"],
            settings=settings,
        )
        told = " ".join(line for line in overrides if not line.startswith(UNNAMED))
        return train(study, options=options, project=Path.cwd(), called=told)


def sweep(sweeper: Any, arguments: list[str]) -> int:
    """Called by the sweeper plugin."""
    settings = Settings(**plain(sweeper.settings))
    if sweeper.task_function is not own_task:
        return _sweep_foreign(sweeper, arguments, settings)
    for field, (usual, ours) in INSTEAD.items():
        value = sweeper.settings[field]
        require(value == usual, f"hydra.sweeper.{field}", f"is for other programs; here it is {ours}", value)
    study = read_study(
        sweeper.hydra_context.config_loader,
        config_name=sweeper.config.hydra.job.config_name,
        hydra_overrides=list(sweeper.config.hydra.overrides.hydra),
        arguments=arguments,
        settings=settings,
    )
    return engine.sweep(study, options=sweeper.options or Options(), project=Path.cwd())


def _sweep_foreign(sweeper: Any, arguments: list[str], settings: Settings) -> int:
    """A foreign program knows nothing of our exit codes, so an end other than a good one ends it here."""
    from fanin.sweep import foreign

    try:
        fields = foreign.settings_of(sweeper)
        study = foreign.read_foreign(sweeper, arguments, settings, fields)
        options = Options(extend=fields["change"] == "extend", new=fields["change"] == "new")
        pool = foreign.open_foreign_pool(sweeper, fields)
        best = foreign.open_results(sweeper) / "optimization_results.yaml"
        with terminable():
            code = engine.sweep_foreign(study, pool, options=options, project=Path.cwd(), best=best)
    except ConfigError as error:
        print(f"fanin: {error}", file=sys.stderr)
        code = exits.BAD_INPUT
    if code:
        raise SystemExit(code)
    return code


def plain(settings: Any) -> dict[str, Any]:
    """The sweeper's configuration in plain Python; what is not set is left to Optuna."""
    values: dict[str, Any] = {
        key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in settings.items()
    }
    sampler, pruner = (_given(values[key]) for key in ("sampler", "pruner"))
    return {
        "params": values["params"],
        "sampler": sampler,
        "pruner": None if pruner.get("name", "none") == "none" else pruner,
        "budget": Budget(
            trials=_trials(values["max_trials"], grid=sampler["name"] == "grid"),
            seconds=values["timeout"],
            target=values["target"],
            epochs=values.get("max_epochs"),
        ),
    }


def _trials(given: int | None, *, grid: bool) -> int | None:
    return given if given is not None or grid else DEFAULT_TRIALS


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
