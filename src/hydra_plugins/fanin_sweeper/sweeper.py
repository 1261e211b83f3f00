"""The Hydra sweeper: `-m` multiruns of fanin, and of any @hydra.main function that returns a number.

Hydra imports this module at the start of every Hydra program on the machine, so it imports nothing heavy.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.fanin_sweeper import config as _register  # noqa: F401  (puts grid, tpe, ... into hydra/sweeper)


class FaninSweeper(Sweeper):
    """Hands the sweep to fanin's engine. The arguments are those of config.py; `options` is set by the fanin
    command (--dry-run, --extend, --new)."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.options: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.launcher = None

    def sweep(self, arguments: list[str]) -> Any:
        from fanin.sweep import launch

        return launch.sweep(self, arguments)
