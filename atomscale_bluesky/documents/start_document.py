"""Makes a run's header from its start document and the settings: all that delivery must know from the beginning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sized
from typing import Any

from ..errors import ChannelError
from ..model.identifiers import is_uuid
from ..model.links import Links
from ..model.metadata_keys import NAMESPACE
from ..model.text import encodable
from ..settings import Settings
from ..spool.journal_format import FORMAT, Header
from .conversion import DATES
from .metadata import RunMetadata, read_what_is_usable, run_label
from .near_misses import near_misses

# Longer than any uid, label or path in use. A start document's uid is written with every line about it.
MAX_UID = 255


def uid_of(start: Mapping[str, Any]) -> str:
    """Return a start document's uid.

    Raises:
        ChannelError: The uid is empty, is no text, is too long, or cannot be written to a file.
    """
    uid = start["uid"]
    if not isinstance(uid, str) or not uid:
        raise ChannelError(f"a start document's uid is a {type(uid).__name__}, expected text; its run is left out")
    if len(uid) > MAX_UID or not uid.isprintable():
        raise ChannelError(
            f"a start document's uid has {len(uid)} characters and begins with {uid[:20]!r}, expected up to {MAX_UID} "
            f"printable ones; its run is left out"
        )
    return encodable(uid)  # plain text, if it is of a type such as numpy's


def header_of(
    start: Mapping[str, Any],
    uid: str,
    settings: Settings,
    note: Callable[[str, str], object] = lambda about, text: None,
    *,
    physical_sample: str | None = None,
) -> Header:
    """Return the first line of a run's journal, whatever its start document holds.

    Values that are meant for us and cannot be used park the run. The header holds all the other values.

    Args:
        start: The document.
        uid: The run's uid.
        settings: What the metadata do not say.
        note: Called with a subject and a text for each value that is taken for another program's.
        physical_sample: Name or id of the physical sample, if the metadata name none.
    """
    is_id = physical_sample is not None and is_uuid(physical_sample)
    defaults = Links(
        synth_source_id=settings.synth_source_id,
        physical_sample_id=physical_sample if is_id else None,
        project_id=settings.project_id,
        physical_sample=None if is_id else physical_sample,
        tags=settings.tags,
    )
    try:
        metadata = read_what_is_usable(start, defaults, settings.metadata_keys)
        near = list(near_misses(start, settings.metadata_keys))
    except Exception as error:  # noqa: BLE001 - a foreign object may do anything when it is asked for its keys
        why = f"the metadata cannot be read: {type(error).__name__}"
        metadata, near = RunMetadata(Links(), None, None, unusable=((NAMESPACE, why),)), []
    for key, why in metadata.not_ours:
        note(
            f"other's {key}",
            f"run {uid} is streamed without its {key!r}, taken for another program's: {why}; what is for Atomscale "
            f"can be in the dict `atomscale`, and the setting `metadata_keys` says which keys are read",
        )
    for key, meant in near:
        note(
            f"near miss {key}",
            f"run {uid} has the metadata key {key!r}, which means nothing to Atomscale; was {meant!r} meant?",
        )
    return Header(
        format=FORMAT,
        run_uid=uid,
        started=time_of(start),
        label=metadata.label or run_label(start, settings.label),
        points_per_chunk=metadata.points_per_chunk or settings.points_per_chunk,
        primary=settings.primary,
        endpoint=settings.endpoint,
        non_finite=settings.non_finite,
        layout=settings.layout,
        links=metadata.links,
        problem=metadata.problem,
        unusable=tuple(key for key, _ in metadata.unusable),
        keep=settings.keep,
        clock=settings.clock,
        max_latency_s=settings.max_latency_s,
        scan_id=_scan_id_of(start),
    )


def _scan_id_of(start: Mapping[str, Any]) -> int | None:
    """Return a start document's scan id, or None if it has no usable one."""
    scan_id = start.get("scan_id")
    if not isinstance(scan_id, int) or isinstance(scan_id, bool):
        return None
    return int(scan_id) if 0 <= scan_id < 2**53 else None


def time_of(doc: Mapping[str, Any]) -> float:
    """Return a document's time, or the present time if it has no usable one."""
    try:
        at = math.nan if isinstance(doc.get("time"), DATES) else float(doc.get("time"))  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - no number, none at all, or a foreign object
        return time.time()
    return at if math.isfinite(at) else time.time()


def text_of(value: object) -> str:
    """Return text of bounded length that a file can hold."""
    try:
        if not isinstance(value, str) and isinstance(value, Sized) and len(value) > MAX_UID:
            return type(value).__name__  # converting all of it takes time, while the plan waits
        return str("" if value is None else value)[:500].encode(errors="replace").decode()
    except Exception:  # noqa: BLE001 - a foreign object's text may do anything
        return type(value).__name__
