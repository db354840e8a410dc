"""A stream's life under both path families."""

from __future__ import annotations

import pytest

T0 = 1_760_000_000.0
FAMILIES = ["metrology", "tool-state"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sent_is_what_is_stored(server, make_api, family):
    api = make_api(server, family)
    data_id = api.initialize(stream_name="growth", synth_source_id=42)
    assert api.multi(data_id, 0, ["T", "p"]).status_code == 200
    assert api.chunk(data_id, 1, "T", count=2, units=None).status_code == 200

    points = server.points(data_id)

    assert points["T"].times == [T0, T0 + 1, T0 + 2, T0 + 3, T0 + 4, T0 + 5]
    assert points["T"].values == [0, 1, 2, 3, 4, 5]
    assert points["T"].chunks == [(0, 4), (1, 2)]
    assert points["p"].values == [0, 1, 2, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finalized_stream_reads_back_in_milliseconds(server, make_api, family):
    api = make_api(server, family)
    data_id = api.initialize()
    api.chunk(data_id, 0, timestamps=[T0 + 0.0014, T0 + 0.5, T0 + 1, T0 + 2.25], values=[1, 2.5, -3, 4e-9])
    assert api.finalize(data_id).json()["data_id"] == data_id

    answer = api.read(data_id).json()

    assert answer["properties"]["T"] == {
        "relative_time_seconds": [0.0, pytest.approx(0.4986, abs=1e-6), pytest.approx(0.9986, abs=1e-6), 2.2486],
        "unix_timestamp_ms": [1760000000001, 1760000000500, 1760000001000, 1760000002250],
        "values": [1, 2.5, -3, 4e-9],
        "units": "K",
    }


def test_times_and_values_are_stored_to_the_last_bit(server, api):
    data_id = api.initialize()
    times = [T0 + i / 7 for i in range(4)]
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308]
    api.chunk(data_id, 0, timestamps=times, values=values)

    assert server.points(data_id)["T"].times == times
    assert server.points(data_id)["T"].values == values


def test_initialize_is_not_idempotent(server, api):
    assert api.initialize(stream_name="same") != api.initialize(stream_name="same")
    assert len(server.streams()) == 2


def test_the_status_goes_from_stream_active_to_success(api):
    data_id = api.initialize()
    assert api.entries(data_ids=data_id).json()[0]["pipeline_status"] == "stream_active"
    api.finalize(data_id)
    assert api.entries(data_ids=data_id).json()[0]["pipeline_status"] == "success"


def test_chunks_may_arrive_in_any_order(server, api):
    data_id = api.initialize()
    for index in (2, 0, 1):
        assert api.chunk(data_id, index).status_code == 200

    assert api.finalize(data_id).status_code == 200
    assert server.points(data_id)["T"].values == list(range(12))


def test_total_points_counts_what_is_held(api):
    data_id = api.initialize()
    assert [api.chunk(data_id, index).json()["total_points"] for index in (0, 2, 1, 1)] == [4, 8, 12, 12]


def test_a_chunk_sent_twice_is_stored_once_and_counted(server, api):
    data_id = api.initialize()
    assert api.chunk(data_id, 0).json() == api.chunk(data_id, 0).json()
    assert api.multi(data_id, 1, ["q"]).status_code == 200
    assert api.multi(data_id, 1, ["q"]).status_code == 200

    assert server.points(data_id)["T"].values == [0, 1, 2, 3]
    assert server.streams()[0].doubled == 2
    assert server.streams()[0].changed == 0


def test_the_answers_of_a_multi_come_in_another_order_than_the_channels(api):
    answer = api.multi(api.initialize(), 0, ["a", "b", "c"]).json()
    assert [one["channel_name"] for one in answer] == ["c", "b", "a"]
    assert {one["total_points"] for one in answer} == {4}


def test_a_multi_with_one_bad_channel_stores_none_of_them(server, api):
    data_id = api.initialize()
    good = {"timestamps": [T0], "values": [1.0]}
    assert api.multi(data_id, 0, {"a": good, "b": {"timestamps": [T0], "values": []}}).status_code == 422
    assert server.points(data_id) == {}


def test_a_channel_may_end_early(api):
    data_id = api.initialize()
    api.multi(data_id, 0, ["a", "b"])
    api.multi(data_id, 1, ["a"])
    assert api.finalize(data_id).status_code == 200


def test_a_stream_without_points_can_be_finalized_and_reads_back_empty(api):
    data_id = api.initialize()
    assert api.finalize(data_id).status_code == 200
    assert api.read(data_id).json() == {"properties": {}, "series_max_time": 0.0}


def test_an_active_stream_can_be_read(api):
    data_id = api.initialize()
    api.chunk(data_id, 0)
    assert api.read(data_id).json()["properties"]["T"]["values"] == [0, 1, 2, 3]


def test_a_stream_with_a_hole_stays_active_until_the_hole_is_filled(server, api):
    data_id = api.initialize()
    api.chunk(data_id, 0)
    api.chunk(data_id, 2)
    assert "chunk 1 of channel 'T' is missing" in api.finalize(data_id).json()["detail"]
    assert server.streams()[0].status == "stream_active"
    api.chunk(data_id, 1)
    assert api.finalize(data_id).status_code == 200
    assert server.streams()[0].finalize_calls == 2


def test_a_stream_that_was_silent_for_too_long_is_in_stream_error_and_takes_nothing(make_server, make_api, wait_for):
    server = make_server(silence_s=0.05)
    api = make_api(server)
    data_id = api.initialize()
    wait_for(lambda: server.streams()[0].status == "stream_error")
    assert api.chunk(data_id, 0).status_code == 409
    assert api.finalize(data_id).status_code == 409
    assert api.entries(status="stream_error").json()[0]["data_id"] == data_id


def test_a_family_that_does_not_exist_answers_not_found(make_server, make_api):
    server = make_server(families=("tool-state",))
    answer = make_api(server, "metrology").try_initialize()
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert make_api(server, "tool-state").try_initialize().status_code == 200


def test_chunk_multi_can_be_left_out(make_server, make_api):
    server = make_server(multi=False)
    api = make_api(server)
    data_id = api.initialize()
    answer = api.multi(data_id, 0, ["T"])
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert api.chunk(data_id, 0).status_code == 200


def test_paths_are_exact_about_their_last_slash(api):
    assert api.ask("GET", "/data_entries").status_code == 404
    assert api.ask("POST", "/metrology/stream/initialize/", {"points_per_chunk": 1}).status_code == 404
