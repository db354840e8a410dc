"""The extras of the package: what each installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS: dict[str, list[str]] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]
FOR_WORK_ON_THE_PACKAGE = {"test", "test-integration", "docs", "dev"}


def installs(extra: str) -> set[str]:
    """The extras that one extra brings with it, itself included."""
    named = [found[1].split(",") for one in EXTRAS[extra] if (found := re.match(r"atomscale-bluesky\[(.+)\]", one))]
    return {extra}.union(*(installs(name) for names in named for name in names))


def test_the_extra_all_installs_every_extra_that_a_command_may_need() -> None:
    assert installs("all") == EXTRAS.keys() - FOR_WORK_ON_THE_PACKAGE


def test_the_extra_of_the_tutorial_can_plot_the_run_that_it_makes() -> None:
    assert installs("demo") >= {"cli", "plot", "server"}
