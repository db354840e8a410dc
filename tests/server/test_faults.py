"""Misbehaviour to order: what each action does to a request, and which requests a fault meets."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import requests

from atomscale_bluesky.errors import SettingsError
from atomscale_bluesky.server import LOGIN_PAGE, Fault

T0 = 1_760_000_000.0


def test_a_status_is_answered_instead_with_its_headers_and_the_request_is_not_applied(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", status=503, headers={"Retry-After": "7"}, times=1))

    answer = api.chunk(data_id, 0)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
    assert server.points(data_id) == {}
    assert api.chunk(data_id, 0).status_code == 200


def test_a_status_may_be_answered_to_a_request_that_was_applied(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", status=502, applied=True, times=1))

    assert api.chunk(data_id, 0).status_code == 502
    assert server.points(data_id)["T"].values == [0, 1, 2, 3]
    record = server.requests("chunk")[-1]
    assert (record.status, record.handled) == (502, 200)


def test_a_redirect_names_its_location(server, api):
    server.misbehave(Fault(call="initialize", status=307, headers={"Location": "http://127.0.0.1:9/elsewhere"}))
    answer = api.try_initialize()
    assert (answer.status_code, answer.headers["Location"]) == (307, "http://127.0.0.1:9/elsewhere")


def test_a_login_page_comes_as_html_with_status_200(server, api):
    server.misbehave(Fault(call="catalogue", body=LOGIN_PAGE, content_type="text/html"))
    answer = api.entries()
    assert (answer.status_code, answer.headers["Content-Type"], answer.text) == (200, "text/html", LOGIN_PAGE)


def test_a_status_without_content_has_no_body(server, api):
    server.misbehave(Fault(call="finalize", status=204))
    answer = api.finalize(api.initialize())
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    ("garble", "expected"),
    [("empty", b""), ("half", b'{"data_id":"')],
)
def test_an_answer_can_be_cut_although_the_request_was_applied(server, api, garble, expected):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", garble=garble))
    answer = api.chunk(data_id, 0)
    assert answer.status_code == 200
    assert answer.content.startswith(expected)
    with pytest.raises(ValueError, match="Expecting value|Unterminated|delimiter"):
        answer.json()
    assert len(server.points(data_id)["T"].values) == 4


def test_an_answer_can_be_about_another_chunk(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call=("chunk", "chunk_multi"), garble="other_chunk"))
    assert api.chunk(data_id, 0).json()["chunk_index"] == 1
    assert {one["chunk_index"] for one in api.multi(data_id, 1, ["a", "b"]).json()} == {2}


def test_a_reset_before_leaves_nothing(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", reset_before=True, times=1))
    with pytest.raises(requests.ConnectionError):
        api.chunk(data_id, 0)
    assert server.points(data_id) == {}
    assert server.requests("chunk")[-1].handled is None


def test_a_reset_after_has_applied_the_request(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", reset_after=True, times=1))
    with pytest.raises(requests.ConnectionError):
        api.chunk(data_id, 0)
    assert server.points(data_id)["T"].values == [0, 1, 2, 3]
    record = server.requests("chunk")[-1]
    assert (record.status, record.handled) == (None, 200)


def test_a_lost_initialize_has_created_a_stream(server, api):
    server.misbehave(Fault(call="initialize", reset_after=True, times=1))
    with pytest.raises(requests.ConnectionError):
        api.initialize(stream_name="token 4711")
    [entry] = api.entries(keywords="token 4711", status="stream_active").json()
    assert entry["data_id"] == server.requests("initialize")[-1].data_id


def test_a_request_can_be_applied_later_than_its_connection_lives(server, api, wait_for):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", apply_later_s=0.1, times=1))
    with pytest.raises(requests.ConnectionError):
        api.chunk(data_id, 0)
    assert server.points(data_id) == {}
    wait_for(lambda: server.points(data_id))
    assert wait_for(lambda: server.requests("chunk")[-1].handled) == 200


def test_a_delay_comes_before_the_request_is_handled(server, api):
    server.misbehave(Fault(call="catalogue", delay_s=0.1))
    started = time.monotonic()
    assert api.entries().status_code == 200
    assert time.monotonic() - started >= 0.1


def test_a_delayed_request_is_applied_although_its_client_has_left(server, api, wait_for):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", delay_s=0.2))
    with pytest.raises(requests.Timeout):
        api.ask(
            "POST",
            "/metrology/stream/chunk",
            {"data_id": data_id, "chunk_index": 0, "channel_name": "T", "timestamps": [T0], "values": [1]},
            timeout=0.05,
        )
    wait_for(lambda: server.points(data_id))


def test_a_request_hangs_until_its_client_leaves(server, api, wait_for):
    server.misbehave(Fault(call="catalogue", hang=True, times=1))
    with pytest.raises(requests.Timeout):
        api.ask("GET", "/data_entries/", timeout=0.05)
    record = wait_for(lambda: [one for one in server.requests("catalogue") if one.duration_s is not None])[0]
    assert record.status is None


def test_a_server_with_hanging_and_delayed_requests_stops_at_once(server, make_api):
    server.misbehave(Fault(call="catalogue", hang=True), Fault(call="tags", delay_s=600))
    for path in ("/data_entries/", "/tags/"):
        with pytest.raises(requests.Timeout):
            make_api(server).ask("GET", path, timeout=0.05)
    assert server.stop(timeout_s=5)


def test_a_dripped_answer_comes_byte_by_byte_and_whole(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk", drip_s=0.001))
    started = time.monotonic()
    answer = api.chunk(data_id, 0)
    assert answer.json()["total_points"] == 4
    assert time.monotonic() - started >= 0.001 * len(answer.content)


def test_a_fault_about_a_channel_refuses_every_request_that_has_it_and_names_it(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(channel="bad", status=422))
    answer = api.multi(data_id, 0, ["good", "bad"])
    assert answer.status_code == 422
    assert "'bad'" in answer.json()["detail"]
    assert api.chunk(data_id, 0, "bad").status_code == 422
    assert api.chunk(data_id, 0, "good").status_code == 200


def test_a_fault_about_large_bodies_leaves_small_ones_alone(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(above_bytes=400, status=413))
    assert api.multi(data_id, 0, ["a", "b", "c", "d"]).status_code == 413
    assert api.multi(data_id, 0, ["a"]).status_code == 200


def test_a_multi_can_be_applied_in_part(server, api):
    data_id = api.initialize()
    server.misbehave(Fault(call="chunk_multi", partly=1, reset_after=True, times=1))
    with pytest.raises(requests.ConnectionError):
        api.multi(data_id, 0, ["a", "b"])
    assert list(server.points(data_id)) == ["a"]
    assert api.multi(data_id, 0, ["a", "b"]).status_code == 200
    assert list(server.points(data_id)) == ["a", "b"]


def test_a_fault_meets_only_the_stream_index_and_family_it_names(server, make_api):
    api, other = make_api(server, "metrology"), make_api(server, "tool-state")
    first, second, third = api.initialize(stream_name="run a"), api.initialize(stream_name="run b"), other.initialize()
    server.misbehave(
        Fault(data_id=first, chunk_index=1, status=500),
        Fault(label="n b", status=501),
        Fault(family="tool-state", status=504),
    )
    assert [api.chunk(first, index).status_code for index in (0, 1, 2)] == [200, 500, 200]
    assert [api.chunk(second, 0).status_code, api.finalize(second).status_code] == [501, 501]
    assert other.chunk(third, 0).status_code == 504


def test_a_fault_acts_after_so_many_requests_for_so_many_times(server, api):
    server.misbehave(Fault(call="tags", status=500, skip=2, times=2))
    assert [api.ask("GET", "/tags/").status_code for _ in range(6)] == [200, 200, 500, 500, 200, 200]
    [state] = server.faults()
    assert (state.matched, state.acted) == (6, 2)


def test_a_fault_of_chance_repeats_with_its_seed(server, api):
    def draw(seed):
        server.behave()
        server.misbehave(Fault(call="tags", status=500, probability=0.5, seed=seed))
        return [api.ask("GET", "/tags/").status_code for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert set(draw(1)) == {200, 500}


def test_a_fault_above_a_rate_lets_requests_at_that_rate_pass(server, api):
    server.misbehave(Fault(call="instruments", status=429, above_per_s=20.0))
    begin = time.monotonic()
    answers = []
    while time.monotonic() - begin < 1.0:
        answers.append(api.ask("GET", "/instruments/synthesis").status_code)
    took = time.monotonic() - begin

    assert set(answers) == {200, 429}
    assert 0.5 * 20 * took <= answers.count(200) <= 20 * took + 3


def test_a_delay_for_each_request_under_way_grows_with_them(server, api, wait_for):
    server.misbehave(Fault(call="projects", delay_s=4.0), Fault(call="instruments", delay_each_s=0.1))

    def asked(path):
        begin = time.monotonic()
        with requests.Session() as session:
            session.trust_env = False
            session.get(server.url + path, headers={"X-API-KEY": server.api_key}, timeout=30)
        return time.monotonic() - begin

    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(asked, "/projects") for _ in range(5)]
        wait_for(lambda: server.counts().under_way == 5)
        assert asked("/instruments/synthesis") >= 0.5
    assert all(other.result() >= 4.0 for other in others)
    begin = server.requests()[-1].number
    asked("/instruments/synthesis")
    assert server.requests(after=begin)[0].duration_s < 0.4  # less than beside the others


def test_the_first_fault_that_matches_and_is_not_used_up_decides(server, api):
    numbers = server.misbehave(Fault(call="tags", status=500, times=1), Fault(status=503))
    assert [api.ask("GET", "/tags/").status_code for _ in range(2)] == [500, 503]
    assert [record.fault for record in server.requests("tags")] == numbers


def test_behaving_again_takes_every_fault_back(server, api):
    server.misbehave(Fault(status=500))
    assert api.entries().status_code == 500
    server.behave()
    assert api.entries().status_code == 200
    assert server.faults() == []


def test_the_clock_and_unknown_paths_can_be_made_to_fail_too(server, api):
    server.misbehave(Fault(call=("time", "other"), status=500))
    assert api.ask("GET", "/gateway/time").status_code == 500
    assert api.ask("GET", "/nowhere").status_code == 500


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({}, "no action"),
        ({"status": 500, "hang": True}, "status or body and hang"),
        ({"call": "chunks", "status": 500}, "'chunks'"),
    ],
)
def test_a_fault_that_could_not_act_says_so(members, told):
    with pytest.raises(SettingsError, match=told):
        Fault(**members)


def test_a_fault_is_data(server):
    fault = Fault(call=("chunk", "finalize"), status=503, headers={"Retry-After": "1"}, times=2)
    assert msgspec.json.decode(msgspec.json.encode(fault), type=Fault) == fault
    server.misbehave(fault)
    assert server.faults()[0].fault == fault


@pytest.mark.parametrize(
    "fault", [Fault(hang=True), Fault(delay_s=600), Fault(drip_s=600)], ids=["hang", "delay", "drip"]
)
def test_a_client_that_waits_is_reset_at_once_when_the_server_stops(server, api, wait_for, caplog, fault):
    server.misbehave(fault)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.entries)
        wait_for(lambda: server.requests("catalogue"))
        started = time.monotonic()
        assert server.stop(timeout_s=5)
        with pytest.raises(requests.RequestException):
            asked.result(timeout=5)
    assert time.monotonic() - started < 1
    assert caplog.records == []


def test_a_request_to_be_applied_later_is_not_when_the_server_stops_before(server, api):
    server.misbehave(Fault(call="initialize", apply_later_s=600, times=1))
    with pytest.raises(requests.ConnectionError):
        api.initialize()
    assert server.stop(timeout_s=5)
    server.start()
    assert server.streams() == []
