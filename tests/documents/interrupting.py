"""A process that is interrupted at every place of the callback where a signal's handler may run, one run for each.

    python interrupting.py raise|older|close|feed|look <every so many places> <settings as JSON> [file of the package]…

It says in JSON which values it gave: those whose call returned, and those whose call was interrupted. Python runs a
handler behind a call, at the beginning of a function, and where a loop goes back; an exception that the trace function
raises there is what Ctrl-C or a time limit raises. With `older` a younger callback of the same account is there too.
With files of the package, only places in these count.
"""

from __future__ import annotations

import dis
import itertools
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import atomscale_bluesky
from atomscale_bluesky import AtomscaleCallback, Settings

PACKAGE = str(Path(atomscale_bluesky.__file__).parent)
Document = tuple[str, dict[str, Any]]


class Interrupt(BaseException):
    """What a signal's handler raises."""


class Here:
    """Does something at the nth such place of what is called; tells whether there was one."""

    def __init__(self, nth: int, act: Callable[[], None], files: tuple[str, ...] = ("",)) -> None:
        self.files = tuple(f"{PACKAGE}/{file}" for file in files)
        self.left, self.act, self.reached = nth, act, False
        self.before: dict[FrameType, str] = {}
        # One object that stays. When each use made a bound method of its own, Python 3.11 was seen to call another one
        # with a trace function's arguments, in the place of one that nobody referred to any more.
        self.tracing = self.trace

    def __call__(self, call: Callable[[], None]) -> None:
        sys.settrace(self.tracing)
        try:
            call()
        finally:
            sys.settrace(None)
            self.before.clear()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = self.before.get(frame, "")
            self.before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if "CALL" in last or last in {"RESUME", "JUMP_BACKWARD"}:
                self.left -= 1
                if self.left < 0 and not self.reached:
                    self.reached = True
                    sys.settrace(None)
                    self.act()
        return self.tracing


def run_of(values: Iterator[int], age_s: float = 0.0) -> list[Document]:
    """A run of two events of a plan, two of a monitor whose signals part, and a page."""
    started, run = time.time() - age_s, str(uuid.uuid4())
    documents: list[Document] = [("start", {"uid": run, "time": started})]
    for name, keys in (("primary", "a"), ("m_monitor", "ab")):
        keys_described = {key: {"dtype": "number", "shape": [], "source": "sim"} for key in keys}
        described = {"uid": f"{run} {name}", "run_start": run, "name": name, "data_keys": keys_described}
        documents.append(("descriptor", described))

    def event(name: str, **stamps: float) -> Document:
        data = {key: float(next(values)) for key in stamps}
        descriptor = f"{run} {name}"
        uid = str(uuid.uuid4())[len(documents) % 3 :]  # of several lengths: a row's record has another width then
        return "event", {
            "uid": uid, "descriptor": descriptor, "time": started, "data": data, "timestamps": stamps,
        }  # fmt: skip

    documents.append(event("primary", a=started))
    documents.append(event("m_monitor", a=started, b=started))
    documents.append(event("primary", a=started))
    documents.append(event("m_monitor", a=started + 1, b=started))
    page = {
        "descriptor": f"{run} primary", "uid": [str(uuid.uuid4()) for _ in range(3)], "time": [started] * 3,
        "data": {"a": [float(next(values)) for _ in range(3)]}, "timestamps": {"a": [started] * 3},
    }  # fmt: skip
    documents.append(("event_page", page))
    documents.append(event("primary", a=started))
    documents.append(("stop", {"run_start": run, "time": started, "exit_status": "success"}))
    return documents


def values_of(document: Document) -> list[float]:
    name, doc = document
    if name == "event":
        return list(doc["data"].values())
    return [value for column in doc["data"].values() for value in column] if name == "event_page" else []


def interrupt_everywhere(what: str, every: int, settings: dict[str, Any], *files: str) -> dict[str, Any]:
    values = itertools.count()
    returned: list[float] = []
    interrupted: list[float] = []
    places: list[int] = []

    def make() -> AtomscaleCallback:
        return AtomscaleCallback(settings=Settings.load(environ={}, **settings))

    callback = make()
    younger = make() if what == "older" else None

    def give(document: Document) -> None:
        callback(*document)
        returned.extend(values_of(document))

    def act() -> None:
        if what in {"raise", "older"}:
            raise Interrupt
        if what == "close":
            callback.close(0)
        if what == "look":
            callback.status()
            callback.streams("nobody's")
        for document in other if what == "feed" else []:
            give(document)

    for which in range(len(run_of(itertools.count()))):
        for nth in itertools.count(which % every, every):
            # Of one that began long ago it is looked up whether it was taken before.
            documents = run_of(values, 60.0 if what == "look" else 0.0)
            other = run_of(values) if what == "feed" else []
            here = Here(nth, act, files or ("",))
            for number, document in enumerate(documents):
                if number != which:
                    give(document)
                    continue
                try:
                    here(lambda document=document: give(document))
                except Interrupt:
                    again = nth // every % 2 or document[0] in {
                        "start",
                        "descriptor",
                    }  # a run that never began has no readings
                    if again:
                        give(document)
                    else:
                        interrupted.extend(values_of(document))
            if here.reached and what == "close":
                callback.close(0)
                callback = make()
            if not here.reached:
                for document in other:
                    give(document)
                places.append(nth)
                break
    for one in filter(None, [callback, younger]):
        one.close(0)
    return {"returned": returned, "interrupted": interrupted, "places": places}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    what, every, settings, *files = sys.argv[1:]
    sys.stdout.write(json.dumps(interrupt_everywhere(what, int(every), json.loads(settings), *files)))
