"""Links that cannot be: each has its clear answer, the readings are kept, and a person can mend it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from runs import growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
NOBODY = "00000000-0000-4000-8000-000000000000"
FOREIGN = 17  # an instrument that the local server does not have, as one of another organisation


def run(callback: AtomscaleCallback, **metadata: Any) -> str:
    """A run of 25 events with two channels; its uid."""
    uid = ""
    for name, doc in growth(25, start_metadata=metadata):
        uid = uid or doc["uid"]
        callback(name, doc)
    return uid


def edit(callback: AtomscaleCallback, uid: str, *options: str) -> int:
    return main(["edit", uid[:8], *options, "--spool-dir", str(callback.settings.spool_path)])


def check_mended(callback: AtomscaleCallback, server: LocalServer) -> None:
    """All readings arrive once, in one whole stream."""
    wait_until(lambda: not callback.status())
    whole = [stream for stream in server.streams() if stream.status == "success"]
    assert [(stream.points, stream.doubled) for stream in whole] == [(50, 0)]
    assert held(server)["k1"] == [n + 0.1 for n in range(25)]


@pytest.mark.parametrize("family", ["metrology", "tool-state"])
@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_an_instrument_of_another_organisation_parks_its_run_by_name_whatever_the_server_calls_it(
    make_callback: MakeCallback, server: LocalServer, status: int, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="initialize", label="foreign", status=status, body='{"detail": "not yours"}'))
    callback = make_callback(api=family)

    uid = run(callback, synth_source_id=FOREIGN, stream_name="foreign")

    wait_until(lambda: [one.state for one in callback.status()] == ["parked"])
    (parked,) = callback.status()
    assert str(FOREIGN) in (parked.problem or "")
    assert "not yours" in (parked.problem or "")
    assert (parked.points.waiting, parked.points.delivered, server.streams()) == (50, 0, [])
    (error,) = wait_until(lambda: [one.getMessage() for one in caplog.records if one.levelname == "ERROR"])
    assert "edit" in error

    server.behave()
    assert edit(callback, uid, "--synth-source-id", "42") == 0
    check_mended(callback, server)


def test_a_key_that_may_not_write_differs_from_an_instrument_it_cannot_see(
    callback: AtomscaleCallback, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.misbehave(Fault(call="initialize", status=403, times=1))

    run(callback, synth_source_id=42)  # which is in the list

    wait_until(lambda: "check the API key" in caplog.text)
    assert [one.state for one in callback.status()] == ["delivering"]
    wait_until(lambda: [stream.points for stream in server.streams()] == [50], timeout_s=30)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"project_id": "the nitrides"}, "'project_id' is 'the nitrides'; expected a UUID such as"),
        ({"physical_sample_id": "wafer 17"}, "'physical_sample_id' is 'wafer 17'; expected a UUID such as"),
        ({"physical_sample": "x" * 300}, "expected up to 255 characters, there are 300"),
        ({"tags": ["recipe 12", "night\nshift"]}, "expected printable text on one line"),
        ({"tags": ["x" * 300]}, "expected up to 255 characters, there are 300"),
    ],
    ids=["project", "sample id", "long sample", "line break", "long tag"],
)
def test_what_cannot_be_a_name_or_an_id_parks_the_run_with_what_was_expected_and_keeps_its_readings(
    callback: AtomscaleCallback,
    server: LocalServer,
    metadata: dict[str, Any],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uid = run(callback, atomscale=metadata)

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert (parked.state, parked.points.waiting) == ("parked", 50)
    assert said in (parked.problem or "")
    assert next(iter(metadata)) in (parked.problem or "")
    assert sum(said in record.getMessage() for record in caplog.records) == 1
    assert {record.call for record in server.requests()} <= {"time"}

    assert edit(callback, uid, "--physical-sample", "GaN-0417", "--tag", "night shift", "--no-project") == 0
    check_mended(callback, server)


@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_project_of_another_organisation_is_unknown_whatever_the_server_calls_it(
    callback: AtomscaleCallback, server: LocalServer, status: int
) -> None:
    # The list, which does not have it, is answered; asking for its samples is not.
    server.misbehave(Fault(call="projects", status=status, body='{"detail": "not yours"}', skip=1))

    uid = run(callback, project_id=NOBODY)

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert (parked.state, parked.points.waiting, server.streams()) == ("parked", 50, [])
    assert f"there is no project {NOBODY} that this key can see" in (parked.problem or "")
    server.behave()
    assert edit(callback, uid, "--no-project") == 0
    check_mended(callback, server)


def test_a_sample_id_that_is_not_found_parks_the_run_and_names_the_remedies(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.misbehave(Fault(call="samples", status=404, body='{"detail": "no such thing"}'))

    uid = run(callback, physical_sample_id=NOBODY)

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert f"there is no physical sample {NOBODY} that this key can see" in (parked.problem or "")
    assert f"`atomscale-bluesky edit {uid[:8]} --no-sample`" in (parked.problem or "")
    assert edit(callback, uid, "--no-sample") == 0
    check_mended(callback, server)


def test_an_unknown_tag_id_holds_up_no_reading_and_an_edit_leaves_it_out(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    uid = run(callback, tags=[NOBODY, "night shift"])

    assert not callback.drain(timeout_s=20)
    (parked,) = callback.status()
    assert (parked.state, parked.points.delivered) == ("parked", 50)
    assert NOBODY in (parked.problem or "")
    assert edit(callback, uid, "--tag", "night shift") == 0
    check_mended(callback, server)
    assert server.streams()[0].tags == ("bluesky: success", "night shift")


@pytest.mark.parametrize("lost", ["initialize", "finalize"])
def test_a_foreign_stream_in_the_catalogues_answer_gets_no_readings(
    callback: AtomscaleCallback, server: LocalServer, lost: str
) -> None:
    theirs = {"data_id": NOBODY, "raw_name": "grow", "pipeline_status": "success", "physical_sample_id": NOBODY}
    server.misbehave(
        Fault(call=lost, reset_after=True, times=1),
        Fault(call="catalogue", body=json.dumps([theirs]), times=4),
    )

    run(callback, stream_name="grow", physical_sample="GaN-0417")

    wait_until(lambda: [stream.points for stream in server.streams() if stream.points] == [50], timeout_s=30)
    assert not [record for record in server.requests() if record.data_id == NOBODY]
    # While the catalogue has only the foreign stream, nobody says that ours is finalized, so it is asked again.
    assert callback.drain(timeout_s=20)
    assert [stream.status for stream in server.streams() if stream.points] == ["success"]
