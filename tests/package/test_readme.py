"""The README on a package index, which has no folder around it."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELATIVE = re.compile(r"\]\((?!https?:|#)")


@pytest.fixture
def readme_for_index() -> Callable[[str, str | None], str]:
    return runpy.run_path(str(ROOT / "setup.py"), run_name="read")["readme_for_index"]


def test_without_an_address_no_link_leads_nowhere_and_no_picture_is_broken(
    readme_for_index: Callable[[str, str | None], str],
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme_for_index(text, None)

    assert RELATIVE.search(text)
    assert not RELATIVE.search(shown)
    assert "![" not in shown
    assert "The eight promises says what each of them means on a bad day." in shown
    assert "[Bluesky](https://blueskyproject.io)" in shown


def test_with_an_address_every_link_leads_to_a_file_that_is_there(
    readme_for_index: Callable[[str, str | None], str],
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme_for_index(text, "https://example.org/it/")

    assert "![A simulated growth" in shown
    assert "(https://example.org/it/raw/main/docs/images/demo.png)" in shown
    linked = re.findall(r"https://example\.org/it/(?:raw|blob)/main/([^)#]+)", shown)
    assert len(linked) > 20
    assert [path for path in linked if not (ROOT / path).exists()] == []
