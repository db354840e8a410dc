"""The question of `drain`, whether everything is delivered. One thread asks, the deliverer's thread answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

# How long one wait lasts. Ctrl-C that comes just before it, or on another thread, is acted on only after it.
WAIT_S = 0.2


class DrainQuestion:
    """The question whether everything is delivered. `answer` is None until `answered` is set.

    Args:
        with_others: Ask also about runs that other uploaders of the spool have.
    """

    def __init__(self, *, with_others: bool = True) -> None:
        self.with_others = with_others
        self.answered: threading.Event = threading.Event()
        self.answer: bool | None = None
        self.given_up: bool = False

    def wait(self, timeout_s: float) -> bool:
        """Return the answer, or False if none comes within `timeout_s`. The question is given up then."""
        end = time.monotonic() + timeout_s
        while not self.answered.wait(max(0.0, min(WAIT_S, end - time.monotonic()))):
            if time.monotonic() >= end:
                self.given_up = True
                break
        return self.answer is True

    def reply(self, answer: bool) -> None:
        """Set the answer."""
        self.answer = answer
        self.answered.set()


class OpenQuestions:
    """The questions that have no answer yet. Any thread may add one; the rest belongs to the deliverer's thread."""

    def __init__(self) -> None:
        self._drains: list[DrainQuestion] = []  # changed in place, so that none is lost that is added meanwhile

    def __bool__(self) -> bool:
        return bool(self._drains)

    def add(self, drain: DrainQuestion) -> None:
        """Add a question."""
        self._drains.append(drain)

    def still_open(self) -> list[DrainQuestion]:
        """Return the questions, and forget those that were given up."""
        for drain in list(self._drains):
            if drain.given_up:
                self._drains.remove(drain)
        return list(self._drains)

    def answer(self, drains: Iterable[DrainQuestion], answer: bool) -> None:
        """Answer some questions, which were open before the answer was found."""
        for drain in drains:
            self._drains.remove(drain)
            drain.reply(answer)
