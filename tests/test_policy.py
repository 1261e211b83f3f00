"""Promises about the repository itself: who imports what, what is never committed, what an option says of itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
OPTIONS = sorted(path for path in (ROOT / "conf").rglob("*.yaml") if path.parent != ROOT / "conf")

# Third-party package -> the modules (with all below them) that may import it.
OWNERS = {
    "matplotlib": ["fanin.report.stills"],
    "mlflow": ["fanin.tracking", "fanin.registry"],
    "optuna": ["fanin.sweep"],
    "hydra": ["fanin.app", "fanin.sweep", "hydra_plugins"],
    "omegaconf": ["fanin.app", "fanin.sweep", "hydra_plugins"],
    "psycopg": ["fanin.postgres", "fanin.shared"],
    "pyarrow": ["fanin.archive"],
    "torchvision": ["fanin.vision"],
}
# Module of ours -> the modules that may import it.
IMPORTERS = {
    "fanin.app": ["fanin.__main__"],
    "fanin.query": [
        *("fanin", "fanin.app", "fanin.comparison", "fanin.criteria.settled", "fanin.registry"),
        *("fanin.report", "fanin.results", "fanin.sweep", "fanin.ui"),
    ],
    "fanin.tracking": [
        *("fanin.app", "fanin.doctor", "fanin.registry", "fanin.report", "fanin.run", "fanin.sweep", "fanin.ui"),
        *("fanin.shipper", "fanin.shipping", "fanin.shared"),  # who knows how
        *("fanin.client", "fanin.postgres", "fanin.server", "fanin.source", "fanin.sqlite"),  # what is read
    ],
    "fanin.source": ["fanin.query"],
    "hydra_plugins": [],
}
# Imports go downwards. What is not named here is a leaf, or below the results: level 0.
LEVELS = {
    "fanin.train": 1,
    "fanin.build": 2,
    "fanin.training": 3,
    "fanin.run": 3,
    "fanin.sweep": 4,
    "fanin.doctor": 5,
    "fanin.registry": 4,
    "fanin.report": 5,  # the factors that matter, as a sweep's own summary weighs them
    "fanin.results": 5,
    "hydra_plugins": 5,
    "fanin.app": 6,
    "fanin.__main__": 7,
}
WITHOUT_TORCH = [
    *("archive", "bulk", "client", "compare", "database", "description", "folders", "history", "leaderboard", "points"),
    *("postgres", "query", "report", "results", "schema", "server", "shipper", "shipping", "source", "spool"),
    *("diagnose", "sqlite", "tracking", "view"),
]


def within(module: str, owners: list[str]) -> bool:
    return any(module == owner or (owner != "fanin" and module.startswith(f"{owner}.")) for owner in owners)


def imports(path: Path) -> Iterator[str]:
    """Every module imported anywhere in a file, also inside functions; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute, so that one can grep for them"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) for every import of one of our modules by another."""
    for module, path in MODULES.items():
        yield from ((module, other) for other in set(imports(path)) if other in MODULES and other != module)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the one before it, the first one again at the end; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def level(module: str) -> int:
    return max((height for name, height in LEVELS.items() if within(module, [name])), default=0)


def tracked_files() -> list[Path]:
    """What git has or would add: a file is judged before it is committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.mark.parametrize("package", OWNERS)
def test_a_third_party_package_is_imported_by_its_owners_only(package):
    guilty = [
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == package for name in imports(path)) and not within(module, OWNERS[package])
    ]
    assert not guilty


@pytest.mark.parametrize("module", IMPORTERS)
def test_a_guarded_module_of_ours_is_imported_by_those_named_only(module):
    assert module in MODULES or any(name.startswith(f"{module}.") for name in MODULES)
    allowed = [*IMPORTERS[module], module]
    assert not [a for a, b in edges() if within(b, [module]) and not within(a, allowed)]


def test_imports_go_downwards():
    wrong = [f"{a} -> {b}" for a, b in edges() if a != "fanin" and level(a) < level(b)]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for importer, imported in edges():
        if not importer.startswith(f"{imported}."):  # a package's parts may come with the package
            graph.setdefault(importer, set()).add(imported)
    assert circle(graph) == []


def test_the_results_side_runs_without_torch():
    present = [f"fanin.{name}" for name in WITHOUT_TORCH if f"fanin.{name}" in MODULES]
    assert {"fanin.tracking", "fanin.query", "fanin.spool", "fanin.leaderboard"} <= set(present)
    script = f"import sys, {', '.join(present)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert not [name for name in present if "torch" in imports(MODULES[name])]


# Written as patterns that do not match themselves: this file is tracked, too.
MACHINE = re.compile(r"(?<![\w.}$-])/(?:work|root|home/\w+|Users/\w+|opt/wheels|opt/pypi)\b")
HOST = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs|deb\.debian\.org")


@pytest.mark.parametrize("forbidden", [MACHINE, HOST], ids=["path of a machine", "host of a registry"])
def test_no_tracked_file_names_a(forbidden):
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore") if path.suffix != ".png" else ""
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in forbidden.finditer(text)]
    assert not found


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for target in re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE):
        assert f"make {target} " in shown


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_option_says_when_to_choose_it_in_its_first_line_and_is_short(path):
    lines = path.read_text().splitlines()
    assert re.match(r"# \S", lines[0]) and len(lines) <= 15


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_option_can_be_chosen_by_its_file_name(path):
    group = path.parent.relative_to(ROOT / "conf").as_posix()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        chosen = compose("config", [f"{group}={path.stem}"], return_hydra_config=True)
    assert chosen.hydra.runtime.choices[group] == path.stem
