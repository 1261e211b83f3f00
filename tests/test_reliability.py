"""docs/reliability.md promises nothing that no test shows."""

import ast
import re

from conftest import ROOT

TESTS = ROOT / "tests"
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
REFERENCE = re.compile(r"`(test_\w+\.py)::(test_\w+)`(\*?)")


def scenarios():
    """Number -> the line of the table."""
    return dict(re.findall(r"^\| (\d+)\w? \|(.*)$", DOCUMENT, flags=re.MULTILINE))


def function(file, name):
    """The test as written in the file, None if it is not there; and whether it is marked slow."""
    module = ast.parse((TESTS / file).read_text())
    slow_file = any("mark.slow" in ast.unparse(node) for node in module.body if isinstance(node, ast.Assign))
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node, slow_file or any("mark.slow" in ast.unparse(mark) for mark in node.decorator_list)
    return None, False


def test_each_of_the_twenty_scenarios_names_a_test():
    assert {str(number) for number in range(1, 21)} <= scenarios().keys()
    assert [number for number, line in scenarios().items() if not REFERENCE.search(line)] == []


def test_every_test_it_names_exists_and_has_a_star_if_it_is_slow():
    wrong = []
    for file, name, star in REFERENCE.findall(DOCUMENT):
        node, slow = function(file, name) if (TESTS / file).exists() else (None, False)
        if node is None or slow != bool(star):
            wrong.append((file, name, "slow" if slow else "there is none" if node is None else "quick"))
    assert wrong == []
