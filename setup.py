"""Makes the description for a package index. All else about the build is in pyproject.toml.

A package index shows README.md without the folder around it, so its relative links and pictures lead nowhere there.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")
_HERE = Path(__file__).parent


def readme_for_index(text: str, repository: str | None) -> str:
    """Return a README whose relative links lead into the repository.

    Args:
        text: The README.
        repository: Its address. Without one, pictures are left out, and links become their text.
    """

    def replaced(found: re.Match[str]) -> str:
        picture, name, path = found.groups()
        if repository is None:
            return "" if picture else name
        return f"{picture}[{name}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/main/{path})"

    return _LINK.sub(replaced, text)


if __name__ == "__main__":  # as the build runs it
    project = tomllib.loads((_HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=readme_for_index(
            (_HERE / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository")
        ),
        long_description_content_type="text/markdown",
    )
