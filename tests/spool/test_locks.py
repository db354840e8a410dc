"""What wakes a thread, also from within a signal handler: once for all that came before, or for good."""

from __future__ import annotations

import threading
import time

import pytest

from atomscale_bluesky.spool.locks import Bell, SignalEvent


def seconds(wait: object) -> float:
    begin = time.monotonic()
    assert callable(wait)
    wait()
    return time.monotonic() - begin


def test_a_bell_wakes_a_thread_once_however_often_it_was_rung() -> None:
    bell = Bell()
    for _ in range(3):
        bell.ring()

    assert seconds(lambda: bell.wait(30)) < 10
    assert seconds(lambda: bell.wait(0.02)) >= 0.015


def test_a_bell_wakes_a_thread_that_waits() -> None:
    bell = Bell()
    threading.Timer(0.02, bell.ring).start()

    assert seconds(lambda: bell.wait(30)) < 10


def test_an_event_for_signals_is_set_for_good_and_for_all_who_wait() -> None:
    event, woken = SignalEvent(), []
    assert (event.is_set(), event.wait(0.0), event.wait(-1.0)) == (False, False, False)
    assert seconds(lambda: event.wait(0.02)) >= 0.015
    threads = [threading.Thread(target=lambda: woken.append(event.wait(30))) for _ in range(3)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join(10)

    assert woken == [True] * 3
    event.set()
    assert (event.is_set(), event.wait(), event.wait(0.0)) == (True, True, True)
    with pytest.raises(NotImplementedError, match="set once"):
        event.clear()
