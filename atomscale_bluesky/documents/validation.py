"""Refuses a run whose metadata could not be used, before the plan begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import MetadataError
from ..settings import Settings
from .metadata import read_metadata
from .near_misses import near_misses


def validate_metadata(
    md: Mapping[str, Any], *, require_synth_source_id: bool = False, settings: Settings | None = None
) -> None:
    """Accept or refuse a run's metadata before the plan begins: `RE.md_validator = validate_metadata`.

    Refuses what would park the run: a UUID with a typing error, an unknown key in the dict `atomscale`, and an unusable
    value in that dict, of `synth_source_id`, or of a key that the setting `metadata_keys` names. Anything else at the
    top level may be another program's, and is accepted.

    Args:
        md: The metadata that will become the start document.
        require_synth_source_id: Also refuse a run that names no growth instrument:
            `RE.md_validator = functools.partial(validate_metadata, require_synth_source_id=True)`.
        settings: Those of the callback, for their `metadata_keys`. The default is environment and file.

    Raises:
        MetadataError: The run's streams could not be initialized with these metadata, or a growth instrument is
            required and missing.
        SettingsError: Environment or file have a setting that cannot be used.
    """
    keys = (Settings.load() if settings is None else settings).metadata_keys
    if read_metadata(md, keys=keys).links.synth_source_id is None and require_synth_source_id:
        key = keys.get("synth_source_id", "synth_source_id")
        near = [found for found, meant in near_misses(md, keys) if meant == "synth_source_id"]
        hint = f", and {near[0]!r} means nothing here" if near else ""
        raise MetadataError(
            f"metadata {key!r} is missing{hint}; name the growth instrument of this run, as in "
            "`RE(plan, synth_source_id=42)`: `atomscale-bluesky instruments` lists them with their numbers"
        )
