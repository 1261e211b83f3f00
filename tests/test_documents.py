"""README and docs/ name nothing that is not there: links, files, make targets, fanin's commands, studies, tests."""

import re

import pytest
from conftest import ROOT

from fanin.app import main

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
PLACES = "benchmarks|conf|deploy|docs|examples|src|sweeps|tests|tools"
PARTS = re.findall(r"^# (\S+/\S+\.yaml)$", (ROOT / "docs" / "own_parts.md").read_text(), flags=re.MULTILINE)
YOURS = {"conf/initializer/he_truncated.yaml", *PARTS}  # what README and that page add as examples


def code(document):
    """Fenced and indented blocks and what stands between backticks, as one text."""
    text = document.read_text()
    fenced = re.findall(r"```.*?```", text, flags=re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return "\n".join(fenced + re.findall(r"`[^`\n]+`|^ {4}.*$", rest, flags=re.MULTILINE))


def named(document, pattern):
    """What `pattern` captures in a document's code."""
    return set(re.findall(pattern, code(document), flags=re.MULTILINE))


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def document(request):
    return request.param


def test_every_relative_link_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_file_that_is_named_exists(document):
    paths = set(re.findall(rf"(?<![\w./-])((?:{PLACES})/[\w./-]*\w)(?![\w*<{{])", document.read_text()))
    assert sorted(path for path in paths - YOURS if not (ROOT / path).exists()) == []


def test_every_make_target_that_is_named_exists(document):
    assert named(document, r"(?:^ *|[`$] ?)make ([a-z][a-z-]*)") <= TARGETS


def test_every_fanin_command_that_is_named_exists(document, capsys):
    for command in named(document, r"(?:^ *|[`$ /])fanin ([a-z]+)"):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, command


def test_every_study_that_is_named_exists(document):
    names = named(document, r"(?:fanin (?:sweep|results|report) |SWEEP=)(\w+)")
    assert {name for name in names if not name.isupper() and not (ROOT / "sweeps" / f"{name}.yaml").exists()} == set()


def test_every_test_that_is_named_exists(document):
    lacking = set()
    for file, name in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", document.read_text()):
        path = ROOT / "tests" / file
        if not path.exists() or (name and f"\ndef {name}(" not in path.read_text()):
            lacking.add(f"{file}::{name}")
    assert lacking == set()


def test_readme_shows_how_to_begin():
    readme = ROOT / "README.md"
    assert {"sweep", "test"} <= named(readme, r"(?:^|[`$])make ([a-z]+)") and "sweep" in named(readme, r"fanin (\w+)")
