"""Runs that wait are moved to another endpoint, on a person's word and not otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def new() -> Iterator[LocalServer]:
    """The endpoint that runs are moved to; `server` is the one that they were spooled for."""
    with LocalServer(control=True) as other:
        yield other


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spool_dir: Path) -> Say:
    """Run a command for an endpoint; its exit code, what it said, and its complaints."""

    def run(server: LocalServer, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
        monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
        monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
        monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")
        capsys.readouterr()
        code = main(list(arguments))
        said, complaint = capsys.readouterr()
        return code, " ".join(said.replace("\N{NO-BREAK SPACE}", "").split()), complaint

    return run


def taken(callback: AtomscaleCallback, points: int = 35) -> str:
    """A whole run, fed; its uid."""
    documents = list(growth(points))
    for name, doc in documents:
        callback(name, doc)
    return documents[0][1]["uid"]


def taken_in_part(make_callback: MakeCallback, server: LocalServer) -> str:
    """A run of which the endpoint it was spooled for has the first two chunks only; its uid."""
    server.misbehave(*(Fault(call="chunk_multi", chunk_index=index, status=503) for index in (2, 3)))
    with make_callback(exit_timeout_s=0) as callback:
        uid = taken(callback)
        wait_until(lambda: callback.status().points.delivered == 40)
        callback.close(timeout_s=0)
    return uid


def test_a_run_that_waits_goes_to_the_endpoint_it_is_moved_to(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)

    code, said, _ = say(new, "move", uid[:8], "--to", new.url, "--yes")
    assert code == 0
    assert f"goes to {new.url}, by the next session, or now by `atomscale-bluesky upload`" in said

    assert say(new, "upload")[0] == 0
    (stream,) = new.streams()
    assert (stream.status, stream.points) == ("success", 70)
    assert server.requests() == []


def test_a_moved_run_arrives_whole_and_what_the_old_endpoint_has_stays_there(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say, spool_dir: Path
) -> None:
    uid = taken_in_part(make_callback, server)

    assert say(new, "move", uid[:8], "--to", new.url, "--yes")[0] == 0
    asked = len(server.requests())
    assert say(new, "upload")[0] == 0

    (there,) = new.streams()
    assert (there.status, there.points, there.doubled) == ("success", 70, 0)
    assert held(new)["k0"] == [float(i) for i in range(35)]
    (left,) = server.streams()
    assert (left.status, left.points) == ("stream_active", 40)
    assert len(server.requests()) == asked
    (entry,) = Spool(spool_dir).history.entries()
    assert (entry["endpoint"], entry["data_ids"], entry["delivered"]) == (new.url, [there.data_id], 70)


def test_the_account_of_a_moved_run_begins_again(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    uid = taken_in_part(make_callback, server)
    assert "70 seen = 40 delivered + 30 waiting" in say(server, "status")[1]

    say(new, "move", uid[:8], "--to", new.url, "--yes")
    new.unreachable()
    say(new, "upload", "--timeout", "1")

    assert "70 seen = 0 delivered + 70 waiting" in say(new, "status")[1]
    new.reachable()
    assert say(new, "upload")[0] == 0
    assert [(stream.status, stream.points) for stream in new.streams()] == [("success", 70)]


def test_a_session_for_the_old_endpoint_releases_a_moved_run(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    server.unreachable()
    callback = make_callback()
    uid = taken(callback)
    wait_until(lambda: callback.status().last_error)

    _, said, _ = say(new, "move", uid[:8], "--to", new.url, "--yes")
    assert f"goes to {new.url}, by the next session, or now by `atomscale-bluesky upload`" in said
    wait_until(lambda: f"was moved to {new.url}" in caplog.text)

    assert make_callback(endpoint=new.url, api_key=new.api_key).drain(timeout_s=20)
    server.reachable()
    assert [(stream.status, stream.points) for stream in new.streams()] == [("success", 70)]
    assert callback.drain(timeout_s=20)
    assert server.streams() == []


def test_a_run_that_is_moved_while_its_answers_are_under_way_goes_over_whole(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    server.misbehave(Fault(call="chunk_multi", delay_s=4.0, skip=1))
    callback = make_callback()
    uid = taken(callback)
    wait_until(lambda: server.requests("chunk_multi"))

    say(new, "move", uid[:8], "--to", new.url, "--yes")

    assert make_callback(endpoint=new.url, api_key=new.api_key).drain(timeout_s=30)
    wait_until(lambda: [stream.points for stream in new.streams()] == [70], 30)


def test_a_run_is_moved_back_and_forth_as_often_as_one_likes(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)
    for to in (new, server, new, server):
        assert say(to, "move", uid[:8], "--to", to.url, "--yes")[0] == 0

    assert say(new, "upload")[0] == 1
    assert say(server, "upload")[0] == 0
    assert [stream.points for stream in server.streams()] == [70]
    assert new.streams() == []


@pytest.mark.parametrize("first", ["edit", "move", "retry"])
def test_other_orders_before_and_after_a_move_are_obeyed_too(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say, first: str
) -> None:
    uid = taken_in_part(make_callback, server)
    edit, move = ("edit", uid[:8], "--tag", "moved"), ("move", uid[:8], "--to", new.url, "--yes")
    for order in {"edit": (edit, move), "move": (move, edit), "retry": (("retry", uid[:8]), move, edit)}[first]:
        assert say(new, *order)[0] == 0

    assert say(new, "upload")[0] == 0
    (stream,) = new.streams()
    assert (stream.status, stream.points) == ("success", 70)
    assert "moved" in stream.tags


def test_a_run_that_was_moved_is_not_in_atomscale_yet_so_its_instrument_may_be_edited(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    uid = taken_in_part(make_callback, server)
    assert "is in Atomscale already" in say(server, "edit", uid[:8], "--synth-source-id", "7")[2]

    say(new, "move", uid[:8], "--to", new.url, "--yes")
    assert "70 seen = 0 delivered + 70 waiting" in say(new, "status")[1]
    assert say(new, "edit", uid[:8], "--synth-source-id", "7")[0] == 0
    assert say(new, "upload")[0] == 0
    assert [(stream.synth_source_id, stream.points) for stream in new.streams()] == [(7, 70)]


def test_status_names_the_endpoint_of_a_run_that_waits_for_another_one(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)

    assert f"endpoint {server.url}, not {new.url}" in say(new, "status")[1]
    assert f"{server.url}, not" not in say(server, "status")[1]
    say(new, "move", uid[:8], "--to", new.url, "--yes")
    assert f"not {new.url}" not in say(new, "status")[1]


def test_a_run_is_moved_only_after_the_question_was_answered(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = taken_in_part(make_callback, server)
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        raise SystemExit(1)  # as `abort=True` ends it

    monkeypatch.setattr("click.confirm", confirm)
    with pytest.raises(SystemExit):
        say(new, "move", uid[:8], "--to", new.url)

    (question,) = asked
    assert question.startswith(f"Send all of run {uid[:8]} (grow ")
    assert question.endswith(f"to {new.url}, beside the 40 points that {server.url} has?")
    assert f"endpoint {server.url}" in say(new, "status")[1]


@pytest.mark.parametrize(
    ("to", "complaint"),
    [
        ("http://atomscale.invalid", "plain http"),
        ("not an origin", "endpoint"),
        ("https://user:secret@atomscale.invalid", "endpoint"),
    ],
)
def test_a_run_is_moved_to_no_endpoint_that_could_not_be_set(
    make_callback: MakeCallback, server: LocalServer, say: Say, to: str, complaint: str
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)

    code, _, complained = say(server, "move", uid[:8], "--to", to, "--yes")

    assert code != 0
    assert complaint in complained
    assert f"{server.url}, not" not in say(server, "status")[1]


def test_a_run_that_goes_on_is_for_that_endpoint_already_or_is_not_there_is_not_moved(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, say: Say
) -> None:
    callback = make_callback(offline=True)
    documents = list(growth(5))
    for name, doc in documents[:-1]:
        callback(name, doc)
    uid = documents[0][1]["uid"][:8]

    assert "goes on; move it when it has stopped" in say(new, "move", uid, "--to", new.url, "--yes")[2]
    callback(*documents[-1])
    callback.close()
    assert f"is for {server.url} already" in say(new, "move", uid, "--to", server.url, "--yes")[2]
    assert "no run in the spool begins with 'nothing'" in say(new, "move", "nothing", "--to", new.url, "--yes")[2]


def test_a_run_whose_move_is_damaged_is_delivered_where_its_ledger_says(
    make_callback: MakeCallback, server: LocalServer, new: LocalServer, spool_dir: Path, say: Say
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)
    new.misbehave(Fault(call="initialize", status=503))
    assert say(new, "move", uid[:8], "--to", new.url, "--yes")[0] == 0
    (folder,) = Spool(spool_dir).run_folders()
    with make_callback(endpoint=new.url, exit_timeout_s=0) as callback:
        wait_until(lambda: (folder / "ledger.jsonl").exists() and b'"moved"' in (folder / "ledger.jsonl").read_bytes())
        callback.close(timeout_s=1)
    orders = bytearray((folder / "orders.jsonl").read_bytes())
    orders[20] ^= 1
    (folder / "orders.jsonl").write_bytes(orders)
    new.behave()

    with make_callback() as before:
        assert before.drain(timeout_s=10)  # nothing is left for it to do
        assert server.streams() == []
    assert make_callback(endpoint=new.url).drain(timeout_s=20)

    assert len(held(new)["k0"]) == 35


def test_a_run_whose_orders_were_lost_after_a_move_is_set_aside_and_named_once(
    make_callback: MakeCallback,
    server: LocalServer,
    new: LocalServer,
    spool_dir: Path,
    say: Say,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with make_callback(offline=True) as callback:
        uid = taken(callback)
    new.misbehave(Fault(call="initialize", status=503))
    assert say(new, "move", uid[:8], "--to", new.url, "--yes")[0] == 0
    (folder,) = Spool(spool_dir).run_folders()
    with make_callback(endpoint=new.url, exit_timeout_s=0) as callback:
        wait_until(lambda: (folder / "ledger.jsonl").exists() and b'"moved"' in (folder / "ledger.jsonl").read_bytes())
        callback.close(timeout_s=1)
    (folder / "orders.jsonl").unlink()
    caplog.clear()

    callback = make_callback()
    wait_until(lambda: f"{uid} was moved to {new.url} and waits" in caplog.text)
    callback.drain(timeout_s=3)

    assert caplog.text.count("and waits for an uploader") == 1
    assert server.streams() == []


def test_an_order_after_a_damaged_one_is_obeyed(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="initialize", status=422))
    callback = make_callback()
    uid = taken(callback)
    wait_until(lambda: callback.status()[0].state == "parked")
    assert say(server, "retry", uid[:8])[0] == 0
    (folder,) = Spool(spool_dir).run_folders()
    wait_until(lambda: b'"unparked"' in (folder / "ledger.jsonl").read_bytes())
    wait_until(lambda: callback.status()[0].state == "parked")
    callback.close(timeout_s=1)
    orders = bytearray((folder / "orders.jsonl").read_bytes())
    orders[20] ^= 1
    (folder / "orders.jsonl").write_bytes(orders)
    server.behave()

    assert say(server, "retry", uid[:8])[0] == 0

    assert make_callback().drain(timeout_s=20)
    assert len(held(server)["k0"]) == 35
