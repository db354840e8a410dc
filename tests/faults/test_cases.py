"""What the manual says a case is shown by is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]


def test_every_case_names_scenarios_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "explanations" / "fault-bench.md").read_text()
    section = page.partition("## The cases and their tests")[2].partition("\n## ")[0]
    cases = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ") and "shown by" not in line]
    functions = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }

    assert len(cases) == 20
    for shown_by in cases:
        names = re.findall(r"`([^`]+)`", shown_by)
        assert names
        assert [name for name in names if name not in SCENARIOS and name not in functions] == []


def test_every_scenario_is_on_the_page() -> None:
    page = (ROOT / "docs" / "explanations" / "fault-bench.md").read_text()

    assert [name for name, scenario in SCENARIOS.items() if f"- **{name}**: {scenario.promise}" not in page] == []
