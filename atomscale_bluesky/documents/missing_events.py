"""Counts, when a stop document comes, how many of the events that it announces never came.

Journal, `status` and history call these events `not_given`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..model.loss import Loss
from .descriptor import event_stream_of, mapping_of
from .open_run import OpenRun
from .selection import Selection

# Events that came, and of which no journal has a row.
_WITHOUT_A_ROW = frozenset({Loss.NO_ROOM, Loss.NOT_WRITTEN, Loss.DOCUMENT_TOO_LONG, Loss.MALFORMED, Loss.NO_DESCRIPTOR})


# So many event streams are named, and the others are counted together, because all of them stand in one line.
MAX_NAMED = 1000
OTHER_EVENT_STREAMS = "(other event streams)"
# No event stream has so many events. Larger counts mean nothing, and not every reader of JSON can hold them.
MAX_EVENTS = 2**53


def counts_in(stop: Mapping[str, Any]) -> dict[str, int]:
    """Return how many events each event stream had, as the stop document says. What is no count is ignored.

    The names are those that the event streams have here, which a file can hold.
    """
    found: Counter[str] = Counter()
    try:
        for name, count in mapping_of(stop.get("num_events")).items():
            if isinstance(name, str) and type(count) is int and 0 < count < MAX_EVENTS:
                found[event_stream_of({"name": name})] += count
    except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it holds
        return {}
    return dict(found)


def count_missing_events(run: OpenRun, counts: Mapping[str, int], selection: Selection) -> dict[str, int]:
    """Return how many events never came, by event stream, as far as that is known.

    Not found: a missing event if another one was recorded twice, because only the difference is known; and any if
    events were left out, or if values are in external files, whose frames `num_events` counts as events.

    Args:
        run: The run, with all its events.
        counts: How many events each event stream had, as `counts_in` returns it.
        selection: Which event streams are taken.
    """
    if run.has_malformed_events or run.has_left_out_for(_WITHOUT_A_ROW):
        return {}
    found: dict[str, int] = {}
    for name, count in counts.items():
        if not selection.takes_event_stream(name):
            continue
        event_stream = run.event_streams.get(name)
        kept = 0
        if run.earlier_events is not None:  # after a second start document, they are also those of this process
            kept = run.earlier_events.events_of(name, before_part=run.first_part)
        if kept is None or (event_stream is not None and event_stream.has_external_data):
            continue
        missing = count - kept - (event_stream.events if event_stream is not None else 0)
        if missing > 0:
            shown = name if len(found) < MAX_NAMED else OTHER_EVENT_STREAMS
            found[shown] = found.get(shown, 0) + missing
    return found
