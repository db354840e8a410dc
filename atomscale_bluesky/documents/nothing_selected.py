"""Says if the settings of a site leave out all that came of a run, which is mostly a mistake in a pattern."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.labels import join_names
from ..model.loss import Loss
from ..model.text import safe
from .open_run import OpenRun
from .selection import Selection

# About how many characters of patterns, and of names, are quoted.
_MAX_NAMES = 200


def nothing_selected(run: OpenRun, selection: Selection) -> str | None:
    """Return which patterns leave out all readings of a run, and the names that there are; None if any was wanted.

    Readings that are left out for another reason, such as text, were wanted. Runs with earlier journals are not judged,
    since these may hold readings. Nor are runs of which the default patterns take nothing.
    """
    if run.earlier_events is not None or run.header.part:
        return None
    streams = [one for one in run.event_streams.values() if one is not None and one.chooser.bases]
    keys = [key for stream in streams for key in stream.left_out]
    if any(base.keys for stream in streams for base in stream.chooser.bases) or any(
        reason != Loss.KEY_NOT_SELECTED for stream in streams for reason in stream.left_out.values()
    ):
        return None
    default = Selection()
    if keys and tuple(selection.channels) != tuple(default.channels):
        return _in_words("channels", selection.channels, "data keys", keys)
    names = [name for name, stream in run.event_streams.items() if stream is None]
    if (
        run.has_left_out_for({Loss.EVENT_STREAM_NOT_SELECTED})
        and tuple(selection.event_streams) != tuple(default.event_streams)
    ):  # fmt: skip
        return _in_words("event_streams", selection.event_streams, "event streams", names)
    return None


def _in_words(setting: str, patterns: Sequence[str], what: str, names: Sequence[str]) -> str:
    quoted = join_names([repr(pattern) for pattern in patterns], _MAX_NAMES) if patterns else "empty"
    return f"the setting `{setting}` is {quoted}, and the {what} are {safe(join_names(names, _MAX_NAMES))}"
