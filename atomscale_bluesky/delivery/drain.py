"""The question whether everything is delivered, and its answer; one thread asks, the uploader's answers."""

from __future__ import annotations

import threading


class Drain:
    """Somebody waits to be told that nothing can move any more; `answer` is None until then."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: bool | None = None
        self.given_up = False

    def reply(self, answer: bool) -> None:
        """Tell who waits."""
        self.answer = answer
        self.answered.set()
