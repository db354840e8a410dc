"""The stories: each a function of a bench, found by its name, with one line that says what must be true."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomscale_bluesky.server import LOGIN_PAGE, Fault
from atomscale_bluesky.spool.spool import Spool

from . import disk
from .bench import Bench, Result, bench
from .story import Doc

CHUNKS = ("chunk", "chunk_multi")


@dataclass(frozen=True)
class Scenario:
    """A named story and what it promises."""

    name: str
    promise: str
    play: Callable[[Bench], None]
    server: dict[str, Any] = field(default_factory=dict)
    weight: int = 1  # so many times more seeds than others: where much depends on the moment

    def run(self, seed: int, keep: Path | None = None) -> Result:
        """Play it once."""
        with bench(self.name, seed, keep=keep, **self.server) as made:
            try:
                self.play(made)
            except Exception as error:  # noqa: BLE001 - a scenario that breaks is a finding like any other
                made.result.problems.append(f"the scenario broke: {type(error).__name__}: {error}")
        return made.result


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    promise: str, *, weight: int = 1, **server: Any
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Put a function among the scenarios, under its own name."""

    def register(play: Callable[[Bench], None]) -> Callable[[Bench], None]:
        name = play.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, promise, play, server, weight)
        return play

    return register


def play_seed(name: str, seed: int, keep: Path | None = None) -> Result:
    """One seed, in whichever process."""
    return SCENARIOS[name].run(seed, keep)


def deliver(b: Bench, *faults: Fault, amplification: float | None = None, orphans: int = 0, **choices: Any) -> None:
    """One story against a server with these faults; all must arrive."""
    story = b.story(**choices)
    documents = story.documents()
    if faults:
        b.server.misbehave(*faults)
    callback = b.callback()
    b.play(callback, documents)
    b.check(callback.drain(60.0), f"not drained: {_left(callback)}")
    verdict = b.judge(documents, orphans=orphans, amplification=amplification)
    b.account(verdict.expected)


def _left(callback: Any) -> str:
    return str([(run.state, run.points, run.problem) for run in callback.status()])


# ---- answers that are lost, wrong or late ----------------------------------------------------------------------------


@scenario("Without faults each stream costs one request per chunk and two more.")
def nothing_fails(b: Bench) -> None:
    deliver(b, amplification=1.0, runs=b.chance.randrange(1, 4), at_once=True)


@scenario("A stream whose creation was never answered is found again, not made twice.")
def initialize_answer_lost(b: Bench) -> None:
    how = b.chance.choice(
        [{"reset_after": True}, {"garble": "empty"}, {"garble": "half"}, {"status": 502, "applied": True}]
    )
    deliver(b, Fault(call="initialize", times=b.chance.randrange(1, 4), **how))


@scenario("A finalize whose answer was lost counts as done when the repeat is refused and the catalogue says so.")
def finalize_answer_lost(b: Bench) -> None:
    how = b.chance.choice([{"reset_after": True}, {"garble": "half"}, {"status": 504, "applied": True}])
    deliver(b, Fault(call="finalize", times=b.chance.randrange(1, 3), **how))


@scenario("Finalize leaves after every chunk of every channel has been answered, whatever the order of answers.")
def finalize_comes_last(b: Bench) -> None:
    delays = [Fault(call=CHUNKS, chunk_index=n, delay_s=b.chance.random() / 4, times=1) for n in range(0, 9, 2)]
    broken = Fault(call=CHUNKS, probability=0.3, seed=b.result.seed, times=4, reset_after=True)
    deliver(b, *delays, broken)


@scenario("An answer that is not the API's, or speaks of something else, confirms nothing.")
def answers_of_others(b: Bench) -> None:
    ways: list[dict[str, Any]] = [
        {"body": LOGIN_PAGE, "content_type": "text/html"},
        {"body": ""},
        {"body": "{}"},
        {"body": "null"},
        {"garble": "empty"},
        {"garble": "half"},
        {"garble": "other_chunk"},
        {"status": 204},
    ]
    chosen = b.chance.sample(ways, 4)
    faults = [Fault(call=CHUNKS, times=1, skip=b.chance.randrange(4), **way) for way in chosen]
    others = [Fault(call=b.chance.choice(["initialize", "finalize", "catalogue"]), times=1, body=LOGIN_PAGE)]
    deliver(b, *faults, *others)


@scenario("A chunk or finalize that was given up and is applied later, after its repeat, changes nothing.")
def applied_later(b: Bench) -> None:
    later = b.chance.choice([0.05, 0.2, 0.6])
    deliver(
        b,
        Fault(call=CHUNKS, apply_later_s=later, probability=0.5, seed=b.result.seed, times=4),
        Fault(call="finalize", apply_later_s=later, times=1),
    )


@scenario("No chunk that is not full leaves while the run is open, however long it is silent.")
def no_timer_flushes(b: Bench) -> None:
    points = b.chance.randrange(1, 40)
    story = b.story(points=points, gaps=0.0, late=False, monitor=False, pages=False)
    documents = story.documents()
    callback = b.callback()
    b.play(callback, documents[:-1])
    b.check(callback.drain(20.0), "the full chunks of an open run were not delivered")
    _quiet(callback, 0.5)
    sizes = [n for stream in b.server.streams() for s in b.server.points(stream.data_id).values() for _, n in s.chunks]
    b.check(all(n == 10 for n in sizes), f"chunks of {sizes} points while the run is open")
    b.check(sum(sizes) == points // 10 * 10 * story.keys, "a full chunk waits")
    b.play(callback, documents[-1:])
    b.check(callback.drain(20.0), "not drained")
    b.judge(documents, amplification=1.0)


def _quiet(callback: Any, seconds: float) -> None:
    """Let the uploader's own time go by: until so much later nothing has changed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        callback.drain(max(0.01, end - time.monotonic()))


# ---- what the server refuses -----------------------------------------------------------------------------------------


@scenario("Requests above the server's limit are split, and nothing is lost by it.", max_body_bytes=3000)
def body_too_large(b: Bench) -> None:
    deliver(
        b,
        points=b.chance.randrange(1, 400),
        keys=b.chance.randrange(1, 14),
        points_per_chunk=b.chance.choice([20, 200]),
    )


@scenario("One refused channel among twenty stays behind with its chunk; the others go through for few requests more.")
def one_channel_of_twenty_refused(b: Bench) -> None:
    chunk = b.chance.randrange(0, 4)
    name = f"k{b.chance.randrange(20)}"
    b.server.misbehave(Fault(call=CHUNKS, channel=name, chunk_index=chunk, status=422))
    story = b.story(points=55, keys=20, gaps=0.0, late=False, monitor=False, pages=False)
    documents = story.documents()
    callback = b.callback()
    b.play(callback, documents)
    b.check(not callback.drain(30.0), "drained although a chunk is refused")
    points = callback.status().points
    b.check((points.refused, points.waiting, points.lost) == (10, 0, 0), f"the account says {points}")
    verdict = b.judge(documents, forgiven=True, lost=False)
    b.check(verdict.lost == 10, f"{verdict.lost} points are not there, of 10 refused")
    b.check(all(c.key == name for c, _ in verdict.lost_points), "points of other channels are not there")
    b.check(not any(stream.finalize_calls for stream in b.server.streams()), "finalized although a chunk is refused")
    b.result.allowed_lost += 10
    b.result.counts["extra requests"] += verdict.requests - verdict.needed + 1
    # Five halvings find it; a look into the catalogue tells that the stream is open; later chunks may carry it apart.
    b.check(verdict.requests - verdict.needed <= 18, f"{verdict.requests} requests instead of {verdict.needed}")


@scenario("A key that is wrong for a while stops everything and loses nothing.")
def key_wrong_for_a_while(b: Bench) -> None:
    status = b.chance.choice([401, 403])
    deliver(b, Fault(status=status, skip=b.chance.randrange(8), times=b.chance.randrange(1, 5)), runs=2, at_once=True)


@scenario("A server that says when to come back is not asked earlier.")
def retry_after_in_all_spellings(b: Bench) -> None:
    now = time.time()
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 2))
    asked = b.chance.choice(["1", "0", "1.5", "-3", "soon", stamp, "Thu, 01 Jan 1970 00:00:00 GMT", ""])
    status = b.chance.choice([429, 503])
    call = b.chance.choice(["initialize", "chunk_multi", "finalize"])
    (number,) = b.server.misbehave(Fault(call=call, status=status, headers={"Retry-After": asked}, times=1))
    deliver(b, points=25)
    requests = b.server.requests()
    first = next((request for request in requests if request.fault == number), None)
    if first is not None and asked.strip() == "1" and call != "chunk_multi":
        # What left before the answer was there is no disobedience.
        after = [r.time - first.time for r in requests if r.time > first.time + 0.1]
        b.check(min(after, default=9.0) >= 0.99, f"asked again after {min(after, default=9.0):.2f} s, not 1 s")


@scenario("Redirects are not followed; what was redirected is sent again to the server that was named.")
def redirects(b: Bench) -> None:
    status = b.chance.choice([301, 302, 303, 307, 308])
    headers = {
        "Location": b.chance.choice(
            ["http://127.0.0.1:9/elsewhere", "/metrology/stream/chunk", "https://atomscale.invalid/"]
        )
    }
    deliver(b, Fault(status=status, headers=headers, probability=0.3, seed=b.result.seed, times=4))


@scenario(
    "A stream that the server closed after a silence goes on in a continuation; each point is there once.",
    silence_s=0.4,
)
def closed_by_silence(b: Bench) -> None:
    story = b.story(points=b.chance.randrange(12, 90), monitor=False, pages=False, late=False)
    documents = story.documents()
    callback = b.callback()
    cut = b.chance.randrange(12, len(documents))
    b.play(callback, documents[:cut])
    callback.drain(10.0)
    end = time.monotonic() + 10
    while time.monotonic() < end and not any(s.status == "stream_error" for s in b.server.streams()):
        _quiet(callback, 0.1)
    b.play(callback, documents[cut:])
    drained = callback.drain(30.0)
    left = callback.status()
    if left:  # closed between its last chunk and its finalize: all is there, and a person is told
        b.check(all(run.state == "parked" and not run.points.waiting for run in left), f"left: {_left(callback)}")
        b.result.counts["closed before its finalize"] += 1
    else:
        b.check(drained, "not drained")
    b.judge(documents, forgiven=True, orphans=3)


@scenario("Fifty runs at once, one of which is always refused: forty-nine arrive, one is kept.")
def fifty_runs_one_refused(b: Bench) -> None:
    story = b.story(runs=50, points=25, keys=2, gaps=0.0, late=False, monitor=False, pages=False, at_once=True)
    documents = story.documents()
    bad = b.chance.randrange(50)
    uid = story.uid(bad)
    b.server.misbehave(Fault(call=CHUNKS, label=f"[{uid[:8]}-", status=b.chance.choice([422, 404])))
    callback = b.callback()
    b.play(callback, documents)
    b.check(not callback.drain(60.0), "drained although a run is refused")
    status = callback.status()
    b.check([run.run_uid for run in status] == [uid], f"{len(status)} runs are left")
    b.check(status.points.refused + status.points.waiting == 50, f"the account says {status.points}")
    verdict = b.judge([d for d in documents if d.run != bad], orphans=1)
    b.account(verdict.expected)


# ---- a bad line ------------------------------------------------------------------------------------------------------


def _weather(b: Bench, probability: float) -> list[Fault]:
    """Failures of every kind that can clear; the probability is that of any of them."""
    ways: list[dict[str, Any]] = [
        {"status": 500},
        {"status": 503},
        {"status": 408},
        {"reset_before": True},
        {"reset_after": True},
        {"status": 502, "applied": True},
        {"garble": "half"},
        {"body": LOGIN_PAGE},
    ]
    left, faults = 1.0, []
    for n, way in enumerate(ways):
        each = probability / len(ways)
        faults.append(Fault(probability=each / left, seed=b.result.seed * 100 + n, **way))
        left -= each
    return faults


@scenario("With 30 % of all requests failing everything arrives, over many seeds for at most 1.6 times the requests.")
def thirty_percent_fail(b: Bench) -> None:
    deliver(b, *_weather(b, 0.3), amplification=None, points=b.chance.randrange(150, 400))
    b.result.counts["at 30 %: requests"] += b.result.verdict.requests
    b.result.counts["at 30 %: needed"] += b.result.verdict.needed


@scenario("A request that hangs or is answered byte by byte is given up at its deadline, and made again.")
def hang_and_drip(b: Bench) -> None:
    story = b.story(points=b.chance.randrange(10, 60))
    documents = story.documents()
    b.server.misbehave(
        Fault(call=b.chance.choice([CHUNKS, "initialize", "finalize"]), hang=True, times=1),
        Fault(call=CHUNKS, drip_s=0.5, times=1),
    )
    callback = b.callback(request_timeout_s=0.5)
    b.play(callback, documents)
    b.check(callback.drain(40.0), f"not drained: {_left(callback)}")
    b.judge(documents)


@scenario("Outages of the whole server cost nothing but time.")
def outages(b: Bench) -> None:
    story = b.story(runs=2, at_once=b.chance.random() < 0.5)
    documents = story.documents()
    callback = b.callback()
    cuts = sorted(b.chance.randrange(len(documents)) for _ in range(4))
    for begin, end in zip([0, *cuts], [*cuts, len(documents)], strict=True):
        b.play(callback, documents[begin:end])
        if b.chance.random() < 0.5:
            b.server.unreachable(b.chance.choice([0.02, 0.2]))
        else:
            callback.drain(0.05)
    b.server.reachable()
    b.check(callback.drain(40.0), f"not drained: {_left(callback)}")
    verdict = b.judge(documents)
    b.account(verdict.expected)


# ---- kills -----------------------------------------------------------------------------------------------------------


def _feed_and_kill(b: Bench, story: Any, **choices: Any) -> tuple[list[Doc], list[Doc]]:
    """Kill a child in the middle of its story; the documents whose call returned, and the one after."""
    documents = story.documents()
    child = b.child(story, drain_s=0.0, pace_s=b.chance.choice([0.0, 0.0005, 0.003]), end="close", **choices)
    if b.chance.random() < 0.7:
        stop = b.chance.randrange(len(documents) + 1)
        child.read(until=lambda told: told.returned >= stop)
    else:
        child.read(timeout_s=b.chance.random() * 0.4)
    told = b.ended(child.kill(), killed=True)
    return documents[: told.returned], documents[told.returned : told.returned + 1]


def _kill_recoveries(b: Bench, times: int) -> None:
    """Start processes that recover, and kill each after a moment."""
    for _ in range(times):
        child = b.child(drain_s=30.0)
        child.read(timeout_s=b.chance.random() ** 2 * 0.6)
        b.ended(child.kill(), killed=True)


def _recovered(b: Bench, accepted: list[Doc], begun: list[Doc], **choices: Any) -> None:
    ending = b.recover()
    b.check(ending is not None and ending.drained, f"not drained: {ending}")
    b.judge(accepted, begun=begun, **choices)
    # A process killed before its run's header leaves an empty file, which goes when it is a minute old.
    b.check(not any(path.stat().st_size for path in b.spool.glob("*/journal*")), "something is left in the spool")


@scenario("Killed at any moment, and killed again while it recovers: what was accepted is there once.", weight=10)
def killed(b: Bench) -> None:
    story = b.story(runs=b.chance.randrange(1, 4), at_once=True)
    accepted, begun = _feed_and_kill(b, story, segment_bytes=b.chance.choice([None, 4096]))
    _kill_recoveries(b, b.chance.randrange(0, 4))
    _recovered(b, accepted, begun)


@scenario(
    "Killed during an outage, and again while it recovers amid faults: what was accepted is there once.", weight=10
)
def killed_in_an_outage(b: Bench) -> None:
    story = b.story(runs=b.chance.randrange(1, 3), at_once=True)
    b.server.misbehave(*_weather(b, 0.4))
    b.server.unreachable(b.chance.random())
    accepted, begun = _feed_and_kill(b, story)
    _kill_recoveries(b, b.chance.randrange(1, 4))
    b.server.reachable()
    b.server.behave()
    _recovered(b, accepted, begun)


@scenario("Killed after the server made the stream and before its id was on disk: the stream is found, not made twice.")
def killed_before_the_id_is_on_disk(b: Bench) -> None:
    b.server.misbehave(Fault(call="initialize", reset_after=True, times=1), Fault(call="initialize", hang=True))
    b.server.misbehave(Fault(call="catalogue", hang=True))
    story = b.story(monitor=False, pages=False)
    documents = story.documents()
    child = b.child(story, drain_s=30.0)
    child.read(until=lambda told: told.returned >= len(documents))
    _until(lambda: any(request.handled for request in b.server.requests("initialize")))
    told = b.ended(child.kill(), killed=True)
    b.server.behave()
    _recovered(b, documents[: told.returned], [])


@scenario("Killed when a request was applied and its answer is under way: nothing is there twice.")
def killed_between_request_and_answer(b: Bench) -> None:
    call = b.chance.choice([CHUNKS, "finalize", "initialize"])
    b.server.misbehave(Fault(call=call, drip_s=5.0, skip=b.chance.randrange(3)))
    story = b.story()
    documents = story.documents()
    child = b.child(story, drain_s=30.0)
    child.read(until=lambda told: told.returned >= len(documents))
    _until(lambda: any(r.fault and r.handled for r in b.server.requests()), 1.0)
    told = b.ended(child.kill(), killed=True)
    b.server.behave()
    _recovered(b, documents[: told.returned], documents[told.returned : told.returned + 1])


@scenario("No stop document, because the process was killed: the run is completed as interrupted.")
def no_stop_document(b: Bench) -> None:
    story = b.story(stops=False)
    documents = story.documents()
    child = b.child(story, drain_s=30.0)
    child.read(until=lambda told: told.returned >= len(documents))
    b.ended(child.kill(), killed=True)
    _recovered(b, documents, [])
    b.check([entry["interrupted"] for entry in b.history()] == [True], "not called interrupted")


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
    return False


# ---- exits -----------------------------------------------------------------------------------------------------------


@scenario("A process that ends of its own accord has delivered everything, by whichever way it ends.")
def exits(b: Bench) -> None:
    story = b.story(stops=b.chance.random() < 0.5, runs=b.chance.randrange(1, 3))
    documents = story.documents()
    end = b.chance.choice(["return", "sys.exit", "close"])
    told = b.ended(b.child(story, end=end, drain_s=20.0 if end == "close" else 0.0).wait())
    b.check(told.returned == len(documents), "it did not take all documents")
    if end != "close":
        b.judge(documents)
    else:
        _recovered(b, documents, [])


# ---- previews --------------------------------------------------------------------------------------------------------


def _previews(b: Bench, *faults: Fault) -> None:
    """A story at a slow pace with a small `max_latency_s`, killed or not; what is sent under an index only grows."""
    story = b.story(points=b.chance.randrange(5, 60), runs=b.chance.randrange(1, 3), at_once=True)
    documents = story.documents()
    b.server.misbehave(*faults)
    settings = {"max_latency_s": b.chance.choice([0.01, 0.03, 0.1])}
    child = b.child(story, drain_s=0.0, pace_s=b.chance.choice([0.003, 0.01]), end="close", settings=settings)
    if b.chance.random() < 0.6:
        stop = b.chance.randrange(len(documents) + 1)
        child.read(until=lambda told: told.returned >= stop)
        told = b.ended(child.kill(), killed=True)
    else:
        told = b.ended(child.wait())
    _kill_recoveries(b, b.chance.randrange(0, 3))
    b.server.behave()
    accepted, begun = documents[: told.returned], documents[told.returned : told.returned + 1]
    # A chunk that comes again with more points is what a preview is.
    _recovered(b, accepted, begun, changed=False)
    sizes: dict[Any, int] = {}
    for request in b.server.requests():
        if request.call in CHUNKS and request.handled == 200:
            which = (request.data_id, request.chunk_index, request.channels)
            b.check(request.size >= sizes.get(which, 0), f"chunk {which} came again with fewer points")
            sizes[which] = request.size
            b.result.counts["previews and chunks that came again"] += 1
    b.result.counts["streams that ended at a preview"] += sum(
        stream["why"] == "preview" for entry in b.history() for stream in entry["streams"]
    )


@scenario(
    "Previews that are lost, unanswered or applied after everything else, with kills among them: no stream shrinks.",
    weight=4,
    relax=("grown_chunk", "changed_chunk", "short_chunk"),
)
def previews(b: Bench) -> None:
    later = b.chance.choice([0.05, 0.3, 0.8])
    _previews(
        b,
        Fault(call=CHUNKS, apply_later_s=later, probability=0.2, seed=b.result.seed, times=3),
        Fault(call=CHUNKS, reset_after=True, probability=0.1, seed=b.result.seed + 1, times=2),
        Fault(call=CHUNKS, reset_before=True, probability=0.1, seed=b.result.seed + 2, times=2),
        Fault(call=CHUNKS, status=502, applied=True, probability=0.1, seed=b.result.seed + 3, times=2),
    )


@scenario("A server that takes no chunk again with more points gets every point once, previews and kills or not.")
def previews_refused(b: Bench) -> None:
    _previews(b, Fault(call=CHUNKS, reset_after=True, probability=0.1, seed=b.result.seed, times=2))


# ---- two processes ---------------------------------------------------------------------------------------------------


@scenario("Two processes on one spool, and a third that dies: each run has one deliverer, each point is there once.")
def two_processes_one_spool(b: Bench) -> None:
    stories = [b.story(points=b.chance.randrange(1, 80)) for _ in range(2)]
    children = [b.child(story, pace_s=0.001, drain_s=30.0) for story in stories]
    third = b.child(drain_s=30.0)
    third.read(timeout_s=b.chance.random() / 4)
    b.ended(third.kill(), killed=True)
    told = [b.ended(child.wait()) for child in children]
    accepted = [doc for story, t in zip(stories, told, strict=True) for doc in story.documents()[: t.returned]]
    _recovered(b, accepted, [])


# ---- no room ---------------------------------------------------------------------------------------------------------


def _left_out_openly(b: Bench, documents: list[Doc], reason: str = "no room in the spool") -> None:
    """What is not there must be counted as left out for want of room; nothing else may be missing."""
    verdict = b.judge(documents, lost=False)
    counted = sum(entry["left_out"].get(reason, 0) for entry in b.history())
    texts = _numeric_only(documents, verdict.lost_points)
    b.check(counted >= verdict.lost, f"{verdict.lost} points are missing, {counted} readings are counted as left out")
    b.check(counted <= verdict.lost + texts, f"{verdict.lost} points are missing, but {counted} are counted")
    b.result.allowed_lost += verdict.lost
    b.result.counts["readings left out openly"] += counted


def _numeric_only(documents: list[Doc], lost: list[Any]) -> int:
    """How many readings of the documents that left points out are none: text, gaps, and repeats of a document."""
    missing = {point.document for _, point in lost}
    readings = 0
    for number, (_, kind, doc) in enumerate(documents):
        if kind == "event" and number in missing:
            readings += len(doc["data"])
        elif kind == "event_page" and number in missing:
            readings += sum(len(column) for column in doc["data"].values())
    return readings + sum(len(doc["data"]) for _, kind, doc in documents if kind == "event" and "note" in doc["data"])


@scenario("A file that takes no more: readings are left out and counted, what was kept arrives.")
def disk_full(b: Bench) -> None:
    story = b.story(points=b.chance.randrange(60, 200), repeats=0.0)
    documents = story.documents()
    limit = b.chance.randrange(2000, 12_000)
    told = b.ended(b.child(story, file_limit=limit, drain_s=0.0, settings={"offline": True}).wait())
    b.check(told.returned == len(documents), "the plan did not come to its end")
    ending = b.recover()
    b.check(ending is not None and ending.drained, f"not drained: {ending}")
    if any(entry["interrupted"] for entry in b.history()):
        # Not even the stop found room, nor did the count of what was left out.
        b.result.counts["the stop found no room"] += 1
        b.result.allowed_lost += b.judge(documents, lost=False).lost
    else:
        _left_out_openly(b, documents)


def _filler(b: Bench, size: int) -> Path:
    """A spool with the folder of a run that takes so much of its room."""
    Spool(b.spool).writers.stop_threads()
    filler = b.spool / "20000101T000000-f111e200"
    filler.mkdir()
    (filler / "filler").write_bytes(bytes(size))
    return filler


@scenario("The spool's limit: new readings are left out and counted, and taken again when there is room.")
def spool_limit(b: Bench) -> None:
    story = b.story(runs=1, points=4000, keys=10, gaps=0.0, repeats=0.0, late=False)
    documents = story.documents()
    b.server.unreachable()
    filler = _filler(b, b.chance.randrange(700_000, 980_000))
    callback = b.callback(spool_max_bytes=1_000_000, points_per_chunk=100)
    b.play(callback, documents[:3000])
    b.check(not callback._spool.writers.has_room, "the limit was not noticed")
    shutil.rmtree(filler, ignore_errors=True)
    b.check(_until(lambda: callback._spool.writers.has_room, 5.0), "the room was not noticed")
    b.server.reachable()
    b.play(callback, documents[3000:])
    b.check(callback.drain(30.0), f"not drained: {_left(callback)}")
    _left_out_openly(b, documents)
    b.check(b.result.verdict.held > 100 * 10, "nothing was taken again")


@scenario("A spool that is full from the start takes readings as soon as there is room.")
def spool_full_from_the_start(b: Bench) -> None:
    filler = _filler(b, 2_000_000)
    callback = b.callback(spool_max_bytes=1_000_000)
    first, second = b.story(points=20), b.story(points=20)
    b.play(callback, first.documents())
    shutil.rmtree(filler, ignore_errors=True)
    b.check(_until(lambda: callback._spool.writers.has_room, 3.0), "the room was not noticed")
    b.play(callback, second.documents())
    b.check(callback.drain(30.0), f"not drained: {_left(callback)}")
    b.judge(second.documents())


@scenario("A disk that is full to the last byte: delivery goes on when space is freed, and what was kept arrives.")
def disk_full_to_the_last_byte(b: Bench) -> None:
    tiny = b.folder / "tiny"
    tiny.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tiny], capture_output=True).returncode:
        b.result.counts["no small disk could be mounted"] += 1
        return
    try:
        b.spool = tiny / "spool"
        (tiny / "filler").write_bytes(bytes(b.chance.randrange(100_000, 250_000)))
        story = b.story(points=2500, keys=6, repeats=0.0)
        documents = story.documents()
        b.server.unreachable()
        callback = b.callback(points_per_chunk=100)
        b.play(callback, documents[:-20])
        b.server.reachable()
        callback.drain(1.0)
        (tiny / "filler").unlink()
        b.play(callback, documents[-20:])
        # The run was let go of when its ledger took no more; a later look at the spool takes it up again.
        b.check(_until(lambda: callback.drain(5.0), 20.0), f"not drained: {_left(callback)}")
        _left_out_openly(b, documents)
        b.check(b.result.verdict.lost, "the disk was not full")
        callback.close(0.0)
    finally:
        subprocess.run(["umount", "-l", tiny], capture_output=True, check=False)


# ---- power cuts ------------------------------------------------------------------------------------------------------

PROMISED_S = 0.25
# What a machine that does ten things at once may add to it.
SLACK_S = 0.15


def _power_cut(
    b: Bench, *, durability: str, settings: dict[str, Any] | None = None, changed: bool = True, **choices: Any
) -> None:
    story = b.story(runs=b.chance.randrange(1, 3), at_once=True, points=b.chance.randrange(20, 200), **choices)
    documents = story.documents()
    log = b.folder / "disk.log"
    if b.chance.random() < 0.3:
        b.server.misbehave(*_weather(b, 0.3))
    child = b.child(
        story,
        drain_s=20.0,
        pace_s=b.chance.choice([0.0, 0.001, 0.005]),
        record=str(log),
        cut_at=b.chance.randrange(3, 6 * len(documents)) if b.chance.random() < 0.5 else None,
        segment_bytes=b.chance.choice([None, None, 4096]),
        settings={"durability": durability} | (settings or {}),
    )
    if b.chance.random() < 0.7:
        child.read(timeout_s=b.chance.random() * 1.2)
    else:
        child.read(until=lambda told: told.ending is not None, timeout_s=20.0)
    told = b.ended(child.kill())
    b.result.counts["power cuts"] += 1
    b.server.behave()
    entries = disk.read_log(log) if log.exists() else []
    if not any(entry["op"] != "beat" for entry in entries):
        return  # killed before it had touched the disk
    beats = [entry["t"] for entry in entries if entry["op"] == "beat"]
    strict = b.chance.random() < 0.5
    b.spool = b.folder / "after"
    disk.after_power_cut(entries, b.spool, strict=strict, seed=b.result.seed)
    ending = b.recover(spool=b.spool)
    b.check(ending is not None and ending.drained, f"not drained: {ending}")
    accepted = documents[: told.returned]
    verdict = b.judge(
        accepted,
        begun=documents[told.returned : told.returned + 1],
        lost=False,
        forgiven=False,
        orphans=9,
        changed=changed,
    )
    # In the process's own time: where the machine gave it no turn, it could not sync.
    ages = [disk.BEAT_S * sum(beat > told.at[point.document] for beat in beats) for _, point in verdict.lost_points]
    b.result.allowed_lost += verdict.lost
    b.result.counts["power cuts that took something"] += bool(ages)
    b.result.oldest_lost_s = max(ages, default=0.0)
    limit = 0.0 if durability == "event" else PROMISED_S + SLACK_S
    way = "strict names" if strict else "journalled names"
    b.check(max(ages, default=0.0) <= limit, f"lost readings {max(ages, default=0.0):.3f} s old ({way})")
    b.check(verdict.orphans == 0 or strict, f"{verdict.orphans} orphans")


@scenario(
    "A power cut takes at most the readings of the last 250 ms; nothing is wrong or doubled afterwards.", weight=20
)
def power_cut(b: Bench) -> None:
    _power_cut(b, durability="interval")


@scenario('With durability = "event" a power cut takes nothing that was accepted.', weight=20)
def power_cut_with_durability_event(b: Bench) -> None:
    _power_cut(b, durability="event")


@scenario(
    "A power cut among previews: what was shown stands, and nothing is wrong or doubled.",
    weight=5,
    relax=("grown_chunk",),
)
def previews_and_a_power_cut(b: Bench) -> None:
    _power_cut(b, durability="interval", settings={"max_latency_s": b.chance.choice([0.01, 0.05])}, changed=False)


# ---- damaged spools --------------------------------------------------------------------------------------------------


@scenario(
    "Damage in one run's files costs that run's damaged lines and no other run; nothing is wrong, and nothing is "
    "doubled unless the ledger lost synced lines.",
    weight=5,
)
def damaged_spool(b: Bench) -> None:
    story = b.story(runs=3, at_once=True, points=b.chance.randrange(15, 80), stops=True)
    documents = story.documents()
    delivered = b.chance.random() < 0.6
    if delivered:  # part of it was delivered before
        b.server.misbehave(Fault(call=CHUNKS, skip=b.chance.randrange(1, 25), hang=True))
        child = b.child(story, drain_s=30.0)
        child.read(until=lambda told: told.returned >= len(documents))
        _until(lambda: b.server.faults()[0].acted > 0, 1.0)
        b.ended(child.kill(), killed=True)
        b.server.behave()
    else:
        b.ended(b.child(story, drain_s=0.0, settings={"offline": True}).wait())
    folders = sorted(path.parent for path in b.spool.glob("*/journal-0001.jsonl"))
    if not folders:
        return
    folder = b.chance.choice(folders)
    header = (folder / "journal-0001.jsonl").read_text(errors="replace")
    victim = next(run for run in range(3) if story.uid(run) in header)
    kind, most = _damage(b, folder)
    b.result.counts[f"damage: {kind}"] += 1
    # A day later, so that nothing is spared for being young.
    for path in [folder, *folder.iterdir()]:
        os.utime(path, (time.time() - 86_400, time.time() - 86_400))
    ending = b.recover()
    accepted = documents
    # A chunk that was tried and has lost a row since is refused as changed: better than two truths.
    # Facts that are gone without a trace, of a synced ledger, cannot be missed: what they told is done again.
    traceless = kind in {"ledger cut", "ledger line gone"}
    # A chunk that was tried, never answered and is damaged altogether never will be.
    spared = {"lost": False, "changed": False, "early_finalize": False, "doubled": not traceless}
    verdict = b.judge(accepted, forgiven=True, orphans=9, **spared)
    b.result.counts["doubled by facts gone without a trace"] += verdict.doubled
    others = [point for channel, point in verdict.lost_points if channel.run != story.uid(victim)[:8]]
    b.check(not others, f"{kind}: {len(others)} points of other runs are not there")
    kept = folder.exists() and any(folder.glob("journal*"))
    if kept:
        b.result.counts["damaged run kept for a person"] += 1
    else:
        rows = {point.document for _, point in verdict.lost_points}
        b.check(len(rows) <= most, f"{kind}: {len(rows)} documents are lost of a run that is gone")
        counted = sum(entry["lost"] for entry in b.history())
        b.result.counts["points lost to damage"] += verdict.lost
        b.result.counts["of them counted by the account"] += min(counted, verdict.lost)
    b.result.allowed_lost += verdict.lost
    b.check(ending is not None, "the recovering process fell")


def _damage(b: Bench, folder: Path) -> tuple[str, int]:
    """Damage a run; what was done, and how many documents that may cost."""
    journals = sorted(folder.glob("journal-*.jsonl"))
    ledger = folder / "ledger.jsonl"
    ways = ["bit in a row", "bit in a line", "header", "journal cut"]
    if ledger.exists():
        ways += ["bit in the ledger", "ledger cut", "ledger line gone"]
    way = b.chance.choice(ways)
    path = ledger if "ledger" in way else journals[-1]
    content = bytearray(path.read_bytes())
    if way in {"bit in a row", "bit in a line", "bit in the ledger"}:
        lines = content.split(b"\n")[:-1]
        rows = [n for n, text in enumerate(lines) if text[9:10] == b"["] if way == "bit in a row" else []
        chosen = b.chance.choice(rows or range(len(lines)))
        begin = sum(len(text) + 1 for text in lines[:chosen])
        at = begin + b.chance.randrange(len(lines[chosen]))
        content[at] ^= 1 << b.chance.randrange(8)
        most = 2 if way == "bit in a row" else 10**9
    elif way == "header":
        content[b.chance.randrange(9, content.index(b"\n"))] ^= 1
        most = 0
    elif way == "ledger line gone":
        lines = content.split(b"\n")
        del lines[b.chance.randrange(len(lines) - 1)]
        content, most = bytearray(b"\n".join(lines)), 0
    else:
        content = content[: b.chance.randrange(content.index(b"\n"), len(content))]
        most = 10**9
    path.write_bytes(bytes(content))
    return way, most
