"""What a scenario works with: a server, a spool, children to kill, and a result to fill."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.server import Control, LocalServer
from atomscale_bluesky.spool.spool import Spool

from . import child
from .child import Ending, Job, Told
from .oracle import Verdict, judge
from .story import Doc, Story

HURRIED = 20.0
# So long the bench waits for what it asks the server itself.
ANSWERS_OF_THE_BENCH_S = 120.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["atomscale_bluesky.callback", "event_model", "msgspec", "tests.faults.child"])


@dataclass
class Result:
    """What one seed of a scenario came to."""

    scenario: str
    seed: int
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    calls: list[tuple[str, float]] = field(default_factory=list)  # kind of document, seconds; in children
    calls_beside_server: list[tuple[str, float]] = field(default_factory=list)  # in one process with the server
    counts: Counter[str] = field(default_factory=Counter)  # kills, power cuts …
    allowed_lost: int = 0  # points whose loss the scenario allows
    oldest_lost_s: float = 0.0  # how old the oldest reading was that a power cut took
    took_s: float = 0.0


class Child:
    """A child process, and what it has told."""

    def __init__(self, job: Job) -> None:
        self.told = Told(plain=job.record is None and job.settings.get("durability") != "event")
        self._reports, theirs = _forks.Pipe(duplex=False)
        self._process = _forks.Process(target=child.run, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._open = True

    def read(self, *, until: Callable[[Told], bool] = lambda _: False, timeout_s: float = 60.0) -> bool:
        """Read reports until a condition holds, the child is gone or the time is over; whether the condition held."""
        end = time.monotonic() + timeout_s
        while not until(self.told):
            if not self._open or not self._reports.poll(max(0.0, end - time.monotonic())):
                return False
            try:
                self.told.take(self._reports.recv_bytes())
            except EOFError:
                self._open = False
        return True

    def kill(self) -> Told:
        """SIGKILL, and all that was told before."""
        self._process.kill()
        return self.wait()

    def wait(self, timeout_s: float = 60.0) -> Told:
        """Let it come to its end; one that does not is killed."""
        self.read(timeout_s=timeout_s)
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            self.told.raised.append("the child did not end")
        self._reports.close()
        self._process.close()
        return self.told


class PatientlyAsked(LocalServer):
    """A local server whose own figures are waited for: on a busy machine they may take long, and are not under test."""

    @property
    def control(self) -> Control:
        """The client of its control, with a time limit that only a server which is gone exceeds."""
        return Control(super().control.url, timeout_s=ANSWERS_OF_THE_BENCH_S)


class Bench:
    """One seed of a scenario."""

    def __init__(self, scenario: str, seed: int, folder: Path, server: LocalServer) -> None:
        self.chance = random.Random(f"{scenario} {seed}")
        self.result = Result(scenario, seed)
        self.folder = folder
        self.server = server
        self.spool = folder / "spool"
        self._callbacks: list[AtomscaleCallback] = []

    # ---- runs ------------------------------------------------------------------------------------------------------

    def story(self, **choices: Any) -> Story:
        """A story of this seed; what is not chosen is left to chance."""
        chance = self.chance
        given = {
            "points": chance.randrange(1, 160),
            "keys": chance.randrange(1, 5),
            "gaps": chance.choice([0.0, 0.0, 0.02]),
            "late": chance.random() < 0.3,
            "monitor": chance.random() < 0.3,
            "pages": chance.random() < 0.3,
            "baseline": chance.random() < 0.3,
            "repeats": chance.choice([0.0, 0.05]),
        } | choices
        return Story(seed=chance.getrandbits(32), t0=round(time.time()) - 3600.0, **given)

    def settings(self, **settings: Any) -> dict[str, Any]:
        """Settings for the bench's server and spool."""
        return {
            "endpoint": self.server.url,
            "api_key": self.server.api_key,
            "spool_dir": str(self.spool),
            "spool_min_free_bytes": 0,
            "points_per_chunk": 10,
            "request_timeout_s": 5.0,
        } | settings

    def callback(self, **settings: Any) -> AtomscaleCallback:
        """A callback in this process; closed with the bench."""
        made = AtomscaleCallback(settings=Settings.load(environ={}, **self.settings(**settings)))
        self._callbacks.append(made)
        return made

    def play(self, callback: AtomscaleCallback, documents: list[Doc]) -> None:
        """Feed documents to a callback of this process."""
        for _, name, doc in documents:
            begin = time.perf_counter()
            callback(name, doc)
            self.result.calls_beside_server.append((name, time.perf_counter() - begin))

    def child(self, story: Story | None = None, **choices: Any) -> Child:
        """Start a child; with a story it feeds that, without it delivers what is in the spool."""
        settings = self.settings(**choices.pop("settings", {}))
        return Child(Job(settings=settings, story=story, **({"hurried": HURRIED} | choices)))

    def ended(self, told: Told, *, killed: bool = False) -> Told:
        """Take in what a child has told in its life."""
        if told.plain:
            self.result.calls += told.calls
        self.result.raised += told.raised
        if killed and told.ending is None:
            self.result.counts["kills"] += 1
        return told

    def recover(self, *, spool: Path | None = None, timeout_s: float = 30.0, **settings: Any) -> Ending | None:
        """Let a further process deliver what is left."""
        if spool is not None:
            settings["spool_dir"] = str(spool)
        told = self.ended(self.child(drain_s=timeout_s, settings=settings).wait(timeout_s + 15.0))
        self.check(told.ending is not None, "the recovering process came to no end")
        return told.ending

    def history(self) -> list[dict[str, Any]]:
        """The spool's entries of finished runs."""
        return Spool(self.spool).history.entries()

    # ---- judgement -------------------------------------------------------------------------------------------------

    def check(self, holds: object, text: str) -> bool:
        """Note a problem unless it holds."""
        if not holds:
            self.result.problems.append(text)
        return bool(holds)

    def judge(
        self,
        accepted: list[Doc],
        *,
        begun: list[Doc] = (),  # type: ignore[assignment]
        forgiven: bool = False,
        orphans: int = 0,
        amplification: float | None = None,
        lost: bool = True,
        changed: bool = True,
        doubled: bool = True,
        early_finalize: bool = True,
    ) -> Verdict:
        """Compare with the oracle; whatever differs is a problem unless it is allowed here."""
        verdict = self.result.verdict = judge(self.server, accepted, begun=list(begun), forgiven=forgiven)
        judged = {"lost": lost, "changed": changed, "doubled": doubled, "early_finalize": early_finalize}
        for what in ("lost", "doubled", "wrong", "unfinished", "changed", "early_finalize"):
            if not judged.get(what, True):
                continue
            count = getattr(verdict, what)
            self.check(not count, f"{count} {what}")
        self.check(verdict.orphans <= orphans, f"{verdict.orphans} orphans")
        if amplification is not None and verdict.needed:
            factor = verdict.requests / verdict.needed
            self.check(factor <= amplification, f"{factor:.2f} times the requests that were needed")
        return verdict

    def account(self, expected: int) -> None:
        """The history's counts must say what the oracle says."""
        delivered = sum(entry["delivered"] for entry in self.history())
        self.check(delivered == expected, f"the history says {delivered} points were delivered, not {expected}")
        self.check(not any(entry["lost"] for entry in self.history()), "the history says that points were lost")

    def close(self) -> None:
        """End what is left of it."""
        self.server.behave()
        for callback in self._callbacks:
            callback.close(0.0)
            bad = callback.ignored.get("malformed document", 0)
            if bad:
                self.result.raised.append(f"{bad} documents could not be used")


@contextlib.contextmanager
def bench(scenario: str, seed: int, *, keep: Path | None = None, **server: Any) -> Iterator[Bench]:
    """A bench with a server of its own; its folder goes with it, unless there is a problem and a place to keep it."""
    folder = Path(tempfile.mkdtemp(prefix="fault-bench-"))
    begin = time.monotonic()
    child.hurry(HURRIED)
    logger, quiet = logging.getLogger("atomscale_bluesky"), logging.NullHandler()
    logger.addHandler(quiet)  # what is logged is of no interest here
    try:
        with PatientlyAsked(control=True, **server) as local:
            made = Bench(scenario, seed, folder, local)
            before = threading.excepthook
            threading.excepthook = lambda args: made.result.raised.append(f"{args.exc_type.__name__}: {args.exc_value}")
            try:
                yield made
            finally:
                threading.excepthook = before
                made.close()
                made.result.took_s = time.monotonic() - begin
                made.check(not made.result.raised, f"raised: {made.result.raised[:1]}")
                if made.result.problems:
                    made.result.problems += made.result.verdict.details
    finally:
        logger.removeHandler(quiet)
        child.hurry(1.0)
        if keep is not None and made.result.problems:
            shutil.copytree(folder, keep / f"{scenario}-{seed}", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
