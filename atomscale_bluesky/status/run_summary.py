"""What is reported about a finished run: its line in the history, and its line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..spool.journal_format import Header
from ..spool.ledger_state import LedgerState
from ..spool.own_files import recording_began
from .account import Account
from .run_status import RunStatus, StreamStatus
from .spool_status import bad_ending

_logger = logging.getLogger(__name__)

# How many channels an entry names, and so often it does so for its streams. A longer list would push other runs out of
# the bounded history.
MAX_CHANNELS = 200
# How many data keys an entry names whose readings were left out.
MAX_KEYS_LEFT_OUT = 50


def history_entry(
    status: RunStatus, account: Account, state: LedgerState, header: Header, *, endpoint: str, finished: float
) -> dict[str, Any]:
    """Return the run's line in `history.jsonl`; `finished` is Unix seconds."""
    stop = account.stop
    return {
        "run_uid": status.run_uid,
        "label": status.label,
        "started": status.started,
        "finished": finished,
        "data_ids": list(status.data_ids),
        "streams": _streams(status.streams),
        "delivered": status.points.delivered,
        "left_out": dict(status.points.left_out),
        **({"left_out_keys": keys} if (keys := _left_out_keys(status)) else {}),
        "lost": status.points.lost,
        "discarded": status.points.discarded,
        **({"given_up": True} if _was_given_up(state) else {}),
        "interrupted": bool(stop and stop.interrupted),
        "verified": state.verified is not None,
        **({"verified_at": state.verified} if state.verified is not None else {}),
        "since": account.first_times,
        "until": account.newest_times,
        "exit_status": stop.exit_status if stop else "",
        **({"not_given": dict(status.not_given)} if status.not_given else {}),
        "reason": stop.reason if stop else "",
        "endpoint": endpoint,
        "scan_id": header.scan_id,
        "channels": _channels(status, account),
        "linked_to": msgspec.to_builtins(status.linked_to),
    }


def was_discarded(entry: Mapping[str, Any]) -> bool:
    """Return True if the operator has discarded a run of a line of the history, so its streams are not all finalized.

    A line of an earlier version only says how many points were discarded.
    """
    return bool(entry.get("given_up") or entry.get("discarded"))


def points_of_unnamed_channels(entry: Mapping[str, Any]) -> int:
    """Return how many delivered points of a line of the history are of channels that it has no room to name."""
    named: Mapping[str, Any] = entry.get("channels") or {}
    return max(0, int(entry.get("delivered") or 0) - sum(int(channel["points"]) for channel in named.values()))


def _was_given_up(state: LedgerState) -> bool:
    done = bool(state.streams) and all(stream.is_done for stream in state.streams.values())
    return bool(state.discarded) and not done


def verified_at(entry: Mapping[str, Any]) -> float | None:
    """Return when the run of a line of the history was read back and was equal, in Unix seconds, or None if it was not.

    A line of an earlier version has no time for it. Such a run left the spool right after that.
    """
    return float(entry.get("verified_at") or entry.get("finished") or 0.0) if entry.get("verified") else None


def left_out_by_reason(entry: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, int]]]:
    """Return what a line of the history says was left out, by reason: how many readings, and of which data keys.

    Keys are missing if there were too many for the line, or if an earlier version has written it.
    """
    keys: Mapping[str, Any] = entry.get("left_out_keys") or {}
    return {reason: (int(n), dict(keys.get(reason) or {})) for reason, n in (entry.get("left_out") or {}).items()}


def _left_out_keys(status: RunStatus) -> dict[str, dict[str, int]]:
    """Return by reason how many readings of the first data keys or channels were left out."""
    found: dict[str, dict[str, int]] = {}
    left = MAX_KEYS_LEFT_OUT
    for name, counts in status.channels.items():
        for reason, count in counts.left_out.items():
            if left <= 0:
                return found
            found.setdefault(str(reason), {})[name] = count
            left -= 1
    return found


def _streams(streams: Iterable[StreamStatus]) -> list[dict[str, Any]]:
    """Return the run's streams. A stream whose channels would be too many for the entry is named without them."""
    found: list[dict[str, Any]] = []
    left = MAX_CHANNELS
    for stream in streams:
        named = len(stream.channels) <= left
        left -= len(stream.channels) if named else 0
        found.append(msgspec.to_builtins(stream if named else msgspec.structs.replace(stream, channels=())))
    return found


def _channels(status: RunStatus, account: Account) -> dict[str, dict[str, Any]]:
    """Return unit and number of delivered points of the first channels, by name."""
    units = {channel.name: channel.unit for layout in account.layouts.values() for channel in layout.channels}
    delivered = {name: counts.delivered for name, counts in status.channels.items() if counts.delivered}
    return {name: {"unit": units.get(name), "points": n} for name, n in [*delivered.items()][:MAX_CHANNELS]}


def log_summary(status: RunStatus, state: LedgerState, option: str = "") -> None:
    """Log one line about the run: a warning if anything is left to do, or lost.

    The line about a parked run is short, because the problem was logged when it was parked.

    Args:
        status: The run's.
        state: Of its ledger.
        option: By which a command finds the run's spool, such as ` --spool-dir /data/spool`.
    """
    points = status.points
    if status.state == "parked":
        _logger.warning(
            "run %s is parked: %d point%s delivered, %d not%s; `atomscale-bluesky status%s` says what to do",
            status.run_uid, points.delivered, "" if points.delivered == 1 else "s",
            points.waiting + points.refused, f", {points.lost} lost" if points.lost else "", option,
        )  # fmt: skip
        return
    left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(points.left_out.items())) or "none"
    ended = f", its plan ended with {word}" if (word := bad_ending(status.exit_status)) else ""
    ended = ", interrupted" if status.interrupted else ended
    since = recording_began(status.folder)  # a recorded run's points are old before they are taken
    took = [
        s.confirmed_at - max(s.last_tried.last_time, since)
        for s in state.streams.values()
        if s.confirmed_at and s.last_tried and not points.waiting
    ]
    _logger.log(
        logging.WARNING if points.waiting or points.refused or points.lost else logging.INFO,
        "run %s %s%s: %d point%s delivered%s; waiting: %d; refused: %d; left out: %s; discarded: %d; lost: %d%s",
        status.run_uid, status.state, ended, points.delivered, "" if points.delivered == 1 else "s",
        f" to {', '.join(status.data_ids)}" if status.data_ids else "",
        points.waiting, points.refused, left_out, points.discarded, points.lost,
        f"; the last point took {max(0.0, *took):.1f} s" if took else "",
    )  # fmt: skip
