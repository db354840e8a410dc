"""What recorders and callbacks of one process know of each other, if they have the same spool and the same account.

A run that two of them get is a mistake: a start-up file was executed twice, or a closed callback is still subscribed.
Another endpoint, key or spool is intent (decision 0086). The shared state is stored in the interpreter (on `sys`) and
not in this module, because a module can be loaded again while the objects of the earlier one go on.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from ..settings import Settings

# How many ended runs are remembered, for a callback that gets its documents later than another.
_REMEMBERED_RUNS = 1000
_ATTRIBUTE = "_atomscale_bluesky_peers"


class Subscriber(Protocol):
    """What is asked of a callback."""

    def step_back(self) -> None:
        """Leave runs to a younger callback that gets them too."""
        ...


class _Shared:
    """What the peers have in common."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may come in
        self.runs: OrderedDict[str, weakref.ref[Any] | None] = OrderedDict()  # by uid: its recorder, None if it ended
        self.subscribers: list[weakref.ref[Any]] = []


class Peers:
    """The peers of one recorder.

    Any thread may call it. Its lock is held for memory operations only.

    Args:
        spool: The spool's folder.
        settings: Name the account.
        recorder: Whose peers they are.
    """

    def __init__(self, spool: Path, settings: Settings, recorder: object) -> None:
        # The key's hash, which differs from process to process, and not the key itself: it is not to be found here.
        self._key = key = (os.getpid(), os.path.realpath(spool), settings.endpoint, hash(settings.api_key))
        everyone = sys.__dict__.setdefault(_ATTRIBUTE, weakref.WeakValueDictionary())
        self._shared: _Shared = everyone.setdefault(key, _Shared())
        self._recorder = weakref.ref(recorder)

    def claim(self, uid: str, *, again: bool = False) -> bool:
        """Note that the recorder records a run. Return False if another one does, or did until it ended.

        Args:
            uid: The run's uid.
            again: Claim it also if it has ended.
        """
        with self._shared.lock:
            owner = self._shared.runs.get(uid, self._recorder)
            if owner is None and not again:
                return False
            if owner is not None and owner() not in {None, self._recorder()}:
                return False
            self._shared.runs[uid] = self._recorder
            return True

    def another_has(self, uid: str) -> bool:
        """Return True if another recorder, with the same account, records a run now."""
        with self._shared.lock:
            owner = self._shared.runs.get(uid)
            return owner is not None and owner() not in {None, self._recorder()}

    def has_another_account(self, uid: str) -> bool:
        """Return True if a recorder of this process with the same spool and another account records a run too."""
        everyone = list(getattr(sys, _ATTRIBUTE, {}).items())
        return any(
            uid in shared.runs for key, shared in everyone if key[:2] == self._key[:2] and shared is not self._shared
        )

    def release(self, uid: str, *, ended: bool) -> None:
        """Note that the recorder is done with a run, by its stop document or otherwise."""
        with self._shared.lock:
            if self._shared.runs.get(uid) is not self._recorder:
                return
            if not ended:
                del self._shared.runs[uid]
                return
            self._shared.runs[uid] = None
            over = [uid for uid, owner in self._shared.runs.items() if owner is None]
            for uid in over[: max(0, len(over) - _REMEMBERED_RUNS)]:
                del self._shared.runs[uid]

    @property
    def has_several_subscribers(self) -> bool:
        """Return True if several callbacks may get the same runs."""
        with self._shared.lock:
            return sum(ref() is not None for ref in self._shared.subscribers) > 1

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Note that there is a further subscriber. The older ones step back."""
        with self._shared.lock:
            older = [one for one in (ref() for ref in self._shared.subscribers) if one is not None]
            self._shared.subscribers = [*map(weakref.ref, older), weakref.ref(subscriber)]
        for one in older:
            one.step_back()
