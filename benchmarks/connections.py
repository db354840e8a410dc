"""How the number of connections settles: a simulation of servers of several kinds, in no real time.

The uploader's own rule and its own pauses run against a server that is a few lines of arithmetic. Each server is
measured with the rule and with fixed numbers of connections, for the same simulated minute and the same seeds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from atomscale_bluesky.delivery.backoff import Pause
from atomscale_bluesky.delivery.connection_limit import ConnectionLimit
from atomscale_bluesky.errors import ApiUnavailableError

from .report import Report, Table, percentile

MAX_CONNECTIONS, SECONDS, SETTLED_S = 32, 120.0, 5.0
LATE = 0.54  # from then on of the whole time: after the uploaders have measured together
BODY_BYTES = 20_000
FIXED = (8, 32)


@dataclass
class Server:
    """Answers each request after a time, with a status. `under_way` counts this request, too."""

    answer: Callable[[Server, float], tuple[float, int]]
    retry_after_s: float | None = None
    under_way: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(1))
    free_at: list[float] = field(default_factory=list)  # of each of its workers
    tokens: float = float("inf")  # a bucket that is full at first
    tokens_at: float = 0.0


def far(delay_s: float) -> Server:
    """A server that is far away, and takes whatever comes."""
    return Server(lambda server, now: (delay_s * server.random.uniform(1.0, 1.1), 200))


def uneven() -> Server:
    """A link on which some answers come late: 20 ms, and 40 ms more in the mean."""
    return Server(lambda server, now: (0.02 + server.random.expovariate(1 / 0.04), 200))


def workers(number: int = 12) -> Server:
    """A server with some workers, each of which takes 50 ms for a request. Further requests wait in a queue."""

    def answer(server: Server, now: float) -> tuple[float, int]:
        begin = max(now, heapq.heappop(server.free_at))
        done = begin + 0.05 * server.random.uniform(0.9, 1.1)
        heapq.heappush(server.free_at, done)
        return done - now, 200

    return Server(answer, free_at=[0.0] * number)


def thrashing() -> Server:
    """A server that gets less done the more it has to do: most with 10 requests under way."""
    return Server(
        lambda server, now: (0.02 * (1 + (server.under_way / 10) ** 2) * server.random.uniform(0.9, 1.1), 200)
    )


def limited(per_s: float, retry_after_s: float | None) -> Server:
    """A server that answers 429 above a rate, in bursts of a tenth of a second and more."""

    def answer(server: Server, now: float) -> tuple[float, int]:
        server.tokens = min(per_s / 10, server.tokens + per_s * (now - server.tokens_at))
        server.tokens_at = now
        if server.tokens < 1:
            return 0.02, 429
        server.tokens -= 1
        return 0.02 * server.random.uniform(1.0, 1.1), 200

    return Server(answer, retry_after_s)


def full(most: int) -> Server:
    """A server that answers 503 at once while it has enough to do."""
    return Server(
        lambda server, now: (0.005, 503) if server.under_way > most else (0.05 * server.random.uniform(1.0, 1.1), 200)
    )


def failing(share: float) -> Server:
    """A server that fails at random."""
    return Server(
        lambda server, now: (
            0.02 * server.random.uniform(1.0, 1.1),
            503 if server.random.random() < share else 200,
        )
    )


SERVERS: dict[str, Callable[[], Server]] = {
    "answers after 20 ms": lambda: far(0.02),
    "answers after 100 ms": lambda: far(0.1),
    "uneven link, 20 to 200 ms": uneven,
    "12 workers, 50 ms each": workers,
    "3 uploaders, 12 workers": workers,
    "slower with load, best with 10": thrashing,
    "3 uploaders, slower with load": thrashing,
    "429 above 300/s": lambda: limited(300, None),
    "429 above 300/s, Retry-After: 1": lambda: limited(300, 1.0),
    "429 above 100/s": lambda: limited(100, None),
    "fails at random, 1 in 100": lambda: failing(0.01),
    "fails at random, 1 in 20": lambda: failing(0.05),
    "503 with more than 12 at a time": lambda: full(12),
    "fails at random, 1 in 5": lambda: failing(0.2),
    "fails at random, 1 in 10": lambda: failing(0.1),
}


class Uploader:
    """What of an uploader matters here: how many requests leave, and when."""

    def __init__(self, fixed: int | None, seed: int) -> None:
        self.limit = ConnectionLimit(MAX_CONNECTIONS)
        self.pause = Pause(random.Random(seed).random)
        self.fixed = fixed
        self.under_way = 0
        self.taken: list[float] = []
        self.refused: list[float] = []
        self.numbers: list[tuple[float, int]] = []

    @property
    def permitted(self) -> int:
        """How many requests may be under way."""
        return self.fixed or self.limit.number

    def may_send(self, now: float) -> bool:
        """Return True if a request may leave."""
        return self.pause.is_over(now) and self.under_way < (1 if self.pause.failures else self.permitted)

    def came_back(self, now: float, sent: float, status: int, retry_after_s: float | None) -> None:
        """Take an answer."""
        in_use = self.under_way >= self.permitted
        self.under_way -= 1
        if status == 200:
            self.taken.append(now)
            self.pause.note_success()
            self.limit.note_answer(now, now - sent, BODY_BYTES, in_use=in_use)
        else:
            self.refused.append(now)
            self.pause.note_failure(now, ApiUnavailableError("", status=status, retry_after_s=retry_after_s))
            overloaded = status == 429 or retry_after_s is not None
            self.limit.note_failure(now, now - sent, overloaded=overloaded)
        self.numbers.append((now, self.permitted))


def simulate(server: Server, uploaders: list[Uploader], seconds: float) -> None:
    """Let the uploaders send without end. The first begins at once, each other one 10 s after the one before it."""
    events: list[tuple[float, int, Uploader, float, int]] = []  # when, number, whose, sent, status; 0: just try
    count = 0

    def at(when: float, uploader: Uploader, sent: float = 0.0, status: int = 0) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, uploader, sent, status))

    for number, uploader in enumerate(uploaders):
        at(10.0 * number, uploader)
    while events:
        now, _, uploader, sent, status = heapq.heappop(events)
        if now > seconds:
            return
        if status:
            server.under_way -= 1
            uploader.came_back(now, sent, status, None if status == 200 else server.retry_after_s)
            if not uploader.pause.is_over(now):
                at(uploader.pause.until, uploader)
        while uploader.may_send(now):
            uploader.under_way += 1
            server.under_way += 1
            took_s, status = server.answer(server, now)
            at(now + took_s, uploader, now, status)


def measure(*, short: bool, rounds: int | None, with_peers: bool = True) -> Report:
    """Simulate each server with the rule, and with fixed numbers."""
    seconds = 10.0 if short else SECONDS
    report = Report(f"How the number of connections settles: a simulation of {seconds:g} s")
    table = Table(
        f"AtomscaleCallback's rule, at most {MAX_CONNECTIONS} connections, beside fixed numbers of connections",
        [
            "server", "number after 1 s", "5 s", f"{LATE * seconds:.0f} to {seconds:g} s",
            "taken/s", *(f"fixed {n}" for n in FIXED),
            "refused/s", *(f"fixed {n}, refused" for n in FIXED),
        ],
    )  # fmt: skip
    for name, make in SERVERS.items():
        several = 3 if name.startswith("3 ") else 1
        found: dict[int | None, list[Uploader]] = {}
        for fixed in (None, *FIXED):
            found[fixed] = [Uploader(fixed, seed) for seed in range(several)]
            simulate(make(), found[fixed], seconds)
        numbers = [uploader.numbers for uploader in found[None]]
        late = [[number for when, number in one if when >= LATE * seconds] for one in numbers]
        table.rows.append(
            [
                name,
                _at(numbers[0], 1.0),
                _at(numbers[0], SETTLED_S),
                ", ".join(f"{percentile(one, 0.05)}-{percentile(one, 0.95)}" for one in late if one),
                *(_rate(found[fixed], seconds, refused=False) for fixed in (None, *FIXED)),
                *(_rate(found[fixed], seconds, refused=True) for fixed in (None, *FIXED)),
            ]
        )
    report.tables.append(table)
    report.notes.append(
        f"taken and refused: of all uploaders together, from {SETTLED_S:g} s on; the numbers of the last part: nine "
        "tenths of the answers came under them"
    )
    return report


def _at(numbers: list[tuple[float, int]], when: float) -> int:
    return [number for at, number in numbers if at <= when][-1]


def _rate(uploaders: list[Uploader], seconds: float, *, refused: bool) -> float:
    times = [when for one in uploaders for when in (one.refused if refused else one.taken)]
    return sum(when >= SETTLED_S for when in times) / (seconds - SETTLED_S)
