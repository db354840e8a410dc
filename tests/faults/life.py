"""One process that uses `AtomscaleCallback` at random, and writes down which calls returned.

A life belongs to a seed. It feeds the documents of some runs and does whatever else users do meanwhile: signals arrive
in the middle of a call, other threads feed other runs, the process forks, the clock steps, the callback is closed, used
again and replaced. In the end the process is killed, exits, or returns.

What it reports is one line per call in a file of its own, written with one `write`: `begun N` before the call with
document N, `taken N` after the call has returned. So the reports survive a kill, and tell no more than a user can know.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from atomscale_bluesky import AtomscaleCallback, Settings

from .child import hurry
from .story import Doc, Story

HURRIED = 20.0
# A life that takes longer hangs: it writes down where, and ends.
LIFE_S = 90.0
CHILD_S = 30.0  # the same of a child that it forks
# What a life does, and how often.
ACTIONS = {
    "feed": 60,
    "repeat": 4,
    "interrupt": 14,
    "look": 8,
    "close in a signal handler": 1,
    "feed from threads": 3,
    "fork": 2,
    "step the clock": 3,
    "feed nonsense": 4,
    "drain": 1,
    "wait": 3,
    "close": 2,
    "replace": 2,
}

_logger = logging.getLogger("tests.life")  # what it does, for whoever looks into a seed that failed


class Interrupted(BaseException):
    """What a signal raises in the middle of a call, as Ctrl-C or a time limit does."""


@dataclass(frozen=True)
class Plan:
    """What a process is given: its seed, and where the runs stand."""

    seed: str
    story: Story
    settings: dict[str, Any]
    reports: Path
    problems: Path
    over: frozenset[int]  # runs that were fed to their end in an earlier life
    ended: frozenset[int]  # those, and runs whose stop document was fed in a call that did not return


@dataclass
class Run:
    """A run as this life feeds it; `at` counts the documents that were fed."""

    documents: list[tuple[int, Doc]]
    at: int = 0
    busy: bool = False  # a thread feeds it
    begun: bool = False  # this process has it open, or had
    ended: bool = False  # its stop document was fed: what is fed now may be known to be a replay, and be left out

    @property
    def over(self) -> bool:
        """Whether all of it was fed."""
        return self.at >= len(self.documents)


@dataclass
class Life:
    """The process's whole use of the front door."""

    plan: Plan
    runs: list[Run] = field(default_factory=list)
    callback: AtomscaleCallback = field(init=False)

    def __post_init__(self) -> None:
        """Open the reports; nothing else happens yet."""
        self._chance = random.Random(self.plan.seed)
        self._told = os.open(self.plan.reports, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._inside = False
        self._on_alarm: Callable[[], None] = lambda: None
        self._clock_offset_s = 0.0
        self._call_s = 100e-6

    def play(self) -> None:
        """Use the front door until the life ends, in one of the ways in which processes end."""
        by_run: dict[int, list[tuple[int, Doc]]] = {}
        for number, doc in enumerate(self.plan.story.documents()):
            by_run.setdefault(doc.run, []).append((number, doc))
        for run, documents in by_run.items():
            if run not in self.plan.over or self._chance.random() < 0.3:  # some are replayed although all was taken
                self.runs.append(Run(documents, ended=run in self.plan.ended))
        self._chance.shuffle(self.runs)
        real_time = time.time
        time.time = lambda: real_time() + self._clock_offset_s
        signal.signal(signal.SIGALRM, self._alarm)
        self._make_callback()
        actions, weights = list(ACTIONS), list(ACTIONS.values())
        for _ in range(self._chance.randrange(1, 160)):
            self._do(self._chance.choices(actions, weights)[0])
        self._end(self._chance.choice(["killed", "killed", "closed", "returned", "exited at once"]))

    # ---- what it does ----------------------------------------------------------------------------------------------

    def _do(self, action: str) -> None:
        _logger.info("does: %s", action)
        match action:
            case "feed":
                self._feed_one()
            case "repeat":
                self._repeat()
            case "interrupt":
                self._with_alarm(self._raise)
            case "look":
                self._with_alarm(self._look)
            case "close in a signal handler":
                self._with_alarm(self._close_quickly)
            case "feed from threads":
                self._feed_from_threads()
            case "fork":
                self._fork()
            case "step the clock":
                self._clock_offset_s = self._chance.uniform(-1800.0, 1800.0)
            case "feed nonsense":
                self._feed_nonsense()
            case "drain":
                self.callback.drain(0.05)
            case "wait":
                threading.Event().wait(self._chance.uniform(0.0, 0.02))
            case "close":
                self._close_quickly()
            case "replace":
                self._replace()

    def _make_callback(self) -> None:
        self.callback = AtomscaleCallback(settings=Settings.load(environ={}, **self.plan.settings))

    def _a_run(self) -> Run | None:
        """A run with documents left: mostly one that has begun, so that few are open at a time."""
        left = [run for run in self.runs if not (run.over or run.busy)]
        begun = [run for run in left if run.at]
        if not left:
            return None
        return self._chance.choice(begun if begun and self._chance.random() < 0.95 else left)

    def _feed_one(self) -> None:
        run = self._a_run()
        for _ in range(self._chance.choice([1, 1, 1, 4, 12]) if run else 0):
            if run is not None and not run.over:
                self._feed(run, self.callback)

    def _feed(self, run: Run, callback: AtomscaleCallback, *, guarded: bool = False) -> None:
        """Feed a run's next document; one that is interrupted may be fed again, and start and stop always are."""
        number, doc = run.documents[run.at]
        _logger.info("feeds %d, %s of run %s", number, doc.name, self.plan.story.uid(doc.run)[:8])
        self._tell(f"begun {number}")
        run.begun = True
        run.ended = run.ended or doc.name == "stop"
        begin = time.perf_counter()
        try:
            self._inside = guarded
            callback(doc.name, doc.doc)
            self._inside = False
        except Interrupted:
            self._inside = False
            if doc.name in {"event", "event_page"} and self._chance.random() < 0.5:
                run.at += 1
            return
        self._call_s += 0.1 * (time.perf_counter() - begin - self._call_s)
        if doc.name == "stop" or not run.ended:
            self._tell(f"taken {number}")
        run.at += 1

    def _repeat(self) -> None:
        """Feed an event once more that was taken before, as a bus that delivers again does."""
        run = self._a_run()
        fed = [doc for _, doc in run.documents[: run.at] if doc.name.startswith("event")] if run else []
        if fed:
            doc = self._chance.choice(fed[-20:])
            _logger.info("repeats %r", doc.doc.get("seq_num"))
            self.callback(doc.name, doc.doc)

    def _with_alarm(self, what: Callable[[], None]) -> None:
        """Feed a document, and have a signal arrive somewhere in the middle of the call."""
        run = self._a_run()
        if run is None:
            return
        self._on_alarm = what
        signal.setitimer(signal.ITIMER_REAL, self._chance.uniform(5e-6, 1.5 * self._call_s))
        try:
            self._feed(run, self.callback, guarded=True)
        finally:
            self._inside = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _alarm(self, _signal: int, _frame: FrameType | None) -> None:
        if self._inside:
            self._inside = False
            self._on_alarm()

    def _raise(self) -> None:
        raise Interrupted

    def _look(self) -> None:
        _ = dict(self.callback.ignored)
        self.callback.status()
        self.callback.streams(self.plan.story.uid(0))

    def _close_quickly(self) -> None:
        self.callback.close(self._chance.choice([0.0, 0.0, 0.1]))

    def _feed_from_threads(self) -> None:
        threads: list[threading.Thread] = []
        for _ in range(self._chance.randrange(1, 4)):
            run = self._a_run()
            if run is None:
                break
            run.busy = True
            threads.append(threading.Thread(target=self._feed_many, args=(run, self._chance.randrange(1, 30))))
        for thread in threads:
            thread.start()
        self._feed_one()
        for thread in threads:
            thread.join()
        for run in self.runs:
            run.busy = False

    def _feed_many(self, run: Run, documents: int) -> None:
        for _ in range(min(documents, len(run.documents) - run.at)):
            self._feed(run, self.callback)

    def _fork(self) -> None:
        """A child of ours feeds a run that nobody has begun, while the runs of the parent stay the parent's."""
        fresh = [run for run in self.runs if not run.begun]
        if not fresh:
            return
        run = self._chance.choice(fresh)
        self.runs.remove(run)
        how = self._chance.choice(["closed", "exited at once", "killed"])
        documents = self._chance.randrange(1, len(run.documents) + 1)
        child = os.fork()
        if child == 0:
            hung = self.plan.problems.with_name("hung-child.txt").open("a")
            faulthandler.register(signal.SIGUSR1, file=hung)
            try:
                self._feed_many(run, documents)
            except BaseException as error:  # noqa: BLE001 - it is a problem, whatever it is
                self._problem(f"a forked child raised {error!r}")
            if how == "closed":
                self.callback.close(0.0)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        end = time.monotonic() + CHILD_S
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.kill(child, signal.SIGUSR1)
                time.sleep(0.5)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self._problem(f"a child hung: {self.plan.problems.with_name('hung-child.txt').read_text()}")
                break
            time.sleep(0.001)

    def _feed_nonsense(self) -> None:
        name, doc = self._chance.choice(
            [
                ("event", {}),
                ("event", {"descriptor": "nobody", "uid": "x", "data": {"a": 1.0}, "timestamps": {}, "time": 1.0}),
                ("event_page", {"descriptor": 7}),
                ("descriptor", {"run_start": "nobody", "uid": "d"}),
                ("stop", {"run_start": "nobody"}),
                ("start", {"uid": 7}),
                ("datum", {"datum_id": "x"}),
                ("bulk_events", None),
            ]
        )
        self.callback(name, doc)  # type: ignore[arg-type]

    def _replace(self) -> None:
        """A new callback in the place of the old one; what was open is fed to it from its start document on."""
        self.callback.close(0.0)
        self.callback.close(0.0)
        self._make_callback()
        gc.collect()
        for run in self.runs:
            if not run.over:
                run.at = 0

    # ---- how it ends -----------------------------------------------------------------------------------------------

    def _end(self, how: str) -> None:
        _logger.info("ends: %s", how)
        self._tell("over")
        match how:
            case "killed":
                killer = threading.Timer(self._chance.uniform(0.0, 0.02), lambda: os.kill(os.getpid(), signal.SIGKILL))
                killer.start()
                while True:  # it is killed somewhere in here
                    self._feed_one()
            case "closed":
                self.callback.close(self._chance.choice([0.0, 1.0]))
            case "exited at once":
                os._exit(0)
            case _:
                pass  # the process returns, and what is registered for its end does its work

    def _tell(self, what: str) -> None:
        os.write(self._told, f"{what}\n".encode())

    def _problem(self, what: str) -> None:
        with self.plan.problems.open("a") as file:
            file.write(f"{what}\n")


class _Unexpected(logging.Handler):
    """Notes what the package logs with a traceback: an error that it did not expect."""

    def __init__(self, life: Life) -> None:
        super().__init__(logging.ERROR)
        self._life = life

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is not None:
            self._life._problem(self.format(record))


class _Log(logging.Handler):
    """Writes without a buffer: a forked child would wait for ever for a buffer that a thread had at the fork."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        os.write(self._file, f"{self.format(record)}\n".encode(errors="replace"))


def live(plan: Plan) -> None:
    """A process's whole life."""
    gc.freeze()  # what was imported before this process was forked is not looked through again and again
    life = Life(plan)
    logger = logging.getLogger("atomscale_bluesky")
    unexpected = _Unexpected(life)
    logger.addHandler(unexpected)
    log = _Log(plan.problems.with_name("log.txt"))
    log.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(process)d %(name)s: %(message)s", "%H:%M:%S"))
    for handler in (unexpected, log):
        # An alarm that raises within `logging` would leave the handler's lock taken for good, whoever logs.
        handler.acquire = handler.release = lambda: None
    for noted in (logger, _logger):
        noted.addHandler(log)
        noted.setLevel(logging.INFO)
    hurry(HURRIED)
    hung = open(plan.problems.with_name("hung.txt"), "a")  # noqa: SIM115 - open as long as the process lives
    faulthandler.dump_traceback_later(LIFE_S, exit=True, file=hung)
    sys.excepthook = lambda kind, error, _: life._problem(f"the process raised {kind.__name__}: {error}")
    threading.excepthook = lambda args: life._problem(f"a thread raised {args.exc_type.__name__}: {args.exc_value}")
    try:
        life.play()
    except BaseException as error:
        life._problem(f"the life raised {error!r}: {traceback.format_exc()}")
        raise
