"""A stream's life in the local server: initialized, fed, finalized, read back.

    stream_active ──finalize▶ success
         └────────silence──▶ stream_error

A body that passed `request_bodies` is checked against what the stream holds. It is stored whole, or refused, and then
only the count of changed attempts is updated. A chunk is stored at its index, whatever the order of arrival.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from typing import Any
from uuid import uuid4

from .options import Family, Options
from .request_bodies import InitializeBody, Points, check_text, unpack
from .rules import Refusal, Rule, refused
from .store import Store

# The series that Atomscale's workflows derive from each property, by their documentation, except the class, which is
# text.
DERIVED_NUMBERS = ("anomaly_score", "forecast", "forecast_lower", "forecast_upper", "z_score", "ema_z_score")
ACTIVE, SUCCESS, ERROR = "stream_active", "success", "stream_error"


class Streams:
    """All streams of one store, under one set of options."""

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._options = options

    def initialize(self, family: Family, body: InitializeBody) -> dict[str, str]:
        """Create a stream and return its two ids. Not idempotent, as in the API."""
        sample, project = _text(body.physical_sample_id), _text(body.project_id)
        if body.stream_name is not None:
            check_text("stream_name", body.stream_name, self._options)
        if sample is not None and family is Family.TOOL_STATE:
            self._demand(Rule.TOOL_STATE_SAMPLE, "tool-state/stream/initialize names no member 'physical_sample_id'")
        for rule, what, identity, table in (
            (Rule.UNKNOWN_INSTRUMENT, "growth instrument", body.synth_source_id, "instruments"),
            (Rule.UNKNOWN_SAMPLE, "physical sample", sample, "samples"),
            (Rule.UNKNOWN_PROJECT, "project", project, "projects"),
        ):
            if identity is not None and not self._store.first(f"SELECT 1 FROM {table} WHERE id = ?", identity):
                self._demand(rule, f"there is no {what} {identity}")
        data_id, processed_data_id, now = str(uuid4()), str(uuid4()), self._store.now()
        with self._store.transaction():
            self._store.execute(
                "INSERT INTO streams (data_id, processed_data_id, family, label, points_per_chunk, synth_source_id,"
                " physical_sample_id, project_id, status, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(data_id, processed_data_id, family.value, body.stream_name, body.points_per_chunk),
                *(body.synth_source_id, sample, project, ACTIVE, now, now),
            )
        return {"data_id": data_id, "processed_data_id": processed_data_id}

    def store_chunk(
        self, family: Family, data_id: str, chunk_index: int, parts: Sequence[Points]
    ) -> list[dict[str, Any]]:
        """Store one chunk of some channels. Return the API's answer for each channel, in the order of `parts`.

        Raises:
            Refusal: By a rule. None of the channels was stored.
        """
        stream = self._open_stream(family, data_id)
        if not parts:
            self._demand(Rule.EMPTY_CHUNK, "the body has no channels")
        for part in parts:
            if part.count > stream["points_per_chunk"]:
                self._demand(
                    Rule.OVER_LENGTH,
                    f"chunk {chunk_index} of channel {part.channel!r} has {part.count} points,"
                    f" the stream's points_per_chunk is {stream['points_per_chunk']}",
                )
        channels = {
            row["name"]: row for row in self._store.all("SELECT * FROM channels WHERE stream = ?", stream["id"])
        }
        held = {
            row["channel"]: row
            for row in self._store.all(
                "SELECT * FROM chunks WHERE stream = ? AND chunk_index = ?", stream["id"], chunk_index
            )
        }
        self._check_repeats(chunk_index, parts, channels, held)
        self._check_time_base(chunk_index, parts, channels, held)
        return self._write(stream, chunk_index, parts, channels, held)

    def _check_repeats(
        self,
        chunk_index: int,
        parts: Sequence[Points],
        channels: dict[str, sqlite3.Row],
        held: dict[int, sqlite3.Row],
    ) -> None:
        for part in parts:
            channel = channels.get(part.channel)
            if channel is None:
                continue
            if channel["units"] != part.units:
                self._demand(
                    Rule.CHANGED_UNITS,
                    f"channel {part.channel!r} has the units {channel['units']!r}, not {part.units!r}",
                )
            before = held.get(channel["id"])
            if before is None or (before["times"] == part.times and before["data"] == part.values):
                continue
            grown = (
                part.count > before["points"]
                and part.times.startswith(before["times"])
                and part.values.startswith(before["data"])
            )
            try:
                if grown:
                    self._demand(
                        Rule.GROWN_CHUNK,
                        f"chunk {chunk_index} of channel {part.channel!r} is held with {before['points']} points"
                        f" and came again with {part.count}",
                    )
                else:
                    self._demand(
                        Rule.CHANGED_CHUNK,
                        f"chunk {chunk_index} of channel {part.channel!r} is held with other content",
                    )
            except Refusal:
                self._store.execute("UPDATE chunks SET changed = changed + 1 WHERE id = ?", before["id"])
                raise

    def _check_time_base(
        self,
        chunk_index: int,
        parts: Sequence[Points],
        channels: dict[str, sqlite3.Row],
        held: dict[int, sqlite3.Row],
    ) -> None:
        """Check the times of this request among themselves, and against the channels that it does not replace."""
        replaced = {channels[part.channel]["id"] for part in parts if part.channel in channels}
        axes = [(part.channel, part.times) for part in parts]
        names = {row["id"]: name for name, row in channels.items()}
        axes += [(names[channel], row["times"]) for channel, row in held.items() if channel not in replaced]
        growing = self._options.relaxed(Rule.GROWN_CHUNK)
        for name, times in axes[1:]:
            other, expected = axes[0]
            if times != expected and not (growing and (times.startswith(expected) or expected.startswith(times))):
                self._demand(
                    Rule.TIME_BASE,
                    f"channels {other!r} and {name!r} have different timestamps in chunk {chunk_index}",
                )

    def _write(
        self,
        stream: sqlite3.Row,
        chunk_index: int,
        parts: Sequence[Points],
        channels: dict[str, sqlite3.Row],
        held: dict[int, sqlite3.Row],
    ) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        new: list[tuple[Any, ...]] = []
        counts: list[tuple[Any, ...]] = []
        with self._store.transaction():
            for part in parts:
                channel = channels.get(part.channel)
                if channel is None:
                    identity, total = self._add_channel(stream["id"], part), 0
                else:
                    identity, total = channel["id"], channel["points"]
                before = held.get(identity)
                if before is None:
                    new.append((stream["id"], chunk_index, identity, part.count, part.times, part.values))
                    total += part.count
                else:
                    same = before["times"] == part.times and before["data"] == part.values
                    total += part.count - before["points"]
                    self._store.execute(
                        "UPDATE chunks SET points = ?, times = ?, data = ?, doubled = doubled + ?,"
                        " changed = changed + ? WHERE id = ?",
                        *(part.count, part.times, part.values, int(same), int(not same), before["id"]),
                    )
                counts.append((total, part.units, identity))
                answers.append(
                    {
                        "data_id": stream["data_id"],
                        "channel_name": part.channel,
                        "chunk_index": chunk_index,
                        "total_points": total,
                    }
                )
            self._store.execute_many(
                "INSERT INTO chunks (stream, chunk_index, channel, points, times, data) VALUES (?, ?, ?, ?, ?, ?)", new
            )
            self._store.execute_many("UPDATE channels SET points = ?, units = ? WHERE id = ?", counts)
            self._store.execute("UPDATE streams SET updated = ? WHERE id = ?", self._store.now(), stream["id"])
        return answers

    def _add_channel(self, stream: int, part: Points) -> int:
        cursor = self._store.execute(
            "INSERT INTO channels (stream, name, units) VALUES (?, ?, ?)", stream, part.channel, part.units
        )
        if cursor.lastrowid is None:
            raise sqlite3.InternalError("an INSERT without a row id")
        return cursor.lastrowid

    def finalize(self, family: Family, data_id: str) -> dict[str, str]:
        """Close a complete stream and return its two ids.

        Raises:
            Refusal: It has holes, short chunks in the middle or late channels, or was finalized before.
        """
        stream = self._find(family, data_id)
        self._store.execute("UPDATE streams SET finalize_calls = finalize_calls + 1 WHERE id = ?", stream["id"])
        if stream["status"] == SUCCESS:
            self._demand(Rule.SECOND_FINALIZE, f"stream {data_id} is finalized already")
        elif stream["status"] == ERROR:
            raise Refusal(409, f"stream {data_id} was closed after a silence ({ERROR})")
        else:
            self._check_whole(stream)
            now = self._store.now()
            self._store.execute(
                "UPDATE streams SET status = ?, finalized = ?, updated = ? WHERE id = ?",
                SUCCESS,
                now,
                now,
                stream["id"],
            )
        return {"data_id": stream["data_id"], "processed_data_id": stream["processed_data_id"]}

    def _check_whole(self, stream: sqlite3.Row) -> None:
        rows = self._store.all(
            "SELECT channels.name AS name, chunk_index, chunks.points AS points FROM chunks"
            " JOIN channels ON channels.id = chunks.channel WHERE chunks.stream = ? ORDER BY channels.id, chunk_index",
            stream["id"],
        )
        for name, group in groupby(rows, key=lambda row: row["name"]):
            chunks = list(group)
            indices = [row["chunk_index"] for row in chunks]
            if indices[0] != 0:
                self._demand(Rule.LATE_CHANNEL, f"channel {name!r} begins with chunk {indices[0]}, not with 0")
            for index, following in zip(indices, indices[1:], strict=False):
                if following != index + 1:
                    self._demand(Rule.HOLE, f"chunk {index + 1} of channel {name!r} is missing")
            for row in chunks[:-1]:
                if row["points"] < stream["points_per_chunk"]:
                    self._demand(
                        Rule.SHORT_CHUNK,
                        f"chunk {row['chunk_index']} of channel {name!r} has {row['points']} points of"
                        f" {stream['points_per_chunk']} and is not its last",
                    )

    def read(self, family: Family, data_id: str) -> dict[str, Any]:
        """Return the stream's points as the API does: times in whole milliseconds, one object per channel."""
        stream = self._find(family, data_id)
        points = self.points(stream)
        known = [time for channel in points.values() for time in channel["times"] if time is not None]
        start, end = (min(known), max(known)) if known else (0.0, 0.0)
        properties = {
            name: {
                "relative_time_seconds": [
                    None if time is None else round(time - start, 6) for time in channel["times"]
                ],
                "unix_timestamp_ms": [_milliseconds(time) for time in channel["times"]],
                "values": channel["values"],
                "units": channel["units"],
            }
            for name, channel in points.items()
        }
        if self._options.derived:
            properties |= derived(properties)
        return {"properties": properties, "series_max_time": round(end - start, 6)}

    def points(self, stream: sqlite3.Row) -> dict[str, dict[str, Any]]:
        """Return each channel's stored points, in the order of the chunk indices, with nothing rounded or filled in."""
        channels = {
            row["id"]: {"name": row["name"], "units": row["units"], "chunks": []}
            | {"times": [], "values": [], "doubled": 0, "changed": 0}
            for row in self._store.all("SELECT * FROM channels WHERE stream = ? ORDER BY id", stream["id"])
        }
        for row in self._store.all("SELECT * FROM chunks WHERE stream = ? ORDER BY chunk_index", stream["id"]):
            channel = channels[row["channel"]]
            channel["chunks"].append((row["chunk_index"], row["points"]))
            channel["times"] += unpack(row["times"])
            channel["values"] += unpack(row["data"])
            channel["doubled"] += row["doubled"]
            channel["changed"] += row["changed"]
        return {channel.pop("name"): channel for channel in channels.values()}

    def row(self, data_id: str) -> sqlite3.Row | None:
        """Return a stream of either family, after closing those that were silent for too long."""
        self.close_silent()
        return self._store.first("SELECT * FROM streams WHERE data_id = ?", data_id)

    def close_silent(self) -> None:
        """Give every active stream that was silent for too long the status `stream_error`."""
        if self._options.silence_s is not None:
            self._store.execute(
                "UPDATE streams SET status = ? WHERE status = ? AND updated < ?",
                *(ERROR, ACTIVE, self._store.now() - self._options.silence_s),
            )

    def _find(self, family: Family, data_id: str) -> sqlite3.Row:
        stream = self.row(data_id)
        if stream is None:
            raise Refusal(404, f"there is no stream {data_id!r}")
        if stream["family"] != family.value:
            self._demand(Rule.FAMILY, f"stream {data_id} was initialized under {stream['family']}, not {family.value}")
        return stream

    def _open_stream(self, family: Family, data_id: str) -> sqlite3.Row:
        stream = self._find(family, data_id)
        if stream["status"] == SUCCESS:
            self._demand(Rule.AFTER_FINALIZE, f"stream {data_id} is finalized and takes no more data")
        elif stream["status"] == ERROR:
            raise Refusal(409, f"stream {data_id} was closed after a silence ({ERROR}) and takes no more data")
        return stream

    def _demand(self, rule: Rule, detail: str) -> None:
        if not self._options.relaxed(rule):
            raise refused(rule, detail)


def derived(properties: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return series like those that Atomscale's workflows add beside the streamed data. Their values mean nothing."""
    found: dict[str, dict[str, Any]] = {}
    for name, sent in properties.items():
        count = len(sent["values"])
        times = {key: sent[key] for key in ("relative_time_seconds", "unix_timestamp_ms")}
        for what in DERIVED_NUMBERS:
            found[f"{name}_{what}"] = times | {"values": [0.5] * count, "units": None}
        found[f"{name}_anomaly_class"] = times | {"values": ["spike, or [step]"] * count, "units": None}
    found["growth_quality_score"] = {"unix_timestamp_ms": [None], "values": [0.9], "units": None}
    return found


def _milliseconds(time: float | None) -> int | None:
    """Return whole milliseconds, or None if there is no such integer of 53 bits."""
    return round(time * 1000) if time is not None and abs(time) < 2**53 / 1000 else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
