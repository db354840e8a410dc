"""One task in, the requests that it takes, what came of it out: over HTTP to the local server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator

import pytest
from chunks import chunk_of
from waiting import wait_until

from atomscale_bluesky import Settings
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.api.wire import push_bytes
from atomscale_bluesky.delivery.refusals import CATALOGUE_ATTEMPTS
from atomscale_bluesky.delivery.task_runner import Outcome, perform
from atomscale_bluesky.delivery.tasks.chunk_requests import Sent
from atomscale_bluesky.delivery.tasks.finalize import Finalize
from atomscale_bluesky.delivery.tasks.initialize import Initialize
from atomscale_bluesky.delivery.tasks.measure_clock import CLOCK_ATTEMPTS, MeasureClock
from atomscale_bluesky.delivery.tasks.push import Push
from atomscale_bluesky.delivery.tasks.work import ServerFacts
from atomscale_bluesky.delivery.unfinished_tasks import Task
from atomscale_bluesky.errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from atomscale_bluesky.model.chunk import Chunk, Column
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import Fault, LocalServer

T0 = 1_760_000_000.0
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key))
    yield client
    client.close()


LABEL = "growth [b7c2e9f1-0badcafe]"


def initializing(*, may_exist: bool = False) -> Task:
    return Task(Initialize(0, LABEL, Links(synth_source_id=42), 4, "metrology", may_exist))


def finalizing(data_id: str, *, may_be_closed: bool = False, looks: int = 0) -> Task:
    return Task(Finalize(0, LABEL, data_id, "metrology", may_be_closed, looks))


def measuring(data_id: str, *, attempts: int = 0) -> Task:
    return Task(MeasureClock(0, LABEL, data_id), attempts)


def pushing(data_id: str, chunk: Chunk, apart: frozenset[str] = frozenset()) -> Task:
    return Task(Push(0, LABEL, data_id, "metrology", 4, chunk, apart))


def chunk(names: Iterable[str], index: int = 0) -> Chunk:
    columns = tuple(Column(name, None, (0.0, 1.0, 2.0, float(place))) for place, name in enumerate(names))
    return chunk_of(index, [T0 + index * 4 + n for n in range(4)], columns, first_row=index * 4)


def initialize(client: Client) -> str:
    outcome = perform(client, initializing(), ServerFacts())
    assert outcome.error is None
    return outcome.result


def push(
    client: Client,
    data_id: str,
    names: Iterable[str],
    server_facts: ServerFacts | None = None,
    apart: frozenset[str] = frozenset(),
) -> Outcome:
    return perform(client, pushing(data_id, chunk(names), apart), server_facts or ServerFacts())


def sent(outcome: Outcome) -> Sent:
    assert outcome.error is None
    return outcome.result


def calls(server: LocalServer) -> list[str]:
    return [request.call for request in server.requests()]


def test_a_stream_that_may_exist_is_looked_for_before_it_is_made(client: Client, server: LocalServer) -> None:
    first = perform(client, initializing(may_exist=True), ServerFacts())
    again = perform(client, initializing(may_exist=True), ServerFacts())

    assert first.result == again.result == server.streams()[0].data_id
    assert calls(server) == ["catalogue", "initialize", "catalogue"]
    assert initialize(client) != first.result  # and is made without a look where it cannot exist
    assert len(server.streams()) == 2


def test_finalizing_what_is_finalized_is_done(
    client: Client, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data_id = initialize(client)
    push(client, data_id, "ab")

    assert [perform(client, finalizing(data_id), ServerFacts()).error for _ in range(2)] == [None, None]
    assert server.streams()[0].status == "success"
    assert caplog.text == ""


def test_finalizing_what_is_open_and_refused_or_not_there_is_refused(client: Client, server: LocalServer) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="finalize", status=422, times=1))

    for where in (data_id, NOBODY):
        assert isinstance(perform(client, finalizing(where), ServerFacts()).error, ApiRefusedError)


@pytest.mark.parametrize("shown", [[], ["streaming"]], ids=["missing", "open"])
def test_a_finalize_that_may_be_done_is_refused_only_after_the_catalogue_was_asked_several_times(
    client: Client, server: LocalServer, shown: list[str]
) -> None:
    data_id = initialize(client)
    entries = [{"data_id": data_id, "name": LABEL, "status": status} for status in shown]
    server.misbehave(Fault(call="finalize", status=409), Fault(call="catalogue", body=json.dumps(entries)))

    def attempt(looks: int) -> Outcome:
        return perform(client, finalizing(data_id, may_be_closed=True, looks=looks), ServerFacts())

    for looks in range(CATALOGUE_ATTEMPTS - 1):
        again = attempt(looks)
        assert again.error is None
        assert isinstance(again.result, ApiRefusedError)
    assert isinstance(attempt(CATALOGUE_ATTEMPTS - 1).error, ApiRefusedError)


def test_finalizing_a_stream_that_the_server_closed_logs_that_it_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    with LocalServer(control=True, silence_s=1.0) as server:
        client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key))
        data_id = initialize(client)
        push(client, data_id, "a")
        wait_until(lambda: server.streams()[0].status == "stream_error")
        assert perform(client, finalizing(data_id), ServerFacts()).error is None
        assert "as stream_error before it was finalized; the stream is complete" in caplog.text

        late = sent(perform(client, pushing(data_id, chunk("ab", 1)), ServerFacts()))
        assert (late.closed, late.confirmed, set(late.refused)) == (True, (), {"a", "b"})
        assert calls(server)[-3:] == ["chunk_multi", "catalogue", "catalogue"]  # and not one by one
        client.close()


@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_refused_chunk_keeps_its_own_reason_when_the_catalogue_is_refused_too(
    client: Client, server: LocalServer, status: int
) -> None:
    data_id = initialize(client)
    server.misbehave(
        Fault(call=("chunk", "chunk_multi"), channel="b", status=422, body='{"detail":"out of range"}'),
        Fault(call="catalogue", status=status, body='{"detail":"no rights"}'),
    )

    alone = sent(push(client, data_id, "b"))
    assert (alone.closed, alone.confirmed) == (False, ())
    assert "out of range" in str(alone.refused["b"])
    among = sent(push(client, data_id, "abc"))
    assert (among.closed, among.confirmed) == (False, ("a", "c"))
    assert "out of range" in str(among.refused["b"])


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("may_be_closed", [False, True])
def test_a_refused_finalize_keeps_its_own_reason_when_the_catalogue_is_refused_too(
    client: Client, server: LocalServer, status: int, may_be_closed: bool
) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="finalize", status=422), Fault(call="catalogue", status=status))

    outcome = perform(client, finalizing(data_id, may_be_closed=may_be_closed), ServerFacts())

    assert isinstance(outcome.error, ApiRefusedError)
    assert "finalize was answered 422" in str(outcome.error)


def test_a_refusal_counts_in_the_end_when_the_catalogue_never_answers(client: Client, server: LocalServer) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="chunk_multi", status=422), Fault(call="catalogue", status=503))
    task = pushing(data_id, chunk("a"))

    for _ in range(CATALOGUE_ATTEMPTS - 1):  # it may be closed, so it is asked again
        failed = perform(client, task, ServerFacts())
        assert isinstance(failed.error, ApiUnavailableError)
        assert failed.unexplained
        task.unexplained += 1
    found = sent(perform(client, task, ServerFacts()))

    assert (found.closed, set(found.refused)) == (False, {"a"})


@pytest.mark.parametrize(
    "answer",
    [
        Fault(call="catalogue", status=403),
        Fault(call="catalogue", status=404),
        Fault(call="catalogue", body='[{"data_id": "another", "notes": "%s"}]' % ("x" * 2**19)),
    ],
)
def test_a_stream_that_may_exist_is_made_again_when_the_catalogue_does_not_tell(
    client: Client, server: LocalServer, answer: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(answer)

    outcome = perform(client, initializing(may_exist=True), ServerFacts())

    assert (outcome.error, outcome.result) == (None, server.streams()[0].data_id)
    assert "the catalogue gave no answer" in caplog.text


def test_a_refused_key_is_not_logged_as_a_stream_that_may_be_there_twice(
    client: Client, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(status=401))
    outcome = perform(client, initializing(may_exist=True), ServerFacts())

    assert isinstance(outcome.error, ApiKeyError)
    assert "may be left there" not in caplog.text


def test_all_channels_go_in_one_request(client: Client, server: LocalServer) -> None:
    found = sent(push(client, initialize(client), "abc"))

    assert (found.confirmed, found.refused, found.closed) == (("a", "b", "c"), {}, False)
    assert calls(server) == ["initialize", "chunk_multi"]


@pytest.mark.parametrize("refused", ["a", "d", "h", "ah", "cde"])
def test_refused_channels_are_found_by_halves_and_the_others_go_through(
    client: Client, server: LocalServer, refused: str
) -> None:
    data_id = initialize(client)
    server.misbehave(*(Fault(call=("chunk", "chunk_multi"), channel=name, status=422) for name in refused))

    found = sent(push(client, data_id, "abcdefgh"))

    assert (set(found.refused), found.closed) == (set(refused), False)
    assert found.confirmed == tuple(name for name in "abcdefgh" if name not in refused)
    assert set(server.points(data_id)) == set("abcdefgh") - set(refused)


def test_channels_that_were_refused_before_are_pushed_apart_from_the_others(
    client: Client, server: LocalServer
) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call=("chunk", "chunk_multi"), channel="b", status=422))

    found = sent(push(client, data_id, "abc", apart=frozenset("b")))

    assert (found.confirmed, set(found.refused)) == (("a", "c"), {"b"})
    assert [request.channels for request in server.requests()[1:]] == [("a", "c"), ("b",)]
    alone = sent(push(client, data_id, "b", apart=frozenset("b")))
    assert (alone.confirmed, set(alone.refused)) == ((), {"b"})
    assert calls(server)[-2:] == ["chunk", "catalogue"]  # all that it has is refused: is the stream closed?


@pytest.mark.parametrize(("status", "kind"), [(503, ApiUnavailableError), (401, ApiKeyError), (403, ApiKeyError)])
def test_a_failure_in_the_middle_of_a_search_ends_it_and_what_was_taken_before_counts(
    client: Client, server: LocalServer, status: int, kind: type[ApiError]
) -> None:
    data_id = initialize(client)
    server.misbehave(
        Fault(call="chunk_multi", channel="h", status=422, times=1), Fault(call="chunk_multi", skip=1, status=status)
    )

    outcome = push(client, data_id, "abcdefgh")

    assert isinstance(outcome.error, kind)
    assert outcome.result.confirmed == ("a", "b", "c", "d")
    assert calls(server).count("chunk_multi") == 3  # and no quarter is tried


@pytest.mark.parametrize(("status", "kind"), [(503, ApiUnavailableError), (401, ApiKeyError), (403, ApiKeyError)])
def test_a_failure_among_channels_that_go_one_by_one_ends_them_and_what_was_taken_before_counts(
    client: Client, server: LocalServer, status: int, kind: type[ApiError]
) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="chunk_multi", status=404), Fault(call="chunk", skip=2, status=status))

    outcome = push(client, data_id, "abcd")

    assert isinstance(outcome.error, kind)
    assert outcome.result.confirmed == ("a", "b")
    assert calls(server)[1:] == ["chunk_multi", "chunk", "chunk", "chunk"]


@pytest.mark.parametrize(("status", "kind"), [(503, ApiUnavailableError), (401, ApiKeyError)])
def test_after_a_failure_of_the_others_channels_refused_before_are_not_sent(
    client: Client, server: LocalServer, status: int, kind: type[ApiError]
) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="chunk_multi", status=status))

    outcome = push(client, data_id, "abc", apart=frozenset("b"))

    assert isinstance(outcome.error, kind)
    assert outcome.result.confirmed == ()
    assert calls(server)[1:] == ["chunk_multi"]


@pytest.mark.parametrize("status", [404, 405])
def test_a_family_without_chunk_multi_gets_channel_by_channel_from_then_on(
    client: Client, server: LocalServer, status: int
) -> None:
    data_id, server_facts = initialize(client), ServerFacts()
    server.misbehave(Fault(call="chunk_multi", status=status))

    for _ in range(2):
        assert sent(push(client, data_id, "abc", server_facts)).confirmed == ("a", "b", "c")

    assert calls(server)[1:] == ["chunk_multi"] + ["chunk"] * 6


@pytest.mark.parametrize("status", [404, 405])
def test_a_chunk_multi_that_is_missing_once_is_used_for_the_next_chunk_if_it_has_worked(
    client: Client, server: LocalServer, status: int
) -> None:
    data_id, server_facts = initialize(client), ServerFacts()
    server.misbehave(Fault(call="chunk_multi", status=status, skip=1, times=1))

    for _ in range(3):
        assert sent(push(client, data_id, "abc", server_facts)).confirmed == ("a", "b", "c")

    assert calls(server)[1:] == ["chunk_multi", "chunk_multi", "chunk", "chunk", "chunk", "chunk_multi"]


def test_a_missing_chunk_multi_is_asked_for_again_after_ten_minutes(client: Client, server: LocalServer) -> None:
    now = [0.0]
    data_id, server_facts = initialize(client), ServerFacts(monotonic=lambda: now[0])
    server.misbehave(Fault(call="chunk_multi", status=404, times=2))

    for now[0] in (0.0, 599.0, 601.0, 1200.0, 1202.0):
        assert sent(push(client, data_id, "ab", server_facts)).confirmed == ("a", "b")

    asked = [["chunk_multi", "chunk", "chunk"], ["chunk", "chunk"]] * 2 + [["chunk_multi"]]
    assert calls(server)[1:] == [call for chunk in asked for call in chunk]


def test_a_stream_that_is_gone_says_nothing_about_chunk_multi(client: Client, server: LocalServer) -> None:
    server_facts = ServerFacts()

    found = sent(push(client, NOBODY, "ab", server_facts))

    assert (found.confirmed, set(found.refused)) == ((), {"a", "b"})
    assert sent(push(client, initialize(client), "ab", server_facts)).confirmed == ("a", "b")
    assert calls(server)[-1] == "chunk_multi"


def test_a_chunk_larger_than_the_limit_goes_in_parts_without_being_refused_first(server: LocalServer) -> None:
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key, max_body_bytes=10_000))
    data_id = initialize(client)

    names = tuple(f"channel {n:03}" for n in range(300))

    found = sent(push(client, data_id, names))

    assert found.confirmed == names
    assert {request.status for request in server.requests("chunk_multi")} == {200}
    assert all(request.size <= 10_000 for request in server.requests("chunk_multi"))
    client.close()


def test_a_chunk_of_exactly_the_limit_goes_in_one_request(server: LocalServer) -> None:
    names = tuple(f"channel {n:03}" for n in range(150))
    limit = push_bytes(chunk(names))
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key, max_body_bytes=limit))
    data_id = initialize(client)

    assert sent(push(client, data_id, names)).confirmed == names
    assert calls(server) == ["initialize", "chunk_multi"]
    assert sent(push(client, data_id, (*names, "one more"))).confirmed == (*names, "one more")
    assert calls(server)[2:] == ["chunk_multi", "chunk_multi"]
    client.close()


def test_the_clock_is_asked_for_several_times_and_then_done_without_if_the_server_answers_otherwise(
    client: Client, server: LocalServer
) -> None:
    data_id = initialize(client)
    measured = perform(client, measuring(data_id), ServerFacts())
    assert measured.error is None
    assert measured.result is not None
    assert abs(measured.result.offset_s) < 60
    server.misbehave(Fault(call="time", status=503))

    for attempts in range(CLOCK_ATTEMPTS - 1):
        failed = perform(client, measuring(data_id, attempts=attempts), ServerFacts())
        assert isinstance(failed.error, ApiUnavailableError)
    without = perform(client, measuring(data_id, attempts=CLOCK_ATTEMPTS - 1), ServerFacts())
    assert (without.error, without.result) == (None, None)

    for status in (403, 404):  # refused is an answer, too
        server.misbehave(Fault(call="catalogue", status=status, times=1))
        without = perform(client, measuring(data_id, attempts=CLOCK_ATTEMPTS - 1), ServerFacts())
        assert (without.error, without.result) == (None, None)

    server.misbehave(Fault(call="catalogue", status=503))
    down = perform(client, measuring(data_id, attempts=CLOCK_ATTEMPTS - 1), ServerFacts())
    assert isinstance(down.error, ApiUnavailableError)


def test_a_server_without_a_clock_is_done_without_at_once(client: Client, server: LocalServer) -> None:
    data_id = initialize(client)
    server.misbehave(Fault(call="time", status=404))

    outcome = perform(client, measuring(data_id), ServerFacts())

    assert (outcome.error, outcome.result) == (None, None)


def test_a_wrong_key_and_a_mistake_of_our_own_are_both_part_of_the_outcome(
    client: Client, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(status=401))
    assert isinstance(perform(client, initializing(), ServerFacts()).error, ApiKeyError)

    broken = pushing("id", chunk_of(0, (), [Column("a", None, None)]))
    outcome = perform(client, broken, ServerFacts())

    assert isinstance(outcome.error, ApiUnavailableError)
    assert "failed unexpectedly" in caplog.text
