"""Completes the runs of callbacks before their process ends, and keeps a forked child off its parent's runs.

`atexit` runs at an interpreter's normal end. It does not run in a worker of multiprocessing, where multiprocessing's
own finalizers do. Neither runs when a process is killed. What was accepted is on disk by then. Nothing is registered
before the first callback.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from .deliverer import Deliverer
from .terminal import print_line, wait_for_last_lines


class OpenCallback(Protocol):
    """The part of a callback that is used when its process ends or forks."""

    def settle_open_runs(self) -> object:
        """Complete the runs whose stop document has not come."""
        ...

    def close(self, timeout_s: float) -> object:
        """End the threads."""
        ...

    @property
    def what_stays(self) -> str:
        """Where readings that are not delivered are, and who delivers them."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget the parent's runs and threads."""
        ...

    def __hash__(self) -> int:
        """Return a hash by identity."""
        ...


_callbacks: weakref.WeakSet[OpenCallback] = weakref.WeakSet()
# With the text about what stays, because IPython lets go of the callback before this. Their threads hold the keys.
_deliverers: weakref.WeakKeyDictionary[Deliverer, str] = weakref.WeakKeyDictionary()
_hooked_in: int | None = None  # the process in which the hooks are registered


def register(callback: OpenCallback, deliverer: Deliverer | None) -> None:
    """Close the callback when the process ends, and make it inert in a forked child."""
    global _hooked_in
    _callbacks.add(callback)
    if deliverer is not None:
        _deliverers[deliverer] = callback.what_stays
    if _hooked_in == os.getpid():
        return
    if _hooked_in is None:
        atexit.register(_close_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_all)
    _hooked_in = os.getpid()
    if "multiprocessing.process" not in sys.modules:  # every worker of multiprocessing has it
        return
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        # A worker made by multiprocessing, bluesky-queueserver's among them, ends without running atexit.
        util.Finalize(None, _close_all, exitpriority=10)


def _close_all() -> None:
    """Complete what can be completed, within the time that the settings allow. Tell a terminal if it takes long.

    Ctrl-C ends the waiting. Then a line says where the rest is and who sends it, in the place of a traceback.
    """
    try:
        with _ctrl_c_raises():
            for callback in list(_callbacks):
                callback.settle_open_runs()
            for deliverer in list(_deliverers):
                deliverer.close_at_exit()
            for callback in list(_callbacks):
                callback.close(0.0)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            for text in sorted({callback.what_stays for callback in list(_callbacks)} | set(_deliverers.values())):
                print_line(f"atomscale: stopped; {text}")
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            wait_for_last_lines()


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt within the `with`, also if the session has a handler that does not.

    The session's handler is called first, and is restored. Where Ctrl-C is ignored it stays ignored: it is meant for
    another program then, as in a shell's background.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()  # no other thread may set a handler
    # By identity, since a session's handler may have no hash.
    if not ours or any(before is one for one in (None, signal.SIG_IGN, signal.default_int_handler)):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _forget_all() -> None:
    _deliverers.clear()
    for callback in list(_callbacks):
        callback.after_fork_in_child()
