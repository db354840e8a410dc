"""Small files beside the runs of a spool. Each is written whole or not at all, and only its owner may read it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from .own_files import open_own, refuse_link
from .sync import sync_file, sync_folder


def replace_file(path: Path, text: bytes, *, durable: bool = False) -> None:
    """Replace the content of `path` with `text`. A reader sees all of it or all of the previous content.

    Args:
        path: The file. It may be missing.
        text: All of its new content.
        durable: The new content survives a power cut once this returns. Otherwise the file may be empty after one.

    Raises:
        SpoolError: `path` is a link. The link stays.
        OSError: The folder cannot be written.
    """
    refuse_link(path)
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(text)
            if durable:
                file.flush()
                sync_file(file.fileno())
        fresh.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
