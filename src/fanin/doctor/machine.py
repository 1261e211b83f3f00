"""What this machine has: Python and its packages, torch and its devices, cores, memory, disk, git."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fanin.doctor.finding import NOTE, OK, PROBLEM, Finding
from fanin.provenance import git_commit, versions

GIB = 2**30
LEAST_DISK, LITTLE_DISK = 0.5, 5  # GiB
LITTLE_MEMORY = 1  # GiB


def python() -> Iterator[Finding]:
    found = versions()
    yield Finding(OK, "python", f"{found['python']} with fanin {found['fanin']}, {found['platform']}")
    others = ("hydra-core", "mlflow", "optuna", "pandas", "numpy")
    missing = [name for name in others if found[name] == "not installed"]
    if missing:
        yield Finding(PROBLEM, "packages", f"{', '.join(missing)} not installed; make setup installs all")
    else:
        yield Finding(OK, "packages", ", ".join(f"{name} {found[name]}" for name in others))


def torch_build() -> Iterator[Finding]:
    import torch  # slow: the lines before it are on the screen meanwhile

    try:
        from fanin.vision import torchvision

        yield Finding(OK, "torch", f"{torch.__version__} with torchvision {torchvision.__version__}")
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding(PROBLEM, "torch", f"{torch.__version__}, but torchvision cannot be imported: {_line(error)}")
    yield _device(torch)


def _device(torch: ModuleType) -> Finding:
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
        return Finding(OK, "device", f"cuda: {names}")
    if torch.backends.mps.is_available():
        return Finding(OK, "device", "mps (Apple GPU)")
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        way = "make setup TORCH=auto installs a build that can"
        return Finding(NOTE, "device", f"cpu; this torch cannot use the NVIDIA GPU that seems to be here: {way}")
    return Finding(OK, "device", "cpu; no GPU that torch can use")


def disk_and_memory(project: Path) -> Iterator[Finding]:
    import psutil

    from fanin.sweep.devices import core_count

    yield Finding(OK, "cores", f"{core_count()} for this process, each with a worker of one thread in a sweep")
    free = psutil.virtual_memory().available / GIB
    little = free < LITTLE_MEMORY
    way = "; a worker takes about 0.4 GiB: fewer of them, hardware.workers=1" * little
    yield Finding(NOTE if little else OK, "memory", f"{free:.1f} GiB free{way}")
    room = shutil.disk_usage(project).free / GIB
    if room < LEAST_DISK:
        yield Finding(PROBLEM, "disk", f"{room:.2f} GiB free, too little for the records of a sweep")
    else:
        yield Finding(NOTE if room < LITTLE_DISK else OK, "disk", f"{room:.1f} GiB free")


def git(project: Path) -> Iterator[Finding]:
    commit = git_commit(project)
    if commit is None:
        text = "no repository here: runs will not say which version of your files they are of (git init)"
        yield Finding(NOTE, "git", text)
    elif commit.endswith("+changes"):
        text = f"commit {commit[:10]} with changes that are not committed; runs are marked so"
        yield Finding(NOTE, "git", text)
    else:
        yield Finding(OK, "git", f"commit {commit[:10]}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
