"""Which option a command needs to find the spool of these settings."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..errors import AtomscaleBlueskyError
from .settings import FIELDS, Settings, checked_value
from .sources import from_environment, from_file, relative_spool


def spool_option(settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """Return ` --spool-dir DIR`, quoted for a shell, or nothing if a command finds the spool without it.

    It finds it if environment or settings file name the same folder. They do not if the folder was given as an
    argument, to the callback or to a command. Reads the settings file.

    Args:
        settings: Of the session or the command.
        environ: Used instead of `os.environ`.
    """
    folder = settings.named_folder
    return "" if folder == _found_without(os.environ if environ is None else environ) else (
        f" --spool-dir {shlex.quote(str(folder))}"
    )  # fmt: skip


def _found_without(environ: Mapping[str, str]) -> Path | None:
    """Return the folder that a command uses without the option; None if it depends on where the command is given."""
    try:
        given = from_file(None, environ) | from_environment(FIELDS, environ)
        if relative_spool(given) is not None:
            return None
        named = {"spool_dir": checked_value("spool_dir", *given["spool_dir"])} if "spool_dir" in given else {}
        return Settings(**named).named_folder
    except AtomscaleBlueskyError:  # then each command says what is wrong
        return None
