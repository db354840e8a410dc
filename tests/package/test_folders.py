"""Each folder of the package says in its `__init__` what each of its files does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import atomscale_bluesky
from atomscale_bluesky.cli import commands

PACKAGE = Path(atomscale_bluesky.__file__).parent
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(PACKAGE).as_posix())
def test_every_file_of_a_folder_is_named_where_the_folder_is_described(folder: Path) -> None:
    described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = set(re.findall(r"\w+", described))
    if folder.name == "cli":
        named |= commands.commands.keys()  # each is in the file of its name

    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= named
