"""Small files beside the runs of a spool, each written whole or not at all, for its owner alone."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from .own_files import open_own, refuse_link


def keep(path: Path, text: bytes) -> None:
    """Put `text` in the place of what was there; whoever reads sees all of it or what was before.

    Raises:
        SpoolError: There is a link, which stays.
        OSError: The folder cannot be written.
    """
    refuse_link(path)
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(text)
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
