"""Misbehaviour on demand: which requests, how often, and what happens to them. Described as data.

A fault table holds rules in the order they were given. The first rule that matches a request and is not used up
decides, and at most one acts on a request. Everything runs in the server's event loop, so counting needs no lock.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from ..errors import SettingsError

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Please sign in.</form></body></html>"


class CallName(StrEnum):
    """The kind of a request, whatever its path family."""

    INITIALIZE = "initialize"
    CHUNK = "chunk"
    CHUNK_MULTI = "chunk_multi"
    FINALIZE = "finalize"
    READ = "read"
    CATALOGUE = "catalogue"
    CHANGE_ENTRY = "change_entry"
    LINK_SAMPLE = "link_sample"
    INSTRUMENTS = "instruments"
    SAMPLES = "samples"
    PROJECTS = "projects"
    TRACK_SAMPLE = "track_sample"
    TAGS = "tags"
    ATTACH_TAGS = "attach_tags"
    TIME = "time"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that a fault can match."""

    call: CallName
    method: str = "POST"
    family: str | None = None
    data_id: str | None = None
    chunk_index: int | None = None
    channels: tuple[str, ...] = ()
    label: str | None = None
    size: int = 0


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One rule of misbehaviour. A member that is not given matches everything, or does nothing.

    Which requests: `call` (one name or several), `method` (distinguishes listing items from adding one), `family`,
    `data_id`, `chunk_index`, `channel` (is among the request's), `label` (a part of the stream's label), `above_bytes`
    (a body larger than this).

    How often: the first `skip` that match are spared. On each of the others the rule acts with `probability` (drawn
    from `seed`), until it has acted `times` times (None: no limit). With `above_per_s`, up to this many requests a
    second, counted over a tenth of a second, are spared too.

    What: wait `delay_s` first, and `delay_each_s` for each other request under way, then at most one of

    - `status` with `headers` and `body`: this answer instead; the request is not applied, unless `applied`
    - `body` alone: as `status=200`
    - `garble`: applied, but the answer is `"empty"`, cut in `"half"`, or about the `"other_chunk"`
    - `hang`: not applied, and no answer; the connection stays until the client closes it
    - `reset_before`: the connection is reset and the request not applied
    - `reset_after`: applied, and the connection reset before the answer
    - `apply_later_s`: the connection is reset, and the request applied this many seconds later
    - `drip_s`: applied, and answered one byte at a time with this pause between

    `partly` applies only this many of the first channels of a `chunk/multi` body (with `applied`, `reset_after`).
    """

    call: str | tuple[str, ...] | None = None
    method: str | None = None
    family: str | None = None
    data_id: str | None = None
    chunk_index: int | None = None
    channel: str | None = None
    label: str | None = None
    above_bytes: int | None = None

    skip: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    above_per_s: float | None = None

    delay_s: float = 0.0
    delay_each_s: float = 0.0
    status: int | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    applied: bool = False
    garble: Literal["empty", "half", "other_chunk"] | None = None
    hang: bool = False
    reset_before: bool = False
    reset_after: bool = False
    apply_later_s: float | None = None
    drip_s: float | None = None
    partly: int | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that could never act, or that says two contradictory things.

        Raises:
            SettingsError: Names the member.
        """
        known = {name.value for name in CallName}
        if unknown := [name for name in self.calls if name not in known]:
            raise SettingsError(f"a fault's `call` names {unknown[0]!r}; known are {', '.join(sorted(known))}")
        acts = {
            "status or body": self.status is not None or self.body is not None,
            "garble": self.garble is not None,
            "hang": self.hang,
            "reset_before": self.reset_before,
            "reset_after": self.reset_after,
            "apply_later_s": self.apply_later_s is not None,
            "drip_s": self.drip_s is not None,
        }
        chosen = [name for name, given in acts.items() if given]
        if len(chosen) > 1:
            raise SettingsError(f"a fault has the actions {' and '.join(chosen)}; give one of them")
        if not chosen and not (self.delay_s or self.delay_each_s):
            raise SettingsError(f"a fault has no action; give `delay_s` or one of {', '.join(acts)}")

    @property
    def calls(self) -> tuple[str, ...]:
        """The calls that the rule is about; empty means all."""
        if self.call is None:
            return ()
        return (str(self.call),) if isinstance(self.call, str) else self.call

    def matches(self, request: Request) -> bool:
        """Return True for a request that this rule is about, however often the rule was used."""
        return (
            (not self.calls or request.call.value in self.calls)
            and self.method in (None, request.method)
            and self.family in (None, request.family)
            and self.data_id in (None, request.data_id)
            and self.chunk_index in (None, request.chunk_index)
            and (self.channel is None or self.channel in request.channels)
            and (self.label is None or self.label in (request.label or ""))
            and (self.above_bytes is None or request.size > self.above_bytes)
        )


class FaultState(msgspec.Struct, frozen=True):
    """A rule of the table, with how often it matched and acted."""

    number: int
    fault: Fault
    matched: int
    acted: int


@dataclass(slots=True)
class _ArmedFault:
    number: int
    fault: Fault
    random: random.Random
    matched: int = 0
    acted: int = 0
    permitted: float | None = None  # how many more requests may pass now, where only those above a rate are meant
    permitted_at: float = 0.0

    def is_below_the_rate(self, now: float) -> bool:
        """Return True if the request is one of those that may pass. Counts it."""
        rate = self.fault.above_per_s
        if rate is None:
            return False
        burst = max(1.0, rate / 10)
        before = burst if self.permitted is None else self.permitted
        self.permitted = min(burst, before + rate * (now - self.permitted_at))
        self.permitted_at = now
        if self.permitted < 1.0:
            return False
        self.permitted -= 1.0
        return True


@dataclass(slots=True)
class FaultTable:
    """The rules in force."""

    _armed: list[_ArmedFault] = field(default_factory=list)
    _count: int = 0

    def add(self, faults: Sequence[Fault]) -> list[int]:
        """Add further rules after those in force, and return the number of each."""
        numbers = []
        for fault in faults:
            self._count += 1
            self._armed.append(_ArmedFault(self._count, fault, random.Random(fault.seed)))  # noqa: S311
            numbers.append(self._count)
        return numbers

    def clear(self) -> None:
        """Remove every rule."""
        self._armed.clear()

    def states(self) -> list[FaultState]:
        """Return every rule in force, used up or not."""
        return [FaultState(armed.number, armed.fault, armed.matched, armed.acted) for armed in self._armed]

    def draw(self, request: Request, now: float) -> tuple[int, Fault] | None:
        """Return the rule that decides about this request, with its number, or None if no rule does. Counts it.

        Args:
            request: What has come.
            now: Monotonic.
        """
        for armed in self._armed:
            fault = armed.fault
            if not fault.matches(request):
                continue
            armed.matched += 1
            if armed.matched <= fault.skip or (fault.times is not None and armed.acted >= fault.times):
                continue
            if fault.probability < 1.0 and armed.random.random() >= fault.probability:
                continue
            if armed.is_below_the_rate(now):
                continue
            armed.acted += 1
            return armed.number, fault
        return None
