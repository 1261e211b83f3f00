"""Set-up: .venv with the pins of requirements.txt, the right build of torch, and fanin itself (editable).

`make` runs this when requirements.txt or pyproject.toml changed; running it again is cheap. Which torch:

    make setup              the CPU build; a torch of the right version that .venv already has is kept
    make setup TORCH=auto   the CUDA (or ROCm, XPU) build for the driver this machine has
    make setup TORCH=cu130  a particular one, by the names of PyTorch's download page; `cpu` for the CPU again
    make setup TORCH=pypi   what PyPI has: on Linux the CUDA build and several GB of libraries
    make setup TORCH=skip   leave torch and torchvision to you

On Linux, PyPI's torch is the CUDA build, and the CPU build lives where PyTorch keeps it. A pip that is set up
to find a CPU build (find-links, a company's index) is asked first; else uv is, which knows that place. The
CPU torch runs beside PyPI's torchvision thanks to fanin.vision.

Standard library only: this runs before anything is installed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (the very point: say so before anything fails obscurely)
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"fanin needs Python 3.11 or newer, this is {found}. Try: make setup PYTHON=python3.12")

VENV = Path(".venv")
PYTHON = str(VENV / "bin" / "python")
READY = VENV / "ready"  # the Makefile compares its age
LOG = VENV / "setup.log"
PIP = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
INSTALL = [*PIP, "install", "--no-compile"]
UV = [str(VENV / "bin" / "uv"), "pip", "install", "--python", PYTHON]

CHECK = """
import fanin, hydra, mlflow, torch
from fanin.vision import torchvision
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
versions = [f"{part.__name__} {part.__version__}" for part in (torch, torchvision, hydra, mlflow)]
print(", ".join([*versions, gpu]))
"""
INSTALLED = """
from importlib.metadata import version
print(*(f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision")))
"""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def attempt(command: Sequence[str]) -> bool:
    """Run `command` with its output in LOG; True if it succeeded."""
    with LOG.open("a") as log:
        print("$", *command, file=log, flush=True)
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode == 0


def run(command: Sequence[str], *, advice: str) -> None:
    """Run `command`; if it fails, end with the tail of its output and `advice`."""
    if not attempt(command):
        tail = "\n".join(line[:160] for line in LOG.read_text().splitlines()[-5:])
        sys.exit(f"{tail}\nsetup: failed; all output is in {LOG}. {advice}")


def read_pins(path: Path) -> dict[str, str]:
    """Package name -> requirement, for each line that is not a comment."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return {line.partition("==")[0]: line for line in lines if line and not line.startswith("#")}


def make_venv() -> None:
    if not (VENV / "bin" / "pip").exists():
        say(f"{VENV} for Python {sys.version.split()[0]}")
        advice = "On Debian and Ubuntu: apt install python3-venv."
        VENV.mkdir(exist_ok=True)
        run([sys.executable, "-m", "venv", str(VENV)], advice=advice)


def install_pins(pins: dict[str, str]) -> None:
    """Everything but torch. setuptools goes first: it builds fanin and the packages that ship as source."""
    advice = "Is the package index reachable? Try: python3 -m pip download --no-deps six"
    exactly = [*INSTALL, "--no-deps", "--no-build-isolation"]
    run([*exactly, pins["setuptools"]], advice=advice)
    rest = [pin for name, pin in pins.items() if name not in ("torch", "torchvision")]
    say(f"{len(rest)} packages (about a minute)")
    run([*exactly, *rest], advice=advice)
    run([*exactly, "--editable", "."], advice=advice)


def has_torch(torch: str, torchvision: str) -> bool:
    """Whether .venv has these versions, whatever their build."""
    found = subprocess.run([PYTHON, "-c", INSTALLED], capture_output=True, text=True, check=False)
    return found.stdout.split() == [torch, torchvision]


def install_torch(torch: str, torchvision: str, *, build: str) -> None:
    """`build`: see the top of this file; "" is the CPU build unless there is a torch already."""
    if build == "skip" or (not build and has_torch(torch, torchvision)):
        return
    say(f"{torch}, {build or 'cpu'} build")
    if build == "pypi" or (build in ("", "cpu") and sys.platform != "linux"):
        run([*INSTALL, torch, torchvision], advice="Is the package index reachable?")
    elif build in ("", "cpu") and attempt([*INSTALL, "--no-deps", f"{torch}+cpu"]):
        run([*INSTALL, "--no-deps", torchvision], advice="Is the package index reachable?")
    else:
        advice = "If PyTorch's own downloads cannot be reached from here, TORCH=pypi takes PyPI's build."
        renewed = ["--reinstall-package=torch", "--reinstall-package=torchvision"]
        run([*UV, f"--torch-backend={build or 'cpu'}", *renewed, torch, torchvision], advice=advice)


def compile_all() -> None:
    """Byte code of all packages at once on every core; pip would do it one file after the other."""
    say("compiling")
    attempt([PYTHON, "-m", "compileall", "-q", "-j0", str(VENV / "lib")])


def check() -> None:
    """Import what fanin stands on, and print the versions found."""
    for command in ([*PIP, "check"], [PYTHON, "-c", CHECK]):
        run(command, advice="Remove .venv and try again.")
    say(LOG.read_text().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes .venv; the top of this file says more.")
    parser.add_argument("--torch", default="", help="cpu, auto, cu130, ..., pypi or skip")
    build = parser.parse_args().torch
    os.chdir(Path(__file__).parent.parent)
    began = time.monotonic()
    make_venv()
    pins = read_pins(Path("requirements.txt"))
    install_pins(pins)
    install_torch(pins["torch"], pins["torchvision"], build=build)
    compile_all()
    check()
    READY.touch()
    say(f"ready after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
