"""One damaged or repeated line of a ledger: the run arrives all the same, once, or waits for a person and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.ledger_format import Finalized
from atomscale_bluesky.spool.lines import checksummed, encode, payload_of
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
Cli = Callable[..., int]
POINTS = 35


@pytest.fixture
def cli(server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
    return lambda *arguments: main(list(arguments))


def interrupted(make_callback: MakeCallback, server: LocalServer, spool_dir: Path) -> Path:
    """The ledger of a run of which the third of four chunks is missing, and the last was taken."""
    server.misbehave(Fault(call="chunk_multi", chunk_index=2, status=503))
    return _left(make_callback, server, spool_dir, delivered=50)


def finished(make_callback: MakeCallback, server: LocalServer, spool_dir: Path) -> Path:
    """The ledger of a run that is finalized and was not moved into the history any more."""
    server.misbehave(Fault(call="finalize", status=503, applied=True))
    ledger = _left(make_callback, server, spool_dir, delivered=70)
    with ledger.open("ab") as file:
        file.write(checksummed(encode(Finalized(0, 1_760_000_000.0))) * 2)
    return ledger


def _left(make_callback: MakeCallback, server: LocalServer, spool_dir: Path, delivered: int) -> Path:
    with make_callback(exit_timeout_s=0) as callback:
        for name, doc in growth(points=POINTS):
            callback(name, doc)
        wait_until(lambda: callback.status().points.delivered == delivered)
        if delivered == 2 * POINTS:
            wait_until(lambda: server.streams()[0].status == "success")
        callback.close(timeout_s=1)
    server.behave()
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    return folder / "ledger.jsonl"


def flip(ledger: Path, kind: str, *, place: int = 40, every: bool = False, nth: int = 0) -> None:
    """Change one bit of the nth line of a kind, or of every line that is equal to it."""
    texts = ledger.read_bytes().split(b"\n")
    found = [i for i, text in enumerate(texts) if b'"kind":"%s"' % kind.encode() in text]
    chosen = found[nth]
    for i in [i for i in found if texts[i] == texts[chosen]] if every else [chosen]:
        text = bytearray(texts[i] + b"\n")
        text[place] ^= 1
        texts[i] = bytes(text[:-1])
        if place == -1:
            texts[i] = bytes(text)
    whole = b"\n".join(texts)
    ledger.write_bytes(whole.replace(b"\x0b\n", b"\x0b"))


def as_before(ledger: Path) -> None:
    """Leave each line once, as an earlier version wrote it."""
    ledger.write_bytes(b"".join(text + b"\n" for text in dict.fromkeys(ledger.read_bytes().split(b"\n")[:-1])))


def arrived_once(server: LocalServer, spool_dir: Path) -> None:
    assert [(stream.status, stream.points, stream.changed) for stream in server.streams()] == [("success", 70, 0)]
    assert held(server)["k0"] == [float(n) for n in range(POINTS)]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["lost"]) == (70, 0)


STATES = pytest.mark.parametrize("left", [interrupted, finished], ids=lambda left: left.__name__)
KINDS = ["opened", "initializing", "initialized", "tried", "confirmed", "finalizing", "finalized"]


@pytest.mark.parametrize("place", [3, 40, -1], ids=["checksum", "text", "newline"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_in_a_ledger_costs_nothing(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, kind: str, place: int
) -> None:
    left = finished if kind.startswith("final") else interrupted
    flip(left(make_callback, server, spool_dir), kind, place=place)

    assert make_callback().drain(timeout_s=20)

    arrived_once(server, spool_dir)


@pytest.mark.parametrize("where", ["behind it", "at the end"])
@STATES
def test_a_line_that_stands_in_a_ledger_again_changes_nothing(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    left: Callable[..., Path],
    where: str,
) -> None:
    ledger = left(make_callback, server, spool_dir)
    texts = list(dict.fromkeys(ledger.read_bytes().split(b"\n")[:-1]))
    if where == "behind it":
        ledger.write_bytes(b"".join((text + b"\n") * 3 for text in texts))
    else:
        ledger.write_bytes(b"".join(text + b"\n" for text in [*texts, *texts]))

    assert make_callback().drain(timeout_s=20)

    arrived_once(server, spool_dir)


# What is sure from the facts that follow, or can be done again without making anything double.
DERIVED = {
    interrupted: ["initializing", "tried", "confirmed"],
    finished: ["initializing", "confirmed", "finalizing", "finalized"],
}
UNKNOWN = {interrupted: ["opened", "initialized"], finished: ["opened", "initialized", "tried"]}


def gone_for_good(ledger: Path, kind: str) -> None:
    as_before(ledger)
    flip(ledger, kind, nth=1 if kind in {"tried", "confirmed"} else 0)


@pytest.mark.parametrize(("left", "kind"), [(left, kind) for left, kinds in DERIVED.items() for kind in kinds])
def test_a_run_arrives_once_when_what_is_damaged_in_its_ledger_can_be_derived(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, left: Callable[..., Path], kind: str
) -> None:
    gone_for_good(left(make_callback, server, spool_dir), kind)

    assert make_callback().drain(timeout_s=20)

    arrived_once(server, spool_dir)


@pytest.mark.parametrize(("left", "kind"), [(left, kind) for left, kinds in UNKNOWN.items() for kind in kinds])
def test_a_run_waits_for_a_person_when_what_is_damaged_in_its_ledger_is_unknown(
    make_callback: MakeCallback,
    server: LocalServer,
    spool_dir: Path,
    left: Callable[..., Path],
    kind: str,
    cli: Cli,
) -> None:
    ledger = left(make_callback, server, spool_dir)
    gone_for_good(ledger, kind)
    before = server.streams()
    callback = make_callback()

    assert not callback.drain(timeout_s=20)
    (run,) = callback.status()
    number = next(i for i, text in enumerate(ledger.read_bytes().split(b"\n"), start=1) if payload_of(text) is None)
    assert run.state == "parked"
    assert f"line {number} of its ledger is damaged" in (run.problem or "")
    assert "`move`" in (run.problem or "")
    assert server.streams() == before  # nothing was sent
    assert segment_path(ledger.parent, 1).exists()
    assert cli("status") == 1
    assert cli("retry", run.run_uid[:8]) == 0
    assert callback.close(timeout_s=5) is not None
    assert not make_callback().drain(timeout_s=10)
    assert server.streams() == before

    assert cli("move", run.run_uid[:8], "--to", server.url, "--yes") == 0

    wait_until(lambda: Spool(spool_dir).history.entries())
    *_, again = server.streams()
    assert (again.status, again.points, again.changed) == ("success", 70, 0)
    assert list(server.points(again.data_id)["k0"].values) == [float(n) for n in range(POINTS)]
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["delivered"], entry["data_ids"]) == (70, [again.data_id])


def test_a_damaged_ledger_holds_up_no_other_run(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(interrupted(make_callback, server, spool_dir), "initialized", every=True)
    callback = make_callback()
    for name, doc in growth(points=POINTS):
        callback(name, doc)

    wait_until(lambda: [stream.status for stream in server.streams()] == ["stream_active", "success"])

    wait_until(lambda: [run.state for run in callback.status()] == ["parked"])
    assert caplog.text.count("of its ledger is damaged") == 1


def test_a_run_whose_shift_of_times_is_damaged_goes_on_with_no_other_one(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    server.misbehave(Fault(call="chunk_multi", chunk_index=2, status=503))
    with make_callback(exit_timeout_s=0, clock="reference") as callback:
        for name, doc in growth(points=POINTS):
            callback(name, doc)
        wait_until(lambda: callback.status().points.delivered == 50)
        callback.close(timeout_s=1)
    server.behave()
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    flip(folder / "ledger.jsonl", "clock_fixed", every=True)

    callback = make_callback()
    assert not callback.drain(timeout_s=10)

    (run,) = callback.status()
    assert run.state == "parked"
    assert "tells the shift of its times" in (run.problem or "")
    assert [stream.points for stream in server.streams()] == [50]


def test_a_parked_run_that_was_moved_is_not_moved_once_more_by_a_damaged_line(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, cli: Cli
) -> None:
    with make_callback(endpoint="http://127.0.0.1:9", exit_timeout_s=0) as callback:
        for name, doc in growth(points=POINTS):
            callback(name, doc)
        callback.close(timeout_s=0)
    (folder,) = [path for path in spool_dir.iterdir() if path.is_dir()]
    server.misbehave(Fault(call="chunk_multi", chunk_index=2, status=503))
    uid = make_callback(offline=True).status()[0].run_uid
    assert cli("move", uid[:8], "--to", server.url, "--yes") == 0
    with make_callback(exit_timeout_s=0) as callback:
        wait_until(lambda: callback.status().points.delivered == 50)
        callback.close(timeout_s=1)
    server.behave()
    flip(folder / "ledger.jsonl", "moved", every=True)

    callback = make_callback()
    assert not callback.drain(timeout_s=10)

    assert [stream.points for stream in server.streams()] == [50]  # and not the whole run again
    assert [run.state for run in callback.status()] == ["parked"]
    assert cli("move", uid[:8], "--to", server.url, "--yes") == 0
    wait_until(lambda: [stream.status for stream in server.streams()] == ["stream_active", "success"])
