"""`retry`, `edit`, `discard` and `move` of several runs, and what they would do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
Spooled = Callable[..., str]


def orders_in(spool_dir: Path) -> int:
    return len(list(spool_dir.glob("*/orders.jsonl")))


def test_all_parked_runs_are_corrected_at_once_and_delivered(
    say: Say, spooled: Spooled, spool_dir: Path, server: LocalServer
) -> None:
    wrong = [spooled(synth_source_id="the big one") for _ in range(3)]
    right = spooled()
    code, said, _ = say("edit", "--all-parked", "--synth-source-id", "42")

    assert code == 0
    assert all(f"Run {uid[:8]} " in said for uid in wrong)
    assert right[:8] not in said
    assert orders_in(spool_dir) == 3
    assert say("upload")[0] == 0
    assert [stream.synth_source_id for stream in server.streams()] == [42] * 4


def test_several_runs_are_named_and_one_that_is_not_there_is_an_error_of_its_own(
    say: Say, spooled: Spooled, spool_dir: Path
) -> None:
    first, second = spooled(), spooled()
    code, said, complaint = say("retry", first[:8], second[:8], "no-such-run")

    assert code == 1
    assert f"Run {first[:8]} " in said
    assert f"Run {second[:8]} " in said
    assert "no run in the spool begins with 'no-such-run'" in complaint
    assert f"; `atomscale-bluesky status` lists those of {spool_dir}\n" in complaint
    assert orders_in(spool_dir) == 2


PROJECT = "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"
RIGHT = {"synth_source_id": 42, "physical_sample": "W9", "tags": ["a"], "stream_name": "first", "points_per_chunk": 20}


@pytest.mark.parametrize(
    ("metadata", "advised", "given"),
    [
        (RIGHT | {"synth_source_id": "the big one"}, "--synth-source-id NUMBER", ["--synth-source-id", "42"]),
        ({"atomscale": RIGHT | {"operator": "me"}}, "--leave-out-unusable", ["--leave-out-unusable"]),
        ({"atomscale": RIGHT | {"stream_name": 7}}, "--stream-name NAME", ["--stream-name", "first"]),
        ({"atomscale": RIGHT | {"track_samples": True}}, "--no-track-sample", ["--no-track-sample"]),
        (RIGHT | {"project_id": PROJECT[:-1]}, "--project-id UUID", ["--no-project"]),
        (RIGHT | {"project_id": PROJECT[:-1]}, "--project-id UUID", ["--leave-out-unusable"]),
        (
            {"atomscale": RIGHT | {"synth_source_id": "big", "tags": 7}},
            "--synth-source-id NUMBER --tag TAG",
            ["--synth-source-id", "42", "--tag", "a"],
        ),
    ],
)
def test_a_parked_run_keeps_all_metadata_that_can_be_read_after_an_edit(
    say: Say, spooled: Spooled, server: LocalServer, metadata: dict[str, Any], advised: str, given: list[str]
) -> None:
    uid = spooled(**({"synth_source_id": None} | metadata))
    assert f"edit {uid[:8]} {advised} or atomscale-bluesky discard" in say("status")[1]

    code, said, _ = say("edit", uid[:8], *given)

    assert code == 0
    assert "instrument 42, sample W9, no project, tags a" in said
    assert say("upload")[0] == 0
    (stream,) = server.streams()
    assert (stream.synth_source_id, stream.project_id, stream.points_per_chunk) == (42, None, 20)
    assert stream.label.startswith("first [")
    assert stream.tags == ("a", "bluesky: success")
    assert stream.physical_sample_id is not None


def test_an_edit_that_leaves_something_unusable_is_refused_by_name(say: Say, spooled: Spooled, spool_dir: Path) -> None:
    uid = spooled(atomscale={"synth_source_id": "big", "stream_nam": "first"})

    code, _, complaint = say("edit", uid[:8], "--synth-source-id", "42")

    assert code == 1
    assert "was 'stream_name' meant?" in complaint
    assert "Give also --stream-name NAME, or leave out what cannot be used with --leave-out-unusable" in complaint
    assert orders_in(spool_dir) == 0


def test_a_later_edit_keeps_what_an_earlier_one_gave(say: Say, spooled: Spooled, server: LocalServer) -> None:
    uid = spooled(synth_source_id="big", physical_sample="W9")

    say("edit", uid[:8], "--synth-source-id", "42", "--points-per-chunk", "7", "--stream-name", "first")
    code, said, _ = say("edit", uid[:8], "--tag", "night")

    assert code == 0
    assert "instrument 42, sample W9, no project, tags night, 7 points per chunk, named first" in said
    assert say("upload")[0] == 0
    (stream,) = server.streams()
    assert (stream.synth_source_id, stream.points_per_chunk, stream.label[:7]) == (42, 7, "first [")


def test_what_a_planned_stream_has_cannot_be_edited_and_that_is_said(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(synth_source_id=404)
    uid = ""
    for name, doc in growth(5, start_metadata={"synth_source_id": 404404}):
        uid = uid or doc["uid"]
        callback(name, doc)
    callback.drain(20)
    callback.close()

    for option, value in (("--points-per-chunk", "7"), ("--stream-name", "first")):
        code, _, complaint = say("edit", uid[:8], "--synth-source-id", "42", option, value)
        assert code == 1
        assert f"leave out {option}" in complaint
    assert say("edit", uid[:8], "--synth-source-id", "42")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [("retry",), ("discard",), ("edit", "--synth-source-id", "42"), ("move", "--to", "http://127.0.0.1:9")],
)
def test_a_dry_run_names_the_runs_and_changes_nothing(
    say: Say, spooled: Spooled, spool_dir: Path, arguments: tuple[str, ...]
) -> None:
    uid = spooled(synth_source_id="the big one")
    before = {path: path.stat().st_mtime_ns for path in spool_dir.rglob("*")}
    code, said, _ = say(*arguments, "--all-parked", "--dry-run")

    assert code == 0
    assert f"Would be ordered: Run {uid[:8]} " in said
    assert {path: path.stat().st_mtime_ns for path in spool_dir.rglob("*")} == before
    assert SpoolStatus(Spool(spool_dir)).status()[0].state == "parked"


def test_discarding_several_runs_asks_once_with_the_sum_of_their_points(
    say: Say, spooled: Spooled, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    asked: list[str] = []

    def confirm(text: str, **_: Any) -> None:
        asked.append(text.replace("\N{NO-BREAK SPACE}", " "))
        raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)
    uids = [spooled(5, synth_source_id="the big one") for _ in range(2)]
    code, _, _ = say("discard", "--all-parked")

    assert code == 130
    assert asked == [f"Give up 20 points of 2 runs ({uids[0][:8]}, {uids[1][:8]}) for good?"]
    assert orders_in(spool_dir) == 0
    assert say("discard", "--all-parked", "--yes")[0] == 0
    assert orders_in(spool_dir) == 2
    spooled(5)
    code, said, _ = say("upload")
    assert code == 0
    assert "Discarded, as ordered: 20 points of 2 runs. All the rest is delivered." in said
    spooled(5, synth_source_id="the big one")
    say("discard", "--all-parked", "--yes")
    assert "Discarded, as ordered: 10 points of 1 run. Nothing is left to deliver." in say("upload")[1]


def test_without_a_run_it_says_how_to_name_one(say: Say, spooled: Spooled) -> None:
    spooled()

    code, _, complaint = say("retry")
    assert code == 2
    assert "give one of these: the runs or --all-parked" in complaint
    code, said, _ = say("retry", "--all-parked")
    assert (code, said) == (0, "No run waits for the operator.")


@pytest.mark.parametrize(
    ("order", "values"),
    [
        (("edit", "--synth-source-id", "42"), " (instrument 42, no sample, no project, no tags)"),
        (("discard", "--yes"), ""),
    ],
)
def test_an_order_that_no_process_has_carried_out_is_in_the_status_and_is_not_asked_for_again(
    say: Say, spooled: Spooled, order: tuple[str, ...], values: str
) -> None:
    uid = spooled(synth_source_id="the big one")
    assert say("status", "--check")[0] == 2
    assert say(order[0], uid[:8], *order[1:])[0] == 0

    code, said, _ = say("status")
    assert code == 0
    assert f"ordered {order[0]}{values}; the process that delivers the run next carries it out" in said
    assert "parked" not in said
    assert "atomscale-bluesky edit" not in said
    assert "Nobody delivers 1 run" in said
    code, said, _ = say("status", "--check")
    assert (code, "nobody delivers 1 run" in said) == (1, True)
    assert "No run waits for the operator." in say("retry", "--all-parked", "--dry-run")[1]
    assert say("upload")[0] == 0
    assert "nothing waits" in say("status")[1]


def test_a_retry_does_not_hide_that_metadata_still_have_to_be_corrected(say: Say, spooled: Spooled) -> None:
    uid = spooled(synth_source_id="the big one")
    assert say("retry", uid[:8])[0] == 0

    code, said, _ = say("status")
    assert code == 1
    assert "ordered retry" in said
    assert f"do atomscale-bluesky edit {uid[:8]} --synth-source-id NUMBER" in said


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({}, "by the next session, or now by `atomscale-bluesky upload`."),
        ({"ATOMSCALE_API_KEY": ""}, "once the key is in ATOMSCALE_API_KEY: by the next session, or by"),
        ({"ATOMSCALE_API_ENDPOINT": "https://elsewhere.example"}, "by `atomscale-bluesky upload --endpoint {url}`."),
        (
            {"ATOMSCALE_BLUESKY_UPLOADER": "none", "ATOMSCALE_API_KEY": ""},
            "by the service `atomscale-bluesky upload --follow`, once it runs.",
        ),
        ({"ATOMSCALE_BLUESKY_OFFLINE": "true"}, "once the setting `offline` is off."),
    ],
)
def test_the_answer_to_an_order_names_what_will_carry_it_out(
    say: Say, spooled: Spooled, server: LocalServer, monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str], answer: str,
) -> None:  # fmt: skip
    uid = spooled(synth_source_id="the big one")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert answer.format(url=server.url) in say("discard", uid[:8], "--yes")[1]


def test_the_answer_to_an_order_names_the_spool_that_was_named(
    say: Say, spooled: Spooled, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = spooled()
    monkeypatch.delenv("ATOMSCALE_BLUESKY_SPOOL_DIR")

    said = say("discard", uid[:8], "--yes", "--spool-dir", str(spool_dir))[1]
    assert f"now by `atomscale-bluesky upload --spool-dir {spool_dir}`" in said


def test_all_runs_of_a_wrong_endpoint_are_moved_as_the_status_says(
    say: Say, spooled: Spooled, spool_dir: Path, server: LocalServer
) -> None:
    elsewhere = {"endpoint": "http://127.0.0.1:9"}
    wrong = [spooled(settings=elsewhere), spooled(settings=elsewhere, synth_source_id="the big one")]
    right = spooled()
    command = f"move --from http://127.0.0.1:9 --to {server.url}"
    assert f"`atomscale-bluesky {command}" in " ".join(say("status")[1].split())

    code, said, _ = say(*command.replace("http:", "HTTP:").replace(":9", ":9/").split(), "--yes")

    assert code == 0
    assert all(f"Run {uid[:8]} " in said for uid in wrong)
    assert right[:8] not in said
    assert orders_in(spool_dir) == 2
    assert say("upload")[0] == 1  # one of them has metadata that cannot be used
    assert len(server.streams()) == 2


def test_a_move_from_an_endpoint_for_which_nothing_waits_names_those_for_which_something_does(
    say: Say, spooled: Spooled, spool_dir: Path, server: LocalServer
) -> None:
    spooled()
    code, _, complaint = say("move", "--from", "http://127.0.0.1:9", "--to", "http://127.0.0.1:8", "--yes")

    assert code == 1
    assert f"no run waits for http://127.0.0.1:9; runs wait for {server.url}" in complaint
    code, _, complaint = say("move", "--all-parked", "--from", "http://127.0.0.1:9", "--to", "http://127.0.0.1:8")
    assert code == 2
    assert "give one of these: the runs, --all-parked or --from" in complaint
    assert orders_in(spool_dir) == 0


def test_the_answer_to_a_move_names_who_delivers_to_the_new_endpoint(say: Say, spooled: Spooled) -> None:
    uid = spooled()

    said = say("move", uid[:8], "--to", "https://elsewhere.example", "--yes")[1]
    assert "by `atomscale-bluesky upload --endpoint https://elsewhere.example`." in said


def test_an_order_for_a_finished_run_says_that_it_is_finished(say: Say, spooled: Spooled) -> None:
    uid = spooled(5)
    assert say("upload")[0] == 0

    code, _, complaint = say("retry", "last")
    assert code == 1
    assert f"run {uid[:8]} is not in the spool; it is finished and has left the spool" in complaint
    assert "change it in Atomscale" not in complaint


@pytest.mark.parametrize(
    ("without", "option", "value"),
    [
        ("--no-sample", "--physical-sample", "W2"),
        ("--no-sample", "--physical-sample-id", "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60"),
        ("--no-project", "--project-id", "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60"),
        ("--no-tags", "--tag", "night"),
    ],
)
def test_edit_refuses_options_that_contradict_each_other(
    say: Say, spooled: Spooled, without: str, option: str, value: str
) -> None:
    uid = spooled()
    code, _, complaint = say("edit", uid[:8], option, value, without)

    assert code == 2
    assert f"{without} and {option} contradict each other; give one of them" in complaint
    assert say("edit", uid[:8], without)[0] == 0


def test_upload_says_once_of_a_parked_run_that_it_waits_for_the_operator(say: Say, spooled: Spooled) -> None:
    parked = spooled(synth_source_id="the big one")
    other = spooled()

    said = say("upload")[1]
    assert said.count(f"run {parked} was found in the spool; it is parked and waits for the operator: metadata '") == 1
    assert said.count(f"run {parked} is parked: 0 points delivered, 50 not; `atomscale-bluesky status") == 1
    assert said.count(f"run {other} was found in the spool; its delivery goes on") == 1


def test_an_edit_of_a_finished_run_says_where_it_is_to_be_changed_now(
    say: Say, spooled: Spooled, server: LocalServer
) -> None:
    uid = spooled()
    assert say("upload")[0] == 0
    (stream,) = server.streams()

    for name in (uid, uid[:8], "last"):
        code, _, complaint = say("edit", name, "--synth-source-id", "7")
        assert code == 1
        assert (
            f"; it is finished and has left the spool; change it in Atomscale now, where its stream is {stream.label!r}"
            in (complaint)
        )


def test_status_names_the_command_that_lists_what_an_edit_can_give(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(synth_source_id=99)
    for name, doc in growth(5, start_metadata={"synth_source_id": 99}):
        callback(name, doc)
    wait_until(lambda: callback.status()[0].state == "parked")

    said = say("status")[1]
    assert "there is no growth instrument 99" in said
    assert "`atomscale-bluesky instruments` lists the instruments and their numbers" in said


def test_status_names_settle_for_an_open_run_of_which_nothing_came_for_an_hour(
    say: Say, make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback = make_callback(offline=True)
    documents = list(growth(5))
    for name, doc in documents[:-1]:
        callback(name, doc)
    uid = documents[0][1]["uid"]
    assert "atomscale-bluesky settle" not in say("status")[1]

    (journal,) = spool_dir.glob("*/journal-*.jsonl")
    os.utime(journal, (time.time() - 7300.0,) * 2)
    said = say("status")[1]
    assert "silent no document for 2 h 1 min, and no stop document came" in said
    assert f"do if its plan is over: atomscale-bluesky settle {uid[:8]} " in said
    assert say("settle", uid[:8])[0] == 0
    assert "ordered settle; " in say("status")[1]

    callback(*documents[-1])
    callback.close()
    assert "silent" not in say("status")[1]


# ---- a wrong endpoint ------------------------------------------------------------------------------------------------


def test_a_run_for_an_endpoint_without_the_api_names_the_move_that_mends_it(
    say: Say, make_callback: MakeCallback, server: LocalServer, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    wrong = f"{server.url}/v1"
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", wrong)
    callback = make_callback(endpoint=wrong)
    assert f"the endpoint {wrong} has the path '/v1'" in caplog.text
    for name, doc in growth(25):
        callback(name, doc)
    assert not callback.drain(10)
    callback.close(0)

    _, said, _ = say("status")
    assert "no call of the API is at this endpoint" in said
    move = f"atomscale-bluesky move --from {wrong} --to {server.url}"
    assert f" do {move} or atomscale-bluesky retry" in said
    assert f"if it is wrong, `{move}`, else" in caplog.text

    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    assert f" do {move} or " in say("status")[1]
    assert say(*move.split()[1:], "--yes")[0] == 0
    assert say("upload")[0] == 0
    assert len(held(server)["k0"]) == 25


def test_a_wrong_endpoint_without_a_path_is_moved_to_that_of_the_command(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    with LocalServer(control=True) as other:
        other.misbehave(Fault(status=404, body="<html>nothing here</html>"))
        callback = make_callback(endpoint=other.url)
        for name, doc in growth(5):
            callback(name, doc)
        assert not callback.drain(10)
        callback.close(0)

    assert f" do atomscale-bluesky move --from {other.url} --to {server.url} or " in say("status")[1]


def test_an_endpoint_without_a_path_brings_no_warning(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    make_callback(endpoint=f"{server.url}/")

    assert "has the path" not in caplog.text


def test_a_discarded_run_whose_points_had_all_arrived_is_not_called_finalized(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="attach_tags", status=422, body='{"detail":"no such tag"}'))
    with make_callback(tags=["x"]) as callback:
        for name, doc in growth(5):
            callback(name, doc)
        wait_until(lambda: [run.state for run in callback.status()] == ["parked"])
    assert say("discard", "last", "--yes")[0] == 0

    _, said, _ = say("upload")

    assert "Discarded, as ordered: 0 points of 1 run. All the rest is delivered." in said
    assert "discarded" in say("status", "--all")[1]
    assert "state discarded" in say("show", "last")[1]
    assert [stream.status for stream in server.streams()] == ["stream_active"]


@pytest.mark.parametrize("other_run", [False, True])
def test_a_run_that_leaves_while_the_command_asks_gets_no_order_and_that_is_said(
    say: Say,
    spooled: Spooled,
    spool_dir: Path,
    make_callback: MakeCallback,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    other_run: bool,
) -> None:
    uid = spooled()
    others = [spooled(synth_source_id="the big one")] if other_run else []

    def deliver(_question: str) -> bool:
        callback = make_callback()
        callback.drain(timeout_s=30)
        callback.close()
        return True

    monkeypatch.setattr("click.confirm", deliver)
    code, said, complaint = say("discard", uid[:8], *others)

    assert code == 1
    assert uid[:8] not in said
    assert f"run {uid[:8]} has just left the spool, delivered or discarded; nothing was ordered for it\n" in complaint
    assert [stream.status for stream in server.streams()] == ["success"]
    assert all(f"Run {other[:8]} " in said for other in others)
    assert orders_in(spool_dir) == len(others)
