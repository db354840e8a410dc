"""The commands that messages name, with the option by which they find the spool that is meant. Pure."""

from __future__ import annotations

import re

# The commands that take `--spool-dir`, between the quotes of a message, with what follows their name.
_COMMAND = re.compile(
    r"`(atomscale-bluesky (?:discard|doctor|edit|export|move|plot|probe|retry|send|settle|show|status|upload|verify)\b"
    r"[^`]*)`"
)


def with_option(text: str, option: str) -> str:
    """Return a message in which each command between backquotes ends with an option.

    Args:
        text: The message, which may come from a file that an earlier session has written.
        option: Such as ` --spool-dir /data/spool`. Empty if the commands need none.
    """
    return _COMMAND.sub(lambda found: f"`{found[1]}{option}`", text) if option else text
