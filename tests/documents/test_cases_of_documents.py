"""What the manual says a case is shown by is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanations" / "cases-of-documents.md"


def test_each_case_of_documents_is_shown_by_tests_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:3].strip("| ")
    ]
    cases = {int(row[0]): row[-1] for row in rows if row[0].isdigit()}
    functions = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert len(cases) >= 57
    assert list(cases) == list(range(1, len(cases) + 1))
    assert all(re.findall(r"`test_[^`]+`", shown_by) for shown_by in cases.values())
    assert set(re.findall(r"`(test_[^`]+)`", text)) - functions == set()
