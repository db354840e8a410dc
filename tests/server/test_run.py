"""Running a server: ports, restarts, outages, the data file, and many clients at once."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import requests

from atomscale_bluesky.errors import ApiUnavailableError, SettingsError
from atomscale_bluesky.server import Control, Fault, LocalServer, serve
from atomscale_bluesky.server.api_description import ANSWERS, EXAMPLES

T0 = 1_760_000_000.0


def test_a_server_that_is_closed_leaves_no_thread_and_gives_its_ports_back():
    before = set(threading.enumerate())
    with LocalServer(control=True) as server:
        url, control_url = server.url, server.control_url
        assert requests.get(f"{url}/gateway/time", timeout=5).status_code == 200
    assert set(threading.enumerate()) == before
    for port in (int(one.rpartition(":")[2]) for one in (url, control_url)):
        with LocalServer(port=port):
            pass


def test_starting_and_stopping_twice_changes_nothing(server):
    url = server.url
    server.start()
    assert server.url == url
    assert server.stop()
    assert server.stop()


def test_a_restarted_server_has_the_same_port_and_the_data_of_its_file(make_server, make_api, tmp_path):
    server = make_server(data=tmp_path / "data.sqlite")
    api = make_api(server)
    url, data_id = server.url, api.initialize()
    api.chunk(data_id, 0)
    server.misbehave(Fault(call="tags", status=500))

    server.stop()
    with pytest.raises(requests.ConnectionError):
        api.chunk(data_id, 1)
    server.start()

    assert server.url == url
    assert api.chunk(data_id, 1).json()["total_points"] == 8
    assert api.finalize(data_id).status_code == 200
    assert api.ask("GET", "/tags/").status_code == 500
    assert [record.chunk_index for record in server.requests("chunk")] == [0, 1]


def test_data_in_memory_survive_a_restart_of_the_same_server(server, api):
    data_id = api.initialize()
    server.stop()
    server.start()
    assert api.entries().json()[0]["data_id"] == data_id


def test_another_server_goes_on_with_the_data_file(make_server, make_api, tmp_path):
    path = tmp_path / "data.sqlite"
    with LocalServer(data=path, control=True) as first:
        data_id = make_api(first).initialize(stream_name="kept")
    second = make_server(data=path)
    assert [stream.label for stream in second.streams()] == ["kept"]
    assert make_api(second).chunk(data_id, 0).status_code == 200


def test_a_data_file_has_one_server_at_a_time(make_server, tmp_path):
    path = tmp_path / "data.sqlite"
    make_server(data=path)
    with pytest.raises(SettingsError, match="Another server may have it open"):
        LocalServer(data=path).start()


def test_a_file_that_is_no_data_file_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    (tmp_path / "text").write_text("no database at all, but a text that is long enough to be looked at\n" * 20)
    with pytest.raises(SettingsError, match="is no data file of this server"):
        LocalServer(data=path).start()
    with pytest.raises(SettingsError, match="cannot be used: file is not a database"):
        LocalServer(data=tmp_path / "text").start()
    with pytest.raises(SettingsError, match="cannot be opened"):
        LocalServer(data=tmp_path / "no folder" / "data").start()


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("version", [0, 1, 7])
def test_a_database_of_another_program_is_refused_and_not_changed(tmp_path, mode, version):
    path = tmp_path / "other.sqlite"
    writes = f"""if True:
        import os, sqlite3
        database = sqlite3.connect({str(path)!r})
        database.execute("PRAGMA journal_mode={mode}")
        database.execute("PRAGMA user_version={version}")
        database.execute("CREATE TABLE mine (x)")
        database.commit()
        os._exit(0)  # as if killed, so that a write-ahead log stays
    """
    subprocess.run([sys.executable, "-c", writes], check=True)
    logs = [tmp_path / "other.sqlite-wal"] if mode == "wal" else []
    before = [file.read_bytes() for file in [path, *logs]]

    with pytest.raises(SettingsError, match="is no data file of this server"):
        LocalServer(data=path).start()
    assert [file.read_bytes() for file in [path, *logs]] == before
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
    database.close()


def test_the_data_of_a_killed_server_are_served_again(make_server, tmp_path):
    path = tmp_path / "data.sqlite"
    serves = f"""if True:
        import os
        from atomscale_bluesky.server import LocalServer
        LocalServer(data={str(path)!r}, projects=["kept"]).start()
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", serves], check=True)

    for _ in range(2):
        server = make_server(data=path)
        found = requests.get(f"{server.url}/projects/", headers={"X-API-KEY": server.api_key}, timeout=5).json()
        assert [one["name"] for one in found] == ["kept"]
        server.stop()


def test_a_port_that_is_taken_is_named_with_the_remedy(server):
    port = int(server.url.rpartition(":")[2])
    for options in ({"port": port}, {"control": True, "control_port": port}):
        with pytest.raises(SettingsError, match=f"port {port} of 127.0.0.1 .* give another port"):
            LocalServer(**options).start()


def test_a_host_that_others_reach_must_be_asked_for():
    with pytest.raises(SettingsError, match="allow_remote"):
        LocalServer(host="0.0.0.0")  # noqa: S104
    with pytest.raises(SettingsError, match="allow_remote"):
        LocalServer(host="lab-pc.example")
    LocalServer(host="0.0.0.0", allow_remote=True)  # noqa: S104
    LocalServer(host="localhost")


@pytest.mark.parametrize(
    "options",
    [{"api_key": ""}, {"families": ()}, {"families": ["rheed"]}, {"max_body_bytes": 0}, {"silence_s": float("nan")}],
)
def test_options_that_cannot_be_used_are_refused_before_anything_starts(options):
    with pytest.raises(SettingsError):
        LocalServer(**options)


def test_a_server_without_control_has_no_control_port(make_server):
    server = make_server(control=False)
    assert server.control_url is None
    with pytest.raises(SettingsError, match="control=True"):
        server.streams()
    assert requests.get(f"{server.url}/control/streams", timeout=5).status_code == 404


def test_the_control_is_not_on_the_servers_own_port(server):
    assert requests.get(f"{server.url}/control/streams", timeout=5).status_code == 404


def test_an_unreachable_server_refuses_connections_and_resets_those_it_had(server, api):
    data_id = api.initialize()
    server.unreachable()

    with pytest.raises(requests.ConnectionError):
        api.chunk(data_id, 0)
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert not server.control.info().reachable
    assert server.points(data_id) == {}

    server.reachable()
    assert server.control.info().reachable
    assert api.chunk(data_id, 0).status_code == 200


def test_a_request_that_is_under_way_is_reset_when_the_server_becomes_unreachable(server, api, wait_for):
    server.misbehave(Fault(call="catalogue", hang=True))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.entries)
        wait_for(lambda: server.requests("catalogue"))
        server.unreachable()
        with pytest.raises(requests.ConnectionError):
            asked.result(timeout=5)


def test_an_outage_of_some_seconds_ends_by_itself_on_the_same_port(server, api, wait_for):
    server.unreachable(0.2)
    with pytest.raises(requests.ConnectionError):
        api.entries()
    wait_for(lambda: server.control.info().reachable)
    assert api.entries().status_code == 200


def test_a_server_can_be_closed_while_it_is_unreachable(server):
    server.unreachable(600)
    assert server.stop(timeout_s=5)


def test_many_clients_at_once_lose_nothing(server, make_api):
    data_id = make_api(server).initialize()
    apis = [make_api(server) for _ in range(8)]

    def push(number):
        return [apis[number].chunk(data_id, index).status_code for index in range(number, 160, 8)]

    with ThreadPoolExecutor(8) as pool:
        statuses = [status for some in pool.map(push, range(8)) for status in some]

    assert statuses == [200] * 160
    assert server.points(data_id)["T"].values == [float(i) for i in range(640)]
    assert server.counts().connections >= 8


def test_of_two_different_contents_at_once_one_wins_and_the_other_is_refused(server, make_api):
    data_id = make_api(server).initialize()
    apis = [make_api(server) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for index in range(10):
            answers = list(
                pool.map(lambda n, index=index: apis[n].chunk(data_id, index, offset=n).status_code, range(4))
            )
            assert sorted(answers) == [200, 409, 409, 409]


def test_a_hundred_channels_of_a_hundred_points_fit_into_one_request(server, api):
    data_id = api.initialize(points_per_chunk=100)
    times = [T0 + i / 10 for i in range(100)]
    channels = {f"channel {n}": {"timestamps": times, "values": times, "units": "K"} for n in range(100)}
    started = time.monotonic()
    for index in range(3):
        assert len(api.multi(data_id, index, channels).json()) == 100
    assert time.monotonic() - started < 3
    assert server.streams()[0].points == 30_000


SCRIPT = """
import sys
from atomscale_bluesky.errors import SettingsError
from atomscale_bluesky.server import serve
def ready(url, control_url):
    print(url, control_url, flush=True)
try:
    serve(port=int(sys.argv[1]), control=True, data=sys.argv[2], ready=ready)
except SettingsError as error:
    sys.exit(str(error))
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals to a child process are of another kind on Windows")
def test_a_served_process_is_controlled_over_http_and_ends_on_a_signal(tmp_path, make_api, number):
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, "0", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        url, control_url = child.stdout.readline().split()
        control = Control(control_url)
        assert control.streams() == []
        assert requests.get(f"{url}/gateway/time", timeout=5).status_code == 200
        control.misbehave(Fault(call="time", status=500))
        assert requests.get(f"{url}/gateway/time", timeout=5).status_code == 500
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (0, "ended\n", "")
    with pytest.raises(ApiUnavailableError, match="does the server run"):
        control.streams()


def test_serving_on_a_taken_port_is_one_line(server, tmp_path):
    port = server.url.rpartition(":")[2]
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, port, str(tmp_path / "data")], capture_output=True, text=True, timeout=20
    )
    assert child.returncode == 1
    assert child.stderr.count("\n") == 1
    assert f"port {port}" in child.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process on Windows")
def test_serving_puts_the_signal_handlers_back():
    before = signal.getsignal(signal.SIGINT)
    serve(port=0, ready=lambda _url, _control: signal.raise_signal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGINT) is before


def test_the_request_log_has_every_request_and_never_the_key(server, api):
    data_id = api.initialize(stream_name="growth")
    api.multi(data_id, 3, ["b", "a"])
    api.ask("GET", "/tags/", headers={"X-API-KEY": "some-wrong-key"})

    records = server.requests()

    assert [(one.call, one.status, one.key) for one in records] == [
        ("initialize", 200, "right"),
        ("chunk_multi", 200, "right"),
        ("tags", 401, "wrong"),
    ]
    assert records[1].data_id == data_id
    assert (records[1].label, records[1].chunk_index, records[1].channels) == ("growth", 3, ("b", "a"))
    assert records[1].path == "/metrology/stream/chunk/multi"
    assert server.requests(after=records[1].number) == records[2:]
    text = requests.get(f"{server.control_url}/control/requests", timeout=5).text
    assert server.api_key not in text
    assert "some-wrong-key" not in text


def test_the_counts_tell_how_many_requests_were_under_way_together(server, make_api):
    server.misbehave(Fault(call="catalogue", delay_s=0.1))
    apis = [make_api(server) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: one.entries(), apis))
    counts = server.counts()
    assert (counts.total, counts.under_way, counts.most_under_way) == (3, 0, 3)
    assert counts.by_status == {"200": 3}


def test_the_control_returns_the_servers_options(make_server):
    server = make_server(relax=["hole"], families=["tool-state"], multi=False)
    info = server.control.info()
    assert info.url == server.url
    assert (info.families, info.multi, info.relaxed) == (("tool-state",), False, ("hole",))
    assert info.rules["hole"].startswith("A channel's chunk indices")


def test_the_control_refuses_what_it_does_not_understand(server):
    answer = requests.post(f"{server.control_url}/control/faults", json=[{"stauts": 500}], timeout=5)
    assert answer.status_code == 422
    assert "stauts" in answer.json()["detail"]
    assert requests.get(f"{server.control_url}/control/streams/nothing/points", timeout=5).status_code == 404


def test_the_description_and_its_page_need_no_other_host(server):
    schema = requests.get(f"{server.url}/openapi.json", timeout=5).json()
    assert "/tool-state/stream/chunk/multi" in schema["paths"]
    body = schema["paths"]["/metrology/stream/initialize"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    name = body["$ref"].rpartition("/")[2]
    assert schema["components"]["schemas"][name]["properties"]["points_per_chunk"]["exclusiveMinimum"] == 0
    page = requests.get(f"{server.url}/docs", timeout=5).text
    assert "/metrology/stream/{data_id}/finalize" in page
    assert "http" not in page.replace(server.url, "")
    assert "<script" not in page
    assert json.dumps(schema).count("$defs") == 0


def test_every_call_of_the_description_has_a_typed_answer_and_says_whether_it_needs_the_key(server):
    schema = requests.get(f"{server.url}/openapi.json", timeout=5).json()
    assert schema["components"]["securitySchemes"]["ApiKey"] == {"type": "apiKey", "in": "header", "name": "X-API-KEY"}
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            kind = call["responses"]["200"]["content"]["application/json"]["schema"]
            assert kind, (method, path)
            assert ("security" in call) == (path != "/gateway/time")
            body = call.get("requestBody")
            if body is not None:
                name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert schema["components"]["schemas"][name]["example"]


def test_the_answers_are_of_the_types_in_the_description(server):
    headers = {"X-API-KEY": server.api_key}

    def ask(method, path, body=None):
        answer = requests.request(method, server.url + path, json=body, headers=headers, timeout=5)
        assert answer.status_code == 200, answer.text
        return answer.content

    def typed(key, content):
        return msgspec.json.decode(content, type=ANSWERS[key])

    made = typed(("post", "/stream/initialize"), ask("POST", "/metrology/stream/initialize", {"points_per_chunk": 2}))
    body = EXAMPLES["MultiBody"] | {"data_id": made.data_id}
    taken = typed(("post", "/stream/chunk/multi"), ask("POST", "/metrology/stream/chunk/multi", body))
    assert [(one.channel_name, one.total_points) for one in taken] == [("T", 2)]
    typed(("post", "/stream/{data_id}/finalize"), ask("POST", f"/metrology/stream/{made.data_id}/finalize"))
    read = typed(("get", "/{data_id}/timeseries/"), ask("GET", f"/metrology/{made.data_id}/timeseries/"))
    assert read.properties["T"].values == [873.2, 873.4]
    sample = typed(("post", "/physical_samples/"), ask("POST", "/physical_samples/", EXAMPLES["SampleBody"]))
    tag = typed(("post", "/tags/"), ask("POST", "/tags/", EXAMPLES["TagBody"]))
    attach = {"data_ids": [made.data_id], "tag_ids": [tag.id]}
    assert typed(("post", "/tags/data-items/"), ask("POST", "/tags/data-items/", attach)).associations_created == 1
    link = {"data_ids": [made.data_id], "physical_sample_id": sample.id}
    typed(("post", "/data_entries/physical_sample"), ask("POST", "/data_entries/physical_sample", link))
    change = ask("PATCH", f"/data_entries/{made.data_id}", EXAMPLES["EntryBody"])
    assert typed(("patch", "/data_entries/{data_id}"), change).raw_name == EXAMPLES["EntryBody"]["raw_name"]
    typed(("post", "/instruments/synthesis"), ask("POST", "/instruments/synthesis", EXAMPLES["InstrumentBody"]))
    server.add_project("Nitrides")
    paths = ("/data_entries/", "/instruments/synthesis", "/physical_samples/", "/projects/", "/tags/", "/gateway/time")
    for path in paths:
        assert typed(("get", path), ask("GET", path))


@pytest.mark.skipif(sys.platform == "win32", reason="the file of a killed process stays locked for a moment there")
def test_a_killed_server_has_kept_what_it_answered(tmp_path, make_server, make_api):
    path = tmp_path / "data"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, "0", str(path)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        url, _ = child.stdout.readline().split()
        headers = {"X-API-KEY": "local-key"}
        answer = requests.post(
            f"{url}/metrology/stream/initialize", json={"points_per_chunk": 4}, headers=headers, timeout=5
        )
        child.kill()
    server = make_server(data=path)
    assert server.streams()[0].data_id == answer.json()["data_id"]
