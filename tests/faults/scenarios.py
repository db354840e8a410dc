"""The stories: each a function of a bench, found by its name, with one line that says what must be true."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atomscale_bluesky.server import LOGIN_PAGE, Fault

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

    def run(self, seed: int) -> Result:
        """Play it once."""
        with bench(self.name, seed, **self.server) as made:
            try:
                self.play(made)
            except Exception as error:  # noqa: BLE001 - a scenario that breaks is a finding like any other
                made.result.problems.append(f"the scenario broke: {type(error).__name__}: {error}")
        return made.result


SCENARIOS: dict[str, Scenario] = {}


def scenario(promise: str, **server: Any) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Put a function among the scenarios, under its own name."""

    def register(play: Callable[[Bench], None]) -> Callable[[Bench], None]:
        name = play.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, promise, play, server)
        return play

    return register


def play_seed(name: str, seed: int) -> Result:
    """One seed, in whichever process."""
    return SCENARIOS[name].run(seed)


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
    b.check(verdict.requests - verdict.needed <= 30, f"{verdict.requests} requests instead of {verdict.needed}")


@scenario("A key that is wrong for a while stops everything and loses nothing.")
def key_wrong_for_a_while(b: Bench) -> None:
    status = b.chance.choice([401, 403])
    deliver(b, Fault(status=status, skip=b.chance.randrange(8), times=b.chance.randrange(1, 5)), runs=2, at_once=True)


@scenario("A server that says when to come back is not asked before.")
def retry_after_in_all_spellings(b: Bench) -> None:
    now = time.time()
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 2))
    asked = b.chance.choice(["1", "0", " 1 ", "1.5", "-3", "soon", stamp, "Thu, 01 Jan 1970 00:00:00 GMT", ""])
    status = b.chance.choice([429, 503])
    call = b.chance.choice(["initialize", "chunk_multi", "finalize"])
    (number,) = b.server.misbehave(Fault(call=call, status=status, headers={"Retry-After": asked}, times=1))
    deliver(b, points=25)
    requests = b.server.requests()
    first = next((request for request in requests if request.fault == number), None)
    if first is not None and asked.strip() == "1" and call != "chunk_multi":
        after = [request.time - first.time for request in requests if request.number > first.number]
        b.check(min(after, default=9) >= 0.99, f"asked again after {min(after, default=9):.2f} s, not 1 s")


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
    "A stream that the server closed after a silence goes on in a further one; each point is there once.", silence_s=0.4
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
    b.check(callback.drain(30.0), f"not drained: {_left(callback)}")
    b.judge(documents, forgiven=True)


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


@scenario("With 30 % of all requests failing everything arrives, for at most 1.6 times the requests.")
def thirty_percent_fail(b: Bench) -> None:
    deliver(b, *_weather(b, 0.3), amplification=None, points=b.chance.randrange(150, 400))
    b.result.counts["at 30 %: requests"] += b.result.verdict.requests
    b.result.counts["at 30 %: needed"] += b.result.verdict.needed


@scenario("A server that hangs or answers byte by byte is left when its time is over, and asked again.")
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
    b.check(not list(b.spool.glob("*/journal*")), "something is left in the spool")


@scenario("Killed at any moment, and killed again while it recovers: what was accepted is there once.")
def killed(b: Bench) -> None:
    story = b.story(runs=b.chance.randrange(1, 4), at_once=True)
    accepted, begun = _feed_and_kill(b, story, segment_bytes=b.chance.choice([None, 4096]))
    _kill_recoveries(b, b.chance.randrange(0, 4))
    _recovered(b, accepted, begun)


@scenario("Killed during an outage, and again while it recovers in bad weather: what was accepted is there once.")
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
    end = b.chance.choice(["exit", "close"])
    told = b.ended(b.child(story, end=end, drain_s=0.0 if end == "exit" else 20.0).wait())
    b.check(told.returned == len(documents), "it did not take all documents")
    if end == "exit":
        b.judge(documents)
    else:
        _recovered(b, documents, [])


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
