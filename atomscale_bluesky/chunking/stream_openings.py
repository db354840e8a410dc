"""Which metrology streams a run's ledger has opened, and how a further one opens.

An opening is noted in the ledger before anything is done about it: which rows and channels it takes, its label, and
whether it shares the metrology stream of an earlier opening.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from ..model.labels import stream_label
from ..model.rows import Position
from ..spool.journal_format import Header
from ..spool.ledger import Ledger
from ..spool.ledger_format import Opened, OpeningReason
from ..spool.stream_state import Life, MetrologyStreamState
from ..status.account import Account
from .chunker import ChannelWait


class StreamOpenings:
    """The openings of one run.

    Args:
        header: The journal's first line.
        ledger: Records openings.
        account: Knows the layouts that were read so far.
    """

    def __init__(self, header: Header, ledger: Ledger, account: Account) -> None:
        self._header = header
        self._ledger = ledger
        self._account = account

    def open_streams(self) -> list[MetrologyStreamState]:
        """Return the metrology streams that take further chunks."""
        return [stream for stream in self._ledger.state.streams.values() if not stream.ended]

    def of_time_base(self, time_base: str) -> list[MetrologyStreamState]:
        """Return all metrology streams of a time base, ended ones too."""
        return [stream for stream in self._ledger.state.streams.values() if stream.opening.time_base == time_base]

    def channels_of(self, opening: Opened) -> tuple[str, ...]:
        """Return the channels that an opening takes.

        There are none while its time base has no layout in the journal.
        """
        if opening.channels is not None:
            return opening.channels
        return self._first_channels(opening.time_base)

    def waits(self, streams: list[MetrologyStreamState]) -> dict[str, ChannelWait]:
        """Return the channels that left a stream and were not given another one for what came after that."""
        waiting: dict[str, ChannelWait] = {}
        for stream in streams:
            for name, row in stream.left_at_row.items():
                if name not in waiting or waiting[name].from_row < row:
                    waiting[name] = ChannelWait(
                        row, "gap", tuple(span for span in stream.opening.skip if span[1] >= row)
                    )
        for stream in streams:
            from_row = stream.opening.from_row
            for name in self.channels_of(stream.opening):
                has_it = name not in stream.left_at_row or stream.left_at_row[name] > from_row
                if has_it and name in waiting and waiting[name].from_row <= from_row:
                    del waiting[name]
        return waiting

    def open(
        self,
        *,
        why: OpeningReason,
        time_base: str,
        from_row: int,
        position: Position,
        channels: tuple[str, ...] | None,
        skip: tuple[tuple[int, int], ...] = (),
        points_per_chunk: int | None = None,
    ) -> Opened:
        """Open a further metrology stream of the run."""
        streams = self._ledger.state.streams
        edited = self._ledger.state.edited
        points = points_per_chunk or (edited and edited.points_per_chunk) or self._header.points_per_chunk
        host = None
        if streams and self._header.layout == "run":
            host = self._host(self._first_channels(time_base) if channels is None else channels, points)
        token = host.token if host else secrets.token_hex(4)
        opening = Opened(
            stream=len(streams),
            time_base=time_base,
            from_row=from_row,
            why=why,
            label=host.label if host else self._label(time_base, token, channels),
            token=token,
            points_per_chunk=points,
            skip=skip,
            segment=position.segment,
            offset=position.offset,
            channels=channels,
            joins=host.stream if host else None,
        )
        # The first opening of a run is synced with the next line: without it, there is nothing that could follow.
        self._ledger.note(opening, sync=bool(streams))
        return opening

    def _host(self, channels: Iterable[str], points_per_chunk: int) -> Opened | None:
        """Return the opening whose metrology stream these channels can share; None if they need a new one.

        Their points are numbered from 0 in it. Neither that stream nor any made after it holds one of the channels,
        since later points of a channel are in a later stream.
        """
        takes = {Life.OPENED, Life.INITIALIZING, Life.INITIALIZED}
        for stream in reversed(self._ledger.state.streams.values()):
            if stream.opening.joins is not None:
                continue
            if not {name for one in stream.group for name in self.channels_of(one.opening)}.isdisjoint(channels):
                return None
            ended = stream.group_parked or any(one.ended for one in stream.group)
            if stream.life in takes and not ended and stream.opening.points_per_chunk == points_per_chunk:
                return stream.opening
        return None

    def _first_channels(self, time_base: str) -> tuple[str, ...]:
        layouts = (layout for layout in self._account.layouts.values() if layout.time_base == time_base)
        first = next(layouts, None)
        return tuple(channel.name for channel in first.channels) if first else ()

    def _label(self, time_base: str, token: str, channels: tuple[str, ...] | None) -> str:
        """Return the label of a further metrology stream: for its event stream, or for the run if it takes all.

        It names the channels unless they are all that the time base has so far.
        """
        layouts = (layout for layout in self._account.layouts.values() if layout.time_base == time_base)
        every = {channel.name for layout in layouts for channel in layout.channels}
        earlier = [stream for stream in self._ledger.state.streams.values() if stream.opening.joins is None]
        if self._header.layout != "run":
            earlier = [stream for stream in earlier if stream.opening.time_base == time_base]
        shown = None if time_base == self._header.primary or self._header.layout == "run" else time_base
        edited = self._ledger.state.edited
        return stream_label(
            (edited and edited.label) or self._header.label,
            event_stream=shown,
            number=len(earlier) + 1,
            run_uid=self._header.run_uid,
            token=token,
            channels=() if channels is None or every <= {*channels} else channels,
        )
