"""What the demo shows while it runs, and to whom it shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The state of the delivery at one time."""

    elapsed_s: float
    seen: int
    confirmed: int
    waiting: int
    data_ids: tuple[str, ...]
    reachable: bool | None
    """Whether the local server can be reached; None for a server that is not ours."""
    away_s: float
    """For how long it has been unreachable."""
    held: int | None
    """How many points the local server says it has."""


class Display(Protocol):
    """Shows what happens in the demo. Any thread may call it."""

    def step(self, text: str) -> None:
        """Show that a step begins."""

    def moment(self, moment: Moment) -> None:
        """Show the present state. Called ten times a second."""
