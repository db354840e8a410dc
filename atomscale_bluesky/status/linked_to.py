"""To what a run's metrology streams are linked in Atomscale, for operators and programs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..model.links import Links
from ..model.text import safe
from ..spool.orders import Edit
from .progress import counted


class LinkedTo(msgspec.Struct, frozen=True):
    """To what a run's metrology streams are linked, or will be: as its metadata name it, or the last edit."""

    synth_source_id: int | None = None
    physical_sample: str | None = None  # the sample's name, if the run names it so
    physical_sample_id: str | None = None  # as given, or as found by that name
    project_id: str | None = None
    tags: tuple[str, ...] = ()  # as given: names or ids
    tag_ids: tuple[str, ...] = ()  # as found by these; empty until they are looked up
    track_sample: bool = False  # True if the sample becomes the one that the project's growth monitoring follows
    # True if sample, project and tags were found in Atomscale, or created there; also if there are none of them
    resolved: bool = False

    def __str__(self) -> str:
        """Return it in words, for one line."""
        sample = safe(self.physical_sample or self.physical_sample_id or "")
        if self.physical_sample and self.physical_sample_id:
            sample += f" ({safe(self.physical_sample_id)})"
        told = [
            "no instrument" if self.synth_source_id is None else f"instrument {self.synth_source_id}",
            f"sample {sample}" if sample else "no sample",
            f"project {safe(self.project_id)}" if self.project_id else "no project",
            f"tags {safe(', '.join(self.tags))}" if self.tags else "no tags",
        ]
        if self.track_sample:
            told.append("its sample tracked")
        return ", ".join(told)


class OrderedEdit(msgspec.Struct, frozen=True):
    """What the operator ordered with `edit` for a run."""

    linked_to: LinkedTo
    points_per_chunk: int | None = None  # None: as the run has it
    stream_name: str | None = None  # None: as the run has it

    def __str__(self) -> str:
        """Return it in words, for one line."""
        told = [str(self.linked_to)]
        if self.points_per_chunk is not None:
            told.append(f"{counted(self.points_per_chunk, 'point')} per chunk")
        if self.stream_name is not None:
            told.append(f"named {safe(self.stream_name)}")
        return ", ".join(told)


def linked_to(links: Links, found: Links | None = None) -> LinkedTo:
    """Return to what a run is linked.

    Args:
        links: As the run's metadata or an edit name it.
        found: The same with ids in place of names; None if the names have not been looked up.
    """
    no_names = not (links.physical_sample or links.physical_sample_id or links.project_id or links.tags)
    return LinkedTo(
        synth_source_id=links.synth_source_id,
        physical_sample=links.physical_sample,
        physical_sample_id=links.physical_sample_id if found is None else found.physical_sample_id,
        project_id=links.project_id,
        tags=links.tags,
        tag_ids=() if found is None else found.tags,
        track_sample=links.track_sample,
        resolved=found is not None or no_names,
    )


def ordered_edit(edit: Edit) -> OrderedEdit:
    """Return what an edit that is not carried out yet gives the run."""
    return OrderedEdit(linked_to(edit.links), edit.points_per_chunk, edit.label)


def linked_to_of_entry(entry: Mapping[str, Any]) -> LinkedTo | None:
    """Return to what a finished run is linked, by its line in the history; None if an earlier version wrote it."""
    try:
        return msgspec.convert(entry["linked_to"], LinkedTo)
    except (KeyError, msgspec.ValidationError):
        return None
