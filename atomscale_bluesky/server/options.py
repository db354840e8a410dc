"""The options of a local server, checked once when it starts.

Turns the arguments of `LocalServer` and `serve` into one frozen `Options`, or raises a `SettingsError` that names the
argument. Uses no file, no socket and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TypeVar

from ..errors import SettingsError
from .rules import Rule

E = TypeVar("E", bound=Enum)

# Small enough for every proxy's usual limit, large enough for 500 channels of 100 points.
MAX_BODY_BYTES = 1024 * 1024


class Family(StrEnum):
    """The two spellings of the same four streaming calls. The value is the first part of the path."""

    METROLOGY = "metrology"
    TOOL_STATE = "tool-state"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A growth instrument, as `GET /instruments/synthesis` lists it."""

    synth_source_id: int
    label: str
    name: str = "local server"
    type: str = "mbe"
    serial_id: str | None = None


DEFAULT_INSTRUMENTS = (
    Instrument(42, "MBE 42", "Veeco GEN10", "mbe", "local-42"),
    Instrument(7, "Sputter 7", "AJA ATC Orion", "sputter", "local-7"),
)
DEFAULT_PROJECTS = ("Local project",)


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one server that its routes and rules use."""

    api_key: str
    relax: frozenset[Rule] = frozenset()
    families: tuple[Family, ...] = (Family.METROLOGY, Family.TOOL_STATE)
    multi: bool = True
    max_body_bytes: int = MAX_BODY_BYTES
    silence_s: float | None = None
    """An active stream becomes `stream_error` after this many seconds without a request about it. None: never."""
    derived: bool = False
    """True to read a stream back with further series that were never sent, of numbers and of text."""
    instruments: tuple[Instrument, ...] = field(default=DEFAULT_INSTRUMENTS)
    projects: tuple[str, ...] = DEFAULT_PROJECTS

    def relaxed(self, rule: Rule) -> bool:
        """Return True if `rule` was waived."""
        return rule in self.relax


def options_from(
    *,
    api_key: str,
    relax: Iterable[str | Rule],
    families: Iterable[str | Family],
    multi: bool,
    max_body_bytes: int,
    silence_s: float | None,
    derived: bool,
    instruments: Iterable[Instrument],
    projects: Iterable[str],
) -> Options:
    """Check the arguments of a server.

    Raises:
        SettingsError: An unknown rule or family, no family at all, an empty key, or a limit that is not positive.
    """
    if not api_key:
        raise SettingsError("the local server's `api_key` is empty; give the key that clients shall send")
    if max_body_bytes <= 0:
        raise SettingsError(f"`max_body_bytes` is {max_body_bytes}; give a number of bytes above 0")
    if silence_s is not None and not silence_s > 0:  # not a number is refused too
        raise SettingsError(f"`silence_s` is {silence_s}; give a number of seconds above 0, or None for never")
    chosen = tuple(_member(Family, name, "families") for name in families)
    if not chosen:
        raise SettingsError("`families` is empty; name at least one of metrology, tool-state")
    return Options(
        api_key=api_key,
        relax=frozenset(_member(Rule, name, "relax") for name in relax),
        families=chosen,
        multi=multi,
        max_body_bytes=max_body_bytes,
        silence_s=silence_s,
        derived=derived,
        instruments=tuple(instruments),
        projects=tuple(projects),
    )


def _member(kind: type[E], name: str | E, argument: str) -> E:
    try:
        return kind(name)
    except ValueError as error:
        known = ", ".join(sorted(str(member.value) for member in kind))
        raise SettingsError(f"`{argument}` names {name!r}, which is unknown; known are {known}") from error
