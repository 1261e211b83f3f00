"""The `fanin` command, also as `python -m fanin`."""

import os
import sys
from typing import NoReturn

from fanin.app import main


def run() -> NoReturn:
    """Run the command and leave at once: Python would take another second to tidy up MLflow's and torch's
    modules, and longer on a busy machine. What must be on disk is there when `main` returns."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
