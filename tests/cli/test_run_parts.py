"""Runs in several parts, because they were interrupted and went on: every command takes all parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
from runs import Document, growth, held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
InTwoParts = Callable[..., list[Document]]


@pytest.fixture
def in_two_parts(make_callback: MakeCallback) -> InTwoParts:
    """Record a run of 25 events in two sessions, 12 events and 13, and return its documents."""

    def record(first: dict[str, Any], second: dict[str, Any], wait_s: float = 20, **metadata: Any) -> list[Document]:
        documents = list(growth(25, start_metadata={"scan_id": 7} | metadata))
        for settings, kept in ((first, documents[: 2 + 12]), (second, documents)):
            callback = make_callback(**settings)
            for name, doc in kept:
                callback(name, doc)
            callback.close(wait_s)
        return documents

    return record


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_discard_gives_up_all_parts_of_a_run(
    say: Say, in_two_parts: InTwoParts, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = in_two_parts({"offline": True}, {"offline": True})[0][1]["uid"]
    asked: list[str] = []
    monkeypatch.setattr(click, "confirm", lambda text: bool(asked.append(text.replace("\N{NO-BREAK SPACE}", " "))))
    assert say("discard", "7")[0] == 130
    (question,) = asked
    assert question.startswith(f"Give up 50 points of run {uid[:8]} (")
    assert question.endswith("), in 2 parts, for good?")

    code, said, _ = say("discard", "7", "--yes")

    assert code == 0
    assert "part 1 of 2, is given up" in said
    assert "part 2 of 2, is given up" in said
    assert "Discarded, as ordered: 50 points" in say("upload")[1]
    assert server.streams() == []


def test_retry_reaches_all_parked_parts_of_a_run(say: Say, in_two_parts: InTwoParts, server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=422))
    uid = in_two_parts({}, {}, 5)[0][1]["uid"]
    server.behave()
    assert say("status")[1].count(f"retry {uid[:8]}") == 2

    assert say("retry", uid[:8])[0] == 0

    assert say("upload")[0] == 0
    assert held(server)["k0"] == [float(n) for n in range(25)]


def test_edit_and_move_reach_all_parts_of_a_run(say: Say, in_two_parts: InTwoParts, server: LocalServer) -> None:
    in_two_parts({"offline": True, "endpoint": "http://127.0.0.1:9"}, {"offline": True}, synth_source_id="the big one")
    assert say("edit", "7", "--synth-source-id", "42")[0] == 0

    code, said, complaint = say("move", "7", "--to", server.url, "--yes")  # only the first part has to go there

    assert (code, complaint) == (0, "")
    assert f"goes to {server.url}" in said
    assert say("upload")[0] == 0
    assert [stream.synth_source_id for stream in server.streams()] == [42, 42]
    assert sorted(held(server)["k0"]) == [float(n) for n in range(25)]


def test_settle_completes_the_open_part_of_a_run(say: Say, make_callback: MakeCallback) -> None:
    documents = list(growth(25, start_metadata={"scan_id": 7}))
    for offline in (True, False):
        callback = make_callback(offline=True)
        for name, doc in documents[: 2 + 12] if offline else documents[:-1]:
            callback(name, doc)
        if offline:
            callback.close(5)

    code, said, complaint = say("settle", "7")

    assert (code, complaint) == (0, "")
    assert said.count("is completed as interrupted") == 1
