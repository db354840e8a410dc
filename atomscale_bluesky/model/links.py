"""What a metrology stream is linked to in Atomscale. Pure."""

from __future__ import annotations

import msgspec


class Links(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a metrology stream is linked to in Atomscale."""

    synth_source_id: int | None = None
    physical_sample_id: str | None = None
    project_id: str | None = None
    physical_sample: str | None = None  # a name, to be found or created in Atomscale
    tags: tuple[str, ...] = ()  # names or ids; a stream with any tags also gets a tag that says how its run ended
    track_sample: bool = False  # make this sample the one that the project's growth monitoring follows
