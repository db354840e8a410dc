"""What the page shows, as a source tells it. Each record goes to the browser as JSON. Pure."""

from __future__ import annotations

import msgspec


class Outage(msgspec.Struct, frozen=True):
    """Why nothing is delivered at present."""

    since: float  # Unix seconds
    error: str


class Requests(msgspec.Struct, frozen=True):
    """The requests that a server has had."""

    total: int
    under_way: int
    by_status: dict[str, int]


class StreamLine(msgspec.Struct, frozen=True):
    """One stream in the list."""

    id: str
    name: str
    status: str
    tone: str  # how the status is coloured: live, done, wait or bad
    updated: float  # Unix seconds
    points: int
    channels: int
    run: str = ""  # the beginning of the run's uid; streams with the same one are shown together
    sample: str | None = None
    instrument: str | None = None
    note: str = ""  # what else there is to know, in a few words
    spark: list[float | None] = []  # the course of its first channel


class Overview(msgspec.Struct, frozen=True):
    """Everything but the points."""

    title: str
    place: str  # an address or a folder
    now: float  # Unix seconds
    streams: list[StreamLine]  # the newest first
    more: int = 0  # how many older streams are not in the list
    outage: Outage | None = None
    requests: Requests | None = None


class Channel(msgspec.Struct, frozen=True):
    """The points of one channel in the requested range; None is a gap."""

    name: str
    unit: str | None
    count: int  # how many points there are in all
    times: list[float]  # Unix seconds
    values: list[float | None]


class Mark(msgspec.Struct, frozen=True):
    """A moment that is marked in every plot."""

    time: float  # Unix seconds
    text: str


class Stream(msgspec.Struct, frozen=True):
    """One stream with its points."""

    id: str
    name: str
    version: str  # changes when anything of it changes
    channels: list[Channel]
    marks: list[Mark] = []
    facts: list[tuple[str, str]] = []  # what else there is to know, by name
    thinned: bool = False  # not every point is shown
