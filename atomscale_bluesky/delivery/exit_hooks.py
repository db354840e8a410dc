"""The process's life: what waits is completed before it ends, and a forked child leaves the parent's runs alone.

`atexit` runs at an interpreter's normal end, but not in a worker of multiprocessing, whose own finalizers do. Neither
runs when a process is killed; what was accepted is on disk by then. Nothing is registered before the first callback.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import weakref
from typing import Protocol


class Subscriber(Protocol):
    """What is asked of a callback when its process ends or forks."""

    def settle_open_runs(self) -> object:
        """Complete the runs whose stop document has not come."""
        ...

    def close(self, timeout_s: float) -> object:
        """End the threads."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget the parent's runs and threads."""
        ...

    def __hash__(self) -> int:
        """By identity."""
        ...


class Background(Protocol):
    """What is asked of whatever delivers, or sees to it, when the process ends."""

    def close_at_exit(self) -> None:
        """End, within the time that the settings allow."""
        ...

    def __hash__(self) -> int:
        """By identity."""
        ...


_callbacks: weakref.WeakSet[Subscriber] = weakref.WeakSet()
_uploaders: weakref.WeakSet[Background] = weakref.WeakSet()  # their threads hold them while they run
_looked_after_in: int | None = None  # the process whose end and forks are looked after


def look_after(callback: Subscriber, uploader: Background | None) -> None:
    """Have the callback closed when the process ends, and made inert in a forked child."""
    global _looked_after_in
    _callbacks.add(callback)
    if uploader is not None:
        _uploaders.add(uploader)
    if _looked_after_in == os.getpid():
        return
    if _looked_after_in is None:
        atexit.register(_close_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_all)
    _looked_after_in = os.getpid()
    if multiprocessing.parent_process() is not None:
        # A worker made by multiprocessing, bluesky-queueserver's among them, ends without running atexit.
        multiprocessing.util.Finalize(None, _close_all, exitpriority=10)


def _close_all() -> None:
    """Complete what can be completed, within the time that the settings allow, and tell a terminal if it takes long."""
    for callback in list(_callbacks):
        callback.settle_open_runs()
    for uploader in list(_uploaders):
        uploader.close_at_exit()
    for callback in list(_callbacks):
        callback.close(0.0)


def _forget_all() -> None:
    _uploaders.clear()
    for callback in list(_callbacks):
        callback.after_fork_in_child()
