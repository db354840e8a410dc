"""Runs in several parts, because they were interrupted and went on: every command takes all parts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from runs import Document, growth, held

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.errors import SpoolError
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


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_counts_what_was_discarded_of_an_earlier_part(
    say: Say, make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_KEEP", "verified")
    documents = list(growth(25, start_metadata={"scan_id": 7}))
    first = make_callback(offline=True, keep="verified")
    for name, doc in documents[: 2 + 12]:
        first(name, doc)
    first.close()
    say("discard", "7", "--yes")
    assert say("upload")[0] == 0
    second = make_callback(keep="verified")
    for name, doc in documents:
        second(name, doc)
    assert second.drain(20)

    code, said, _ = say("verify", "7")
    told = json.loads(say("verify", "7", "--json")[1])

    assert code == 1
    assert "and has left the spool; 24 discarded." in said
    assert (told["equal"], told["discarded"]) == (False, 24)
    with pytest.raises(SpoolError, match="has left the spool; 24 discarded"):
        second.verify(documents[0][1]["uid"])


def test_verify_says_what_waits_of_a_later_part(say: Say, in_two_parts: InTwoParts, server: LocalServer) -> None:
    server.misbehave(Fault(call="finalize", status=503))
    uid = in_two_parts({"points_per_chunk": 12}, {"offline": True}, 3)[0][1]["uid"]

    code, said, _ = say("verify", uid[:8], "--patience", "0")

    assert code == 1
    assert "all 24 points that were confirmed are equal; 26 waiting." in said


@pytest.mark.parametrize("keep", ["finalized", "verified"])
def test_verify_says_whether_a_part_that_has_left_the_spool_was_read_back(
    say: Say, in_two_parts: InTwoParts, make_callback: MakeCallback, server: LocalServer, keep: str
) -> None:
    documents = in_two_parts({"keep": keep}, {"offline": True})
    server.misbehave(Fault(call="finalize", status=503))
    uploading = make_callback()
    uploading.drain(3)

    code, said, _ = say("verify", "7", "--patience", "0")
    found = uploading.verify(documents[0][1]["uid"])

    if keep == "verified":
        assert (code, found.equal) == (0, True)
        assert "all 26 points that were confirmed are equal; 24 were read back before and were equal." in said
    else:
        assert (code, found.equal) == (1, False)
        assert "are equal; 24 of a part that has left the spool were not read back." in said
        assert f"atomscale-bluesky verify {found.run_uid[:8]} --file FILE" in said


def test_verify_refuses_the_beginning_of_several_uids_like_show(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(keep="verified")
    for letter in "ab":
        documents = list(growth(5))
        uid = documents[0][1]["uid"]
        for name, doc in json.loads(json.dumps(documents).replace(uid, f"7{letter}{uid[2:]}")):
            callback(name, doc)
    assert callback.drain(20)

    for command in ("show", "verify"):
        code, said, complaint = say(command, "7")
        assert (code, said) == (1, "")
        assert "2 runs begin with '7'; give more of the uid" in complaint
    assert say("verify", "7a")[0] == 0


def test_verify_compares_recorded_documents_with_the_streams_of_all_parts(
    say: Say, in_two_parts: InTwoParts, tmp_path: Path
) -> None:
    recording = tmp_path / "run.jsonl"
    recording.write_text("".join(json.dumps(document) + "\n" for document in in_two_parts({}, {})))

    code, said, _ = say("verify", "7", "--file", str(recording), "--patience", "0")

    assert code == 0
    assert "all 50 points that were confirmed are equal." in said


def test_verify_compares_recorded_documents_with_parts_in_the_spool_and_in_the_history(
    say: Say, in_two_parts: InTwoParts, server: LocalServer, tmp_path: Path
) -> None:
    documents = in_two_parts({}, {"offline": True})
    server.misbehave(Fault(call="finalize", status=503))
    say("upload", "--timeout", "3")
    recording = tmp_path / "run.jsonl"
    recording.write_text("".join(json.dumps(document) + "\n" for document in documents))

    code, said, _ = say("verify", "7", "--file", str(recording), "--patience", "0")

    assert code == 0
    assert "all 50 points that were confirmed are equal." in said


# ---- show, plot and export -------------------------------------------------------------------------------------------


def exported(path: Path) -> list[float]:
    """Return the values of `k0` in a CSV file."""
    with path.open(newline="") as file:
        return [float(row["k0 (K)"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("source", ["spool", "api"])
def test_show_plot_and_export_give_all_parts_of_a_run(
    say: Say, in_two_parts: InTwoParts, tmp_path: Path, source: str
) -> None:
    offline = {"offline": source == "spool"}
    in_two_parts(offline, offline)

    code, said, complaint = say("export", "7", "--csv", str(tmp_path / "run.csv"), "--from", source)
    assert (code, complaint) == (0, "")
    assert "25 rows of 2 channels" in said
    assert exported(tmp_path / "run.csv") == [float(n) for n in range(25)]
    code, said, _ = say("show", "7", "--from", source)
    assert code == 0
    assert ("points 0 delivered, 50 waiting" if source == "spool" else "points 50 delivered") in said
    assert "Part 1 of 2" in said
    assert "Part 2 of 2" in said
    assert "k0 K 25 0 24" in said
    assert len(json.loads(say("show", "7", "--json", "--from", source)[1])["parts"]) == 2
    assert say("plot", "7", "--from", source)[0] == 0


@pytest.mark.parametrize("source", ["spool", "api"])
def test_export_says_which_part_of_a_run_it_does_not_have(
    say: Say, in_two_parts: InTwoParts, tmp_path: Path, source: str
) -> None:
    uid = in_two_parts({}, {"offline": True})[0][1]["uid"]

    code, _, complaint = say("export", "7", "--csv", str(tmp_path / "run.csv"), "--from", source)

    assert code == 1
    assert f"1 of the 2 parts of run {uid[:8]} has" in complaint
    ours = range(12) if source == "api" else range(12, 25)
    assert exported(tmp_path / "run.csv") == [float(n) for n in ours]


def test_export_has_a_channel_of_one_part_without_values_in_the_other(
    say: Say, make_callback: MakeCallback, tmp_path: Path
) -> None:
    documents = list(growth(25, start_metadata={"scan_id": 7}))
    for settings, kept in (({"channels": ["k0"]}, documents[: 2 + 12]), ({}, documents)):
        callback = make_callback(offline=True, **settings)
        for name, doc in kept:
            callback(name, doc)
        callback.close()

    assert say("export", "7", "--csv", str(tmp_path / "run.csv"))[0] == 0

    assert exported(tmp_path / "run.csv") == [float(n) for n in range(25)]
    with (tmp_path / "run.csv").open(newline="") as file:
        values = [row["k1 (K)"] for row in csv.DictReader(file)]
    assert values == [""] * 12 + [str(n + 0.1) for n in range(12, 25)]
