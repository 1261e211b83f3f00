"""Remakes requirements.txt, the one place with every exact version: `make lock [ARGS=--upgrade]`.

uv resolves pyproject.toml for every platform and for Python 3.11 and newer. Without --upgrade the versions
in the file stay as they are, and only what pyproject.toml added or dropped changes. torch and torchvision
stay even with --upgrade: they belong together, so change both by hand. The CUDA packages that PyPI's Linux
build of torch asks for are left out: tools/setup.py picks the build, and that build brings its own.
"""

import re
import subprocess
import sys
from pathlib import Path

PINS = Path("requirements.txt")
UV = str(Path(sys.executable).with_name("uv"))
TORCH = re.compile(r"torch(vision)?==")
CUDA = re.compile(r"nvidia-|cuda-|triton==")

HEADER = """\
# Every package fanin runs, tests and checks itself with, at its exact version. Made by `make lock`
# (tools/lock.py) from pyproject.toml; installed by `make setup` (tools/setup.py).
"""


def resolve(*options: str) -> list[str]:
    """The pins of pyproject.toml with `options`, one requirement a line. Raises CalledProcessError."""
    command = [UV, "pip", "compile", "pyproject.toml", "--universal", "--python-version=3.11"]
    quiet = ["--quiet", "--no-annotate", "--no-header"]
    lines = subprocess.run([*command, *quiet, *options], check=True, stdout=subprocess.PIPE, text=True)
    return [line for line in lines.stdout.splitlines() if not CUDA.match(line)]


def kept(*, upgrade: bool) -> str:
    """The pins of the present file that hold for the new one."""
    lines = PINS.read_text().splitlines()
    return "\n".join(line for line in lines if not upgrade or TORCH.match(line))


def main() -> None:
    constraints = Path(".venv/kept.txt")
    constraints.write_text(kept(upgrade="--upgrade" in sys.argv[1:]))
    runtime = resolve(f"--constraint={constraints}")
    everything = resolve(f"--constraint={constraints}", "--extra=dev")
    dev = [line for line in everything if line not in runtime]
    PINS.write_text("\n".join([HEADER, "# To run", *runtime, "", "# To test and check", *dev, ""]))
    print(f"{PINS}: {len(runtime)} packages to run, {len(dev)} more to test and check")


if __name__ == "__main__":
    main()
