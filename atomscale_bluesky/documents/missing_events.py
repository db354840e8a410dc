"""Counts, when a stop document comes, how many of the events that it announces never came.

Journal, `status` and history call these events `not_given`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..model.loss import Loss
from .open_run import OpenRun
from .selection import Selection

# Events that came, and of which no journal has a row.
_WITHOUT_A_ROW = frozenset({Loss.NO_ROOM, Loss.NOT_WRITTEN, Loss.DOCUMENT_TOO_LONG, Loss.MALFORMED, Loss.NO_DESCRIPTOR})


def count_missing_events(run: OpenRun, counts: Mapping[Any, Any], selection: Selection) -> dict[str, int]:
    """Return how many events never came, by event stream, as far as that is known.

    Not found: a missing event if another one was recorded twice, because only the difference is known; and any if
    events were left out, or if values are in external files, whose frames `num_events` counts as events.

    Args:
        run: The run, with all its events.
        counts: The stop document's `num_events`: how many events each event stream had.
        selection: Which event streams are taken.
    """
    if run.has_left_out_for(_WITHOUT_A_ROW):
        return {}
    found: dict[str, int] = {}
    for name, count in counts.items():
        if not isinstance(name, str) or type(count) is not int or not selection.takes_event_stream(name):
            continue
        event_stream = run.event_streams.get(name)
        kept = 0 if run.earlier_events is None else run.earlier_events.events_of(name)
        if kept is None or (event_stream is not None and event_stream.has_external_data):
            continue
        missing = count - kept - (event_stream.events if event_stream is not None else 0)
        if missing > 0:
            found[name] = missing
    return found
