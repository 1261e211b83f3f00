"""From a command to a running sweep: compose, check everything, take the study's folder, coordinate, sum up.

Both `fanin sweep STUDY` and Hydra's own `-m` end in `sweep`, called by the sweeper plugin.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from fanin.errors import ConfigError, require
from fanin.sweep.compose import Composer, friendly_errors

OWN_CONFIG = "config"


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    dry_run: bool = False
    extend: bool = False
    new: bool = False


def own_task(config: Any) -> None:
    """Stands for fanin's own training in Hydra's interface; the engine runs it in workers, never here."""
    raise AssertionError("fanin's runs are trained by workers")


def multirun(overrides: Sequence[str], options: Options) -> int:
    """Compose fanin's configuration under `overrides` and hand it to the sweeper plugin it names."""
    from hydra._internal.callbacks import Callbacks

    with project_loader() as (loader, found):
        overrides = [*found, *overrides]
        composer = Composer(loader, config_name=OWN_CONFIG, fixed=found)
        with friendly_errors(composer):
            config = loader.load_configuration(OWN_CONFIG, list(overrides), run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        sweeper: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=own_task, config=config
        )
        require(hasattr(sweeper, "options"), "hydra/sweeper", "must be one of fanin's own", type(sweeper).__name__)
        sweeper.options = options
        return int(sweeper.sweep(list(config.hydra.overrides.task)))


@contextmanager
def project_loader() -> Iterator[tuple[ConfigLoader, list[str]]]:
    """Hydra's loader for the project in the working directory, and the override that makes sweeps/ a group."""
    conf = Path("conf").resolve()
    require((conf / "config.yaml").exists(), "conf/", "run fanin in a project folder: there is no", "conf/config.yaml")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3", job_name="fanin"):
        yield GlobalHydra.instance().config_loader(), [f"hydra.searchpath=['file://{conf.parent}']"]
