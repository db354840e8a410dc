"""What a probe has found out about the server at one endpoint, kept beside the runs of the spool.

`atomscale-bluesky probe` writes the file. It is read if the setting `probed` is on: a fact that the probe has confirmed
permits what is not documented.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from ..spool.atomic_file import replace_file
from ..spool.own_files import read_own

# The settings that a fact permits, by its name, if it is true. Ten seconds are prompt enough to watch.
PERMITS: dict[str, dict[str, Any]] = {
    "null": {"non_finite": "null"},
    "times": {"layout": "run"},
    "grown": {"max_latency_s": 10.0},
}


class Fact(msgspec.Struct, frozen=True):
    """One question, its answer, and the evidence for it."""

    name: str
    question: str
    answer: bool | int | float | None  # None: it could not be found out
    evidence: str


class Findings(msgspec.Struct, frozen=True):
    """Everything that one probe has found out."""

    endpoint: str
    time: float  # when it ended, Unix seconds
    version: str  # this package's version
    facts: tuple[Fact, ...]

    @property
    def permitted(self) -> dict[str, Any]:
        """The settings that the facts permit, by name."""
        found = [PERMITS[fact.name] for fact in self.facts if fact.answer is True and fact.name in PERMITS]
        return {name: value for permitted in found for name, value in permitted.items()}


def write_findings(spool: Path, findings: Findings) -> None:
    """Write the findings, in place of earlier ones.

    Raises:
        OSError: The folder cannot be written.
    """
    replace_file(_path(spool, findings.endpoint), msgspec.json.format(msgspec.json.encode(findings)))


def read_findings(spool: Path, endpoint: str) -> Findings | None:
    """Return what a probe of this endpoint has found, or None if there was none or its file cannot be read."""
    try:
        found = msgspec.json.decode(read_own(_path(spool, endpoint)), type=Findings)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.endpoint == endpoint else None


def _path(spool: Path, endpoint: str) -> Path:
    return spool / f"probed-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}.json"
