"""What a run is linked to in Atomscale: by id or by name, once, before it is finalized, through whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from event_model import compose_run
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.delivery import backoff
from atomscale_bluesky.delivery.backoff import Backoff, Patience
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
NOBODY = "00000000-0000-4000-8000-000000000000"
LINKS = {"physical_sample": "GaN-0417", "tags": ["night shift", "recipe 12"], "track_sample": True}


def ask(server: LocalServer, method: str, path: str, body: object = None) -> Any:
    """A plain request, as somebody else at the site would make it."""
    session = requests.Session()
    session.trust_env = False
    with session:
        answer = session.request(
            method, server.url + path, json=body, headers={"X-API-KEY": server.api_key}, timeout=10
        )
        answer.raise_for_status()
        return answer.json()


def project(server: LocalServer) -> str:
    return ask(server, "GET", "/projects/")[0]["id"]


def samples(server: LocalServer) -> list[str]:
    return [sample["name"] for sample in ask(server, "GET", "/physical_samples/")]


def tags(server: LocalServer) -> list[str]:
    return sorted(tag["name"] for tag in ask(server, "GET", "/tags/"))


def run(
    callback: AtomscaleCallback, points: int = 25, *, exit_status: str = "success", reason: str = "", **md: Any
) -> str:
    uid = ""
    for name, doc in growth(points, start_metadata=md):
        if name == "start":
            uid = doc["uid"]
        callback(name, doc | {"exit_status": exit_status, "reason": reason} if name == "stop" else doc)
    return uid


def calls(server: LocalServer) -> list[str]:
    return [record.call for record in server.requests()]


@pytest.mark.parametrize("multi", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("families", [("metrology",), ("tool-state",), ("metrology", "tool-state")], ids="+".join)
def test_a_run_is_linked_to_what_its_metadata_name_in_either_family(
    make_callback: MakeCallback, families: tuple[str, ...], multi: bool
) -> None:
    with LocalServer(control=True, families=families, multi=multi) as server:
        callback = make_callback(endpoint=server.url)
        run(callback, project_id=project(server), **LINKS)

        assert callback.drain(timeout_s=20)

        (stream,) = server.streams()
        (sample,) = ask(server, "GET", "/physical_samples/")
        assert (stream.family, stream.status, stream.points) == (families[0], "success", 50)
        assert (stream.synth_source_id, stream.project_id) == (42, project(server))
        assert (sample["name"], stream.physical_sample_id) == ("GaN-0417", sample["id"])
        assert set(stream.tags) == {"night shift", "recipe 12", "bluesky: success"}
        configuration = ask(server, "GET", "/projects/")[0]["configuration"]
        assert configuration["tracking_physical_sample_id"] == sample["id"]
        asked = calls(server)
        assert asked.index("finalize") == len(asked) - 1 - asked[::-1].index("finalize") > asked.index("attach_tags")
        callback.close()


@pytest.mark.parametrize("family", ["metrology", "tool-state"])
def test_a_sample_given_by_its_id_is_linked_in_either_family(
    make_callback: MakeCallback, server: LocalServer, family: str
) -> None:
    sample = ask(server, "POST", "/physical_samples/", {"name": "GaN-0417"})["id"]
    callback = make_callback(api=family)

    run(callback, physical_sample_id=sample.upper())
    run(callback, physical_sample=sample)

    assert callback.drain(timeout_s=20)
    assert [stream.physical_sample_id for stream in server.streams()] == [sample, sample]
    assert len(server.requests("link_sample")) == (0 if family == "metrology" else 2)


def test_a_stream_without_its_sample_is_linked_to_it_again(callback: AtomscaleCallback, server: LocalServer) -> None:
    entry = [{"data_id": NOBODY, "raw_name": "somebody else's", "physical_sample_id": NOBODY}]
    server.misbehave(Fault(call="catalogue", body=json.dumps(entry)))  # does not show our stream with its sample

    run(callback, physical_sample="GaN-0417")

    assert callback.drain(timeout_s=20)
    assert len(server.requests("link_sample")) == 1


def test_a_run_that_names_nothing_asks_for_nothing_more_than_before(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run(callback)

    assert callback.drain(timeout_s=20)
    assert set(calls(server)) <= {"initialize", "chunk", "chunk_multi", "finalize", "time"}
    (stream,) = server.streams()
    assert stream.tags == ()


@pytest.mark.parametrize("name", ["GaN-0417", "  gan-0417 ", "GAN-0417"])
def test_a_sample_is_found_whatever_its_case_and_blanks(
    callback: AtomscaleCallback, server: LocalServer, name: str
) -> None:
    sample = ask(server, "POST", "/physical_samples/", {"name": "GaN-0417"})["id"]

    run(callback, physical_sample=name)

    assert callback.drain(timeout_s=20)
    assert samples(server) == ["GaN-0417"]
    assert server.streams()[0].physical_sample_id == sample


def test_a_name_with_an_accent_is_one_name_however_it_is_encoded(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    ask(server, "POST", "/physical_samples/", {"name": "Mu\u0308nchen 1"})
    ask(server, "POST", "/tags/", {"name": "nachtschicht \u00fc"})

    run(callback, physical_sample="M\u00fcnchen 1", tags=["Nachtschicht u\u0308"])

    assert callback.drain(timeout_s=20)
    assert len(samples(server)) == 1
    assert tags(server) == ["bluesky: success", "nachtschicht \u00fc"]


def test_the_sample_of_exactly_the_name_is_taken_where_several_are_alike(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    listed = [{"id": NOBODY, "name": "gan-1"}, {"id": NOBODY.replace("8", "9"), "name": "GaN-1"}]
    server.misbehave(Fault(call="samples", method="GET", body=json.dumps(listed)))

    run(callback, physical_sample="GaN-1")
    wait_until(lambda: server.requests("initialize"))

    assert not callback.drain(timeout_s=20)  # this server knows no such sample
    assert NOBODY.replace("8", "9") in (callback.status().runs[0].problem or "")


def test_several_runs_that_create_the_same_names_at_once_share_them(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path
) -> None:
    # Every list is made before anybody has created anything.
    server.misbehave(Fault(call=("samples", "tags"), method="POST", delay_s=0.2))
    callbacks = [make_callback(spool_dir=str(tmp_path / f"spool {n}")) for n in range(4)]

    for n, callback in enumerate(callbacks):
        run(callback, physical_sample=["GaN-1", "gan-1", " GaN-1", "GAN-1"][n], tags=["Night shift", f"run {n}"])

    assert all(callback.drain(timeout_s=20) for callback in callbacks)
    assert len(samples(server)) == 1
    assert len(tags(server)) == 4 + 2
    assert len({stream.physical_sample_id for stream in server.streams()}) == 1


def test_a_name_that_the_list_lacks_is_found_by_the_answer_that_it_is_taken(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    sample = ask(server, "POST", "/physical_samples/", {"name": "GaN-0417"})["id"]
    server.misbehave(Fault(call="samples", method="GET", body="[]"))  # another page of it, perhaps

    run(callback, physical_sample="gan-0417")

    assert callback.drain(timeout_s=20)
    assert server.streams()[0].physical_sample_id == sample


def test_an_answer_that_a_name_is_taken_without_saying_by_whom_has_the_list_read_again(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    sample = ask(server, "POST", "/physical_samples/", {"name": "GaN-0417"})["id"]
    tag = ask(server, "POST", "/tags/", {"name": "night shift"})["id"]
    server.misbehave(
        Fault(call="samples", method="GET", body="[]", times=1),
        Fault(call="tags", method="GET", body="[]", times=1),
        Fault(call="samples", method="POST", status=409, body='{"detail": "taken"}'),
    )

    run(callback, physical_sample="GaN-0417", tags="night shift")

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    assert (stream.physical_sample_id, stream.status) == (sample, "success")
    assert "night shift" in stream.tags
    assert tag in [one["id"] for one in ask(server, "GET", "/tags/")]


def test_a_tag_may_be_given_by_its_id_among_names(callback: AtomscaleCallback, server: LocalServer) -> None:
    tag = ask(server, "POST", "/tags/", {"name": "recipe 12"})["id"]

    run(callback, tags=[tag.upper(), "Recipe 12", "recipe 12 ", " "])

    assert callback.drain(timeout_s=20)
    assert server.streams()[0].tags == ("bluesky: success", "recipe 12")


def test_a_hundred_thousand_other_tags_do_no_harm(callback: AtomscaleCallback, server: LocalServer) -> None:
    tag = ask(server, "POST", "/tags/", {"name": "ours"})["id"]
    others = [{"id": f"{n:08x}-0000-4000-8000-000000000000", "name": f"tag {n}"} for n in range(99_999)]
    server.misbehave(Fault(call="tags", method="GET", body=json.dumps([*others, {"id": tag, "name": "Ours"}]), times=1))

    run(callback, tags=["ours"])

    assert callback.drain(timeout_s=20)
    assert "ours" in server.streams()[0].tags


def test_a_list_of_tags_that_is_too_long_parks_its_run_and_holds_up_no_other(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    ask(server, "POST", "/tags/", {"name": "ours"})
    server.misbehave(Fault(call="tags", method="GET", body=json.dumps([{"id": "a"}] * 100_001), times=1))
    uid = run(callback, tags=["ours"])
    other = run(callback, tags=[])

    assert not callback.drain(timeout_s=20)
    (status,) = callback.status()
    assert (status.run_uid, status.state) == (uid, "parked")
    assert "more than 100000 elements" in str(status.problem)
    assert callback.streams(other)[0].state == "finalized"
    assert retry(callback, uid) == 0
    assert callback.drain(timeout_s=20)


# ---- what is not there -----------------------------------------------------------------------------------------------


def edit(callback: AtomscaleCallback, uid: str, *options: str) -> int:
    return main(["edit", uid[:8], *options, "--spool-dir", str(callback.settings.spool_path)])


def retry(callback: AtomscaleCallback, uid: str) -> int:
    return main(["retry", uid[:8], "--spool-dir", str(callback.settings.spool_path)])


def test_an_unknown_project_parks_the_run_before_anything_is_made_until_it_is_edited(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = run(callback, project_id=NOBODY, physical_sample="GaN-0417")

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert parked.state == "parked"
    assert f"there is no project {NOBODY}" in (parked.problem or "")
    assert f"`atomscale-bluesky edit {uid[:8]} --project-id UUID`" in (parked.problem or "")
    assert (parked.points.waiting, server.streams(), samples(server)) == (50, [], [])

    assert edit(callback, uid, "--project-id", project(server)) == 0

    wait_until(lambda: not callback.status())
    (stream,) = server.streams()
    assert (stream.points, stream.project_id, stream.status) == (50, project(server), "success")
    assert samples(server) == ["GaN-0417"]  # what was not edited is as before


@pytest.mark.parametrize("family", ["metrology", "tool-state"])
def test_an_unknown_sample_id_parks_the_run_in_either_family(
    make_callback: MakeCallback, server: LocalServer, family: str
) -> None:
    callback = make_callback(api=family)
    uid = run(callback, physical_sample_id=NOBODY)

    assert not callback.drain(timeout_s=20)
    assert f"there is no physical sample {NOBODY}" in (callback.status().runs[0].problem or "")
    assert server.requests("initialize") == []

    assert edit(callback, uid, "--no-sample") == 0
    wait_until(lambda: not callback.status())
    assert [stream.points for stream in server.streams()] == [50]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(call="samples", method="POST", status=422), "physical sample 'GaN-0417' is not in Atomscale"),
        (Fault(call="tags", method="POST", status=422), "tag 'night shift' is not in Atomscale and cannot be created"),
    ],
)
def test_what_cannot_be_created_parks_the_run_with_its_readings_and_a_remedy(
    callback: AtomscaleCallback, server: LocalServer, fault: Fault, said: str
) -> None:
    server.misbehave(fault)
    uid = run(callback, physical_sample="GaN-0417", tags=["night shift"])

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert said in (parked.problem or "")
    assert parked.points.waiting == 50

    server.behave()
    assert retry(callback, uid) == 0
    wait_until(lambda: not callback.status())
    assert server.streams()[0].points == 50


def test_readings_go_on_being_kept_while_a_run_waits_for_its_project(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    documents = list(growth(35, start_metadata={"project_id": NOBODY}))
    for name, doc in documents[:12]:
        callback(name, doc)
    wait_until(lambda: [one.state for one in callback.status()] == ["parked"])
    for name, doc in documents[12:]:
        callback(name, doc)

    assert edit(callback, documents[0][1]["uid"], "--no-project") == 0

    wait_until(lambda: not callback.status())
    assert held(server)["k1"] == [n + 0.1 for n in range(35)]


def test_draining_a_run_that_waits_for_its_project_says_no_at_once_however_long_it_is(
    callback: AtomscaleCallback,
) -> None:
    run(callback, 2000, project_id=NOBODY)
    wait_until(lambda: [one.state for one in callback.status()] == ["parked"])

    question = callback.ask_whether_drained()

    assert question is not None
    assert question.answered.wait(60)
    assert question.answer is False


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is a tenth of a second."""
    monkeypatch.setattr(backoff, "MISSING", Backoff(0.1, 0.2))


@pytest.mark.usefixtures("impatient")
def test_a_project_that_comes_into_being_lets_the_run_through_by_itself(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="projects", status=404))
    run(callback, project_id=project_of(server))
    wait_until(lambda: [one.state for one in callback.status()] == ["parked"])

    server.behave()

    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def project_of(server: LocalServer) -> str:
    server.behave()
    found = project(server)
    server.misbehave(Fault(call="projects", status=404))
    return found


@pytest.mark.usefixtures("impatient")
def test_an_instrument_that_is_registered_later_lets_the_run_through_by_itself(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    run(callback, synth_source_id=43)
    wait_until(lambda: [one.state for one in callback.status()] == ["parked"])
    wait_until(lambda: len(server.requests("initialize")) > 2)
    (said,) = [record.message for record in caplog.records if "is parked" in record.message]
    uid = callback.status()[0].run_uid
    assert said.startswith(f"run {uid}: ")
    here = f"--spool-dir {callback.settings.spool_path}"
    assert said.endswith(f"`atomscale-bluesky edit {uid[:8]} … {here}` or `atomscale-bluesky retry {uid[:8]} {here}`")

    body = {"label": "MBE 43", "name": "maker and model", "type": "mbe"}
    assert ask(server, "POST", "/instruments/synthesis", body)["synth_source_id"] == 43

    wait_until(lambda: not callback.status())
    assert [(stream.synth_source_id, stream.points) for stream in server.streams()] == [(43, 50)]


def test_what_was_refused_is_asked_for_after_a_minute_and_ever_less_often() -> None:
    patience = Patience()
    asked = [second for second in range(10 * 3600) if patience.may_ask_again("a project", second)]

    assert asked[:4] == [60, 180, 420, 900]
    assert max(b - a for a, b in zip(asked, asked[1:], strict=False)) == 3600
    assert not patience.may_ask_again("another one", asked[-1])


# ---- links of a stream that exists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "option"),
    [("attach_tags", "--no-tags"), ("track_sample", "--no-track-sample"), ("link_sample", "--no-sample")],
)
def test_a_link_that_is_refused_holds_up_no_chunk_and_is_given_up_by_an_edit(
    make_callback: MakeCallback, server: LocalServer, call: str, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call=call, status=404))
    callback = make_callback(api="tool-state")
    uid = run(callback, project_id=project(server), **LINKS)

    assert not callback.drain(timeout_s=20)
    (waiting,) = callback.status()
    assert (waiting.points.delivered, waiting.points.waiting, waiting.state) == (50, 0, "parked")
    assert "was answered 404" in (waiting.problem or "")
    assert [stream.status for stream in server.streams()] == ["stream_active"]
    assert sum("stays unfinalized" in record.message for record in caplog.records) in {
        1,
        2,
    }  # before the stop, and after

    assert edit(callback, uid, option) == 0

    wait_until(lambda: not callback.status())
    assert [(stream.status, stream.points, stream.doubled) for stream in server.streams()] == [("success", 50, 0)]


@pytest.mark.parametrize("status", [403, 404])
def test_a_run_is_linked_and_finalized_when_the_catalogue_is_refused(
    callback: AtomscaleCallback, server: LocalServer, status: int
) -> None:
    server.misbehave(Fault(call="catalogue", status=status))

    run(callback, project_id=project(server), **LINKS)

    assert callback.drain(timeout_s=20)
    assert [stream.status for stream in server.streams()] == ["success"]


def test_a_refused_link_is_made_after_an_order_to_retry(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call="attach_tags", status=422))
    uid = run(callback, tags=["night shift"])
    assert not callback.drain(timeout_s=20)
    server.behave()

    assert retry(callback, uid) == 0

    wait_until(lambda: not callback.status())
    assert server.streams()[0].tags == ("bluesky: success", "night shift")


@pytest.mark.usefixtures("impatient")
def test_a_link_that_was_refused_is_made_by_itself_when_it_can_be(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="attach_tags", status=422, times=5))
    run(callback, tags=["night shift"])

    wait_until(lambda: not callback.status())
    assert server.streams()[0].tags == ("bluesky: success", "night shift")


def test_a_route_of_links_that_is_down_holds_up_no_chunk(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call="attach_tags", status=503))

    run(callback, 95, tags=["night shift"])

    wait_until(lambda: [stream.points for stream in server.streams()] == [190])
    assert server.streams()[0].status == "stream_active"
    server.behave()
    wait_until(lambda: not callback.status(), timeout_s=30)
    assert server.streams()[0].tags == ("bluesky: success", "night shift")


def test_the_sample_of_a_stream_that_exists_can_still_be_changed_and_its_instrument_not(
    callback: AtomscaleCallback, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = list(growth(25, start_metadata={"physical_sample": "GaN-0471"}))
    uid = documents[0][1]["uid"]
    for name, doc in documents[:-1]:
        callback(name, doc)
    wait_until(lambda: callback.streams(uid) and callback.streams(uid)[0].data_id)

    assert edit(callback, uid, "--synth-source-id", "7") == 1
    assert "is in Atomscale already" in capsys.readouterr().err
    assert edit(callback, uid, "--physical-sample", "GaN-0417") == 0
    assert edit(callback, uid, "--tag", "night shift", "--tag", "recipe 12") == 0

    wait_until(lambda: "recipe 12" in server.streams()[0].tags)
    callback(*documents[-1])
    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    names = {sample["id"]: sample["name"] for sample in ask(server, "GET", "/physical_samples/")}
    assert names[stream.physical_sample_id or ""] == "GaN-0417"
    assert (stream.tags, stream.points) == (("bluesky: success", "night shift", "recipe 12"), 50)


def test_a_key_that_may_not_create_tags_delivers_the_other_runs(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="tags", status=403))
    run(callback, tags=["night shift"])
    for _ in range(3):
        run(callback)

    wait_until(lambda: sorted(stream.points for stream in server.streams()) == [50, 50, 50], timeout_s=30)
    wait_until(lambda: [one.state for one in callback.status()] == ["parked"], timeout_s=30)


@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_refused_list_holds_up_nothing_that_can_be_created_or_asked_for(
    callback: AtomscaleCallback, server: LocalServer, status: int
) -> None:
    known = project(server)
    for call in ("samples", "tags"):
        server.misbehave(Fault(call=call, method="GET", status=status))
    server.misbehave(Fault(call="projects", method="GET", status=status, times=1))  # the second asks for its samples

    run(callback, project_id=known, physical_sample="GaN-0417", tags=["night shift"])

    assert callback.drain(timeout_s=20)
    server.behave()
    (stream,) = server.streams()
    assert (stream.points, stream.status, stream.project_id) == (50, "success", known)
    assert samples(server) == ["GaN-0417"]
    assert set(stream.tags) == {"night shift", "bluesky: success"}


def test_a_refused_list_and_a_name_that_is_taken_park_the_run_with_its_readings(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    ask(server, "POST", "/tags/", {"name": "night shift"})
    server.misbehave(Fault(call="tags", method="GET", status=403))

    run(callback, tags=["night shift"])

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert (parked.state, parked.points.waiting) == ("parked", 50)
    assert "tag 'night shift'" in (parked.problem or "")
    assert "--no-tags`" in (parked.problem or "")


@pytest.mark.parametrize(
    ("call", "links", "status"),
    [
        ("samples", {"physical_sample": "GaN-0417"}, 401),
        ("tags", {"tags": ["night shift"]}, 401),
        ("projects", {"project_id": NOBODY}, 401),
        ("projects", {"project_id": NOBODY}, 403),  # the list and the project's own request
    ],
)
def test_a_list_that_is_refused_for_its_key_waits_for_another_key(
    callback: AtomscaleCallback,
    server: LocalServer,
    caplog: pytest.LogCaptureFixture,
    call: str,
    links: dict[str, Any],
    status: int,
) -> None:
    server.misbehave(Fault(call=call, method="GET", status=status))

    run(callback, **links)

    wait_until(lambda: "check the API key" in caplog.text)
    assert server.requests("initialize") == []
    assert [one.state for one in callback.status()] == ["delivering"]


# ---- tracking --------------------------------------------------------------------------------------------------------


def tracked(server: LocalServer) -> tuple[str | None, list[str]]:
    configuration = ask(server, "GET", "/projects/")[0]["configuration"]
    return configuration["tracking_physical_sample_id"], configuration["tracking_physical_sample_ids"]


def test_a_projects_active_sample_is_left_alone_unless_a_run_asks(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    run(callback, physical_sample="GaN-0417", project_id=project(server))

    assert callback.drain(timeout_s=20)
    assert server.requests("track_sample") == []
    assert tracked(server) == (None, [])


def test_a_run_that_is_delivered_days_late_does_not_become_the_active_one(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(25, start_metadata={"project_id": project(server), **LINKS}):
            callback(name, doc | {"time": time.time() - 86_400} if name == "stop" else doc)

    assert make_callback().drain(timeout_s=20)

    active, followed = tracked(server)
    assert (active, len(followed)) == (None, 1)


# ---- how a run ended -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_status", ["success", "abort", "fail"])
def test_a_tagged_stream_gets_a_tag_for_how_its_run_ended(
    callback: AtomscaleCallback, server: LocalServer, exit_status: str
) -> None:
    run(callback, tags=["night shift"], exit_status=exit_status)

    assert callback.drain(timeout_s=20)
    assert server.streams()[0].tags == (f"bluesky: {exit_status}", "night shift")


def test_draining_right_after_the_stop_waits_for_the_tag_of_the_ending(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    for n in range(3):
        *documents, stop = growth(20, start_metadata={"tags": ["night shift"]})
        for name, doc in documents:
            callback(name, doc)
        assert callback.drain(timeout_s=20)  # every point is there, in full chunks

        callback(*stop)

        assert callback.drain(timeout_s=20)
        assert (server.streams()[n].status, server.streams()[n].tags[0]) == ("success", "bluesky: success")


def test_why_a_run_failed_stands_in_the_label_and_makes_no_tag_of_its_own(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    for n in range(3):
        uid = run(callback, tags=["night shift"], exit_status="fail", reason=f"heater {n}\ntripped " + "x" * 500)

    assert callback.drain(timeout_s=20)
    assert tags(server) == ["bluesky: fail", "night shift"]
    (label,) = [stream.label for stream in server.streams() if stream.label and f"[{uid[:8]}-" in stream.label]
    assert "· fail: heater 2 tripped xxx" in label
    assert len(label) <= 240


@pytest.mark.parametrize(("exit_status", "word"), [("fail", " · fail ["), ("abort", " · abort ["), ("success", None)])
def test_the_label_of_a_run_without_tags_says_that_it_failed_and_keeps_the_reason_here(
    callback: AtomscaleCallback, server: LocalServer, exit_status: str, word: str | None
) -> None:
    run(callback, exit_status=exit_status, reason="no such file: /home/grower/recipe")

    assert callback.drain(timeout_s=20)
    (stream,) = server.streams()
    assert stream.label is not None
    assert stream.status == "success"
    assert (word in stream.label) if word else ("·" not in stream.label)
    assert "grower" not in stream.label
    assert tags(server) == []


def test_a_label_that_cannot_be_changed_costs_nothing_but_a_word(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="change_entry", status=405))

    run(callback, tags=["night shift"], exit_status="fail", reason="heater tripped")

    assert callback.drain(timeout_s=20)
    assert server.streams()[0].status == "success"
    assert [record for record in caplog.records if "keeps its label" in record.message]


def test_an_interrupted_run_is_tagged_as_such_by_the_next_session(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback(tags=["night shift"])
    for name, doc in growth(25):
        if name != "stop":
            callback(name, doc)
    callback.close()

    assert server.streams()[0].tags == ("bluesky: interrupted", "night shift")


def test_settings_give_every_run_a_project_and_tags_unless_the_run_has_its_own(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    other = server.add_project("Nitrides")
    callback = make_callback(project_id=project(server), tags=["chamber 3"])

    run(callback)
    run(callback, tags=["recipe 12"], project_id=other)
    run(callback, tags=[])

    assert callback.drain(timeout_s=20)
    found = sorted((stream.tags, stream.project_id == other) for stream in server.streams())
    assert found == [
        ((), False),
        (("bluesky: success", "chamber 3"), False),
        (("bluesky: success", "recipe 12"), True),
    ]


# ---- what a run became -----------------------------------------------------------------------------------------------


def test_a_run_tells_which_streams_it_became_while_it_runs_and_when_it_is_finished(
    make_callback: MakeCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback()
    documents = list(growth(25))
    uid = documents[0][1]["uid"]
    assert callback.streams(uid) == ()
    for name, doc in documents[:-1]:
        callback(name, doc)
    wait_until(lambda: callback.streams(uid) and callback.streams(uid)[0].state == "initialized")
    callback(*documents[-1])
    caplog.set_level("INFO")
    assert callback.drain(timeout_s=20)
    wait_until(lambda: not callback.status())

    (stream,) = callback.streams(uid)

    (there,) = server.streams()
    assert (stream.data_id, stream.label, stream.state) == (there.data_id, there.label, "finalized")
    assert stream.event_stream == "primary"
    assert uid[:8] in stream.label
    assert any(there.data_id in record.getMessage() and uid in record.getMessage() for record in caplog.records)
    assert make_callback(offline=True).streams(uid) == (stream,)  # by any later session


def test_a_run_that_waits_for_the_network_has_streams_without_an_id(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.unreachable()
    callback = make_callback()

    uid = run(callback)

    wait_until(lambda: callback.streams(uid))
    assert [stream.data_id for stream in callback.streams(uid)] == [None]


# ---- outages and ends ------------------------------------------------------------------------------------------------

WRITES = ["samples", "tags", "initialize", "attach_tags", "link_sample", "track_sample", "change_entry", "finalize"]


def check_linked_once(server: LocalServer) -> None:
    """One of everything, linked as asked, and every point once."""
    (stream,) = [stream for stream in server.streams() if stream.points or stream.tags]
    assert (stream.status, stream.points, stream.changed) == ("success", 50, 0)
    assert samples(server) == ["GaN-0417"]
    assert stream.physical_sample_id == ask(server, "GET", "/physical_samples/")[0]["id"]
    assert stream.tags == ("bluesky: fail", "night shift", "recipe 12")
    assert tracked(server)[0] == stream.physical_sample_id
    assert "heater" in (stream.label or "")
    assert len(server.streams()) == 1


@pytest.mark.parametrize("action", ["reset_before", "reset_after"])
@pytest.mark.parametrize("call", [*WRITES, "projects", "catalogue"])
def test_an_answer_that_is_lost_makes_nothing_twice_and_forgets_nothing(
    make_callback: MakeCallback, server: LocalServer, call: str, action: str
) -> None:
    server.misbehave(Fault(call=call, times=2, **{action: True}))
    callback = make_callback(api="tool-state")

    run(callback, project_id=ask_project(server), exit_status="fail", reason="heater tripped", **LINKS)

    assert callback.drain(timeout_s=60)
    check_linked_once(server)


def ask_project(server: LocalServer) -> str:
    """The project's id, asked again where a fault is in the way."""
    while True:
        try:
            return project(server)
        except requests.ConnectionError:
            continue


KILLED = """
    import sys
    from runs import growth
    from atomscale_bluesky import AtomscaleCallback, Settings
    callback = AtomscaleCallback(settings=Settings.load(api="tool-state", points_per_chunk=10))
    links = {"physical_sample": "GaN-0417", "tags": ["night shift", "recipe 12"], "track_sample": True}
    for name, doc in growth(25, start_metadata={"project_id": sys.argv[1], **links}):
        callback(name, doc | {"exit_status": "fail", "reason": "heater tripped"} if name == "stop" else doc)
    print("fed", flush=True)
    callback.drain(60)
"""


@pytest.fixture
def child(server: LocalServer, spool_dir: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "ATOMSCALE_API_ENDPOINT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }
        script = "\n".join(line.removeprefix("    ") for line in KILLED.splitlines())
        command = [sys.executable, "-c", script, project(server)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", WRITES)
def test_a_process_killed_at_any_step_of_linking_is_completed_by_the_next_one(
    make_callback: MakeCallback,
    server: LocalServer,
    child: Callable[[], subprocess.Popen[bytes]],
    call: str,
    applied: bool,
) -> None:
    method = "PATCH" if call == "change_entry" else "POST"
    server.misbehave(Fault(call=call, method=method, times=1, **({"drip_s": 5.0} if applied else {"hang": True})))
    process = child()
    assert process.stdout is not None
    assert process.stdout.readline() == b"fed\n"  # without its stop document the run would be interrupted, not failed
    wait_until(lambda: any(record.fault for record in server.requests(call)), timeout_s=30)
    if applied:
        wait_until(lambda: any(record.fault and record.handled for record in server.requests(call)))
    process.kill()
    process.wait()
    server.behave()

    assert make_callback(api="tool-state").drain(timeout_s=30)

    check_linked_once(server)
    made = Counter((record.call, record.path) for record in server.requests() if record.handled == 200)
    assert made["track_sample", f"/projects/{project(server)}/configuration/tracking_samples"] <= 2
    assert not Spool(make_callback(offline=True).settings.spool_path).run_folders()


def test_links_are_made_once_however_often_the_run_is_taken_up_again(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="finalize", status=503))
    callback = make_callback()
    run(callback, project_id=project(server), **LINKS)
    for _ in range(3):
        asked = len(server.requests("finalize"))
        wait_until(lambda asked=asked: len(server.requests("finalize")) > asked)
        callback.close(timeout_s=0)
        callback = make_callback()
    server.behave()

    assert callback.drain(timeout_s=30)

    made = Counter(record.call for record in server.requests() if record.method == "POST")
    assert (made["samples"], made["track_sample"], made["attach_tags"]) == (1, 1, 2)  # the run's tags, and its end


def test_a_foreign_stream_in_the_catalogue_is_never_taken_for_ours(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    theirs = ask(server, "POST", "/metrology/stream/initialize", {"points_per_chunk": 10, "stream_name": "grow"})
    server.misbehave(
        Fault(call="initialize", reset_before=True, times=1),
        Fault(call="catalogue", body=json.dumps([{"data_id": theirs["data_id"], "raw_name": "grow"}]), times=3),
    )
    callback = make_callback()

    run(callback, stream_name="grow")

    assert callback.drain(timeout_s=20)
    by_id = {stream.data_id: stream for stream in server.streams()}
    assert by_id.pop(theirs["data_id"]).points == 0
    assert [stream.points for stream in by_id.values()] == [50]


def test_names_are_resolved_on_no_thread_of_the_plans(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(call=("samples", "projects", "tags"), delay_s=0.5))
    documents = growth(25, start_metadata={"physical_sample": "GaN-0417", "tags": ["night shift"]})

    before = len(server.requests())
    for name, doc in documents:
        callback(name, doc)
    asked = {record.call for record in server.requests()[before:] if record.status is not None}

    assert asked == set()  # all documents were taken before the first answer had come
    assert threading.current_thread() is threading.main_thread()
    assert callback.drain(timeout_s=20)


def test_links_without_an_answer_hold_up_no_chunk_of_their_run(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="attach_tags", status=503))
    run = compose_run(metadata={"synth_source_id": 42, "atomscale": {"tags": ["night"]}})
    callback("start", run.start_doc)
    streams: list[Any] = []
    for n in range(10):
        keys = {f"k{n}": {"source": "sim", "dtype": "number", "shape": []}}
        streams.append(run.compose_descriptor(name=f"s{n}" if n else "primary", data_keys=keys))
        callback("descriptor", streams[-1].descriptor_doc)
    for point in range(20):
        at = run.start_doc["time"] + point
        for n, stream in enumerate(streams):
            callback("event", stream.compose_event(data={f"k{n}": 1.0}, timestamps={f"k{n}": at}, time=at))

    wait_until(lambda: [stream.points for stream in server.streams()] == [20] * 10, timeout_s=30)
    server.behave()
    callback("stop", run.compose_stop())
    assert callback.drain(timeout_s=90)
    assert {tag for stream in server.streams() for tag in stream.tags} >= {"night"}
