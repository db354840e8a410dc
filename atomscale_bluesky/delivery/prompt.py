"""Keeps Python's prompt usable when a thread prints a line while the user types."""

from __future__ import annotations

import sys
import threading


def as_line(text: str) -> str:
    """Return a text as a line for the terminal; the prompt, with what was typed, stands behind it again."""
    prompt = _prompt_line()
    return f"{text}\n" if prompt is None else f"\n{text}\n{prompt}"


def _prompt_line() -> str | None:
    """Return what stands in the terminal's last line while Python waits for a command there, else None."""
    main = threading.main_thread().ident
    if not hasattr(sys, "ps1") or main is None or main in sys._current_frames():  # noqa: SLF001 - it is documented
        return None  # not interactive, or a command runs
    readline = sys.modules.get("readline")
    return f"{sys.ps1}{readline.get_line_buffer() if readline else ''}"
