"""The local server's page: what it is told, and that nobody else can read or change anything by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import requests
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
PATHS = ["/", "/page/page.js", "/page/page.css", "/page/uPlot.js", "/page/uPlot.css", "/page/overview"]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.mark.parametrize("path", PATHS)
def test_the_page_is_answered_without_a_key_and_loads_nothing_from_elsewhere(
    server: LocalServer, session: requests.Session, path: str
) -> None:
    answer = session.get(server.url + path, timeout=5)

    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert server.counts().total == 0  # the page is not among the requests that it shows


@pytest.mark.parametrize("path", PATHS)
def test_no_other_site_can_read_the_page_or_write_by_it(
    server: LocalServer, session: requests.Session, path: str
) -> None:
    url = server.url + path
    assert session.get(url, headers={"Host": "evil.example"}, timeout=5).status_code == 421
    assert session.get(url, headers={"Origin": "http://evil.example"}, timeout=5).status_code == 403
    assert session.get(url, headers={"Sec-Fetch-Site": "cross-site"}, timeout=5).status_code == 403
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert session.request(method, url, data="{}", timeout=5).status_code == 405


def test_a_link_on_another_page_may_lead_to_the_page_and_to_no_data(
    server: LocalServer, session: requests.Session
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}

    assert session.get(server.url + "/", headers=headers, timeout=5).status_code == 200
    assert session.get(server.url + "/page/overview", headers=headers, timeout=5).status_code == 403


@pytest.mark.parametrize("path", ["/page/../errors.py", "/page/%2e%2e/errors.py", "/page/", "/page/stream?id=no"])
def test_nothing_but_its_own_files_is_served(server: LocalServer, session: requests.Session, path: str) -> None:
    assert session.get(server.url + path, timeout=5).status_code == 404


def test_the_overview_lists_each_stream_with_status_sample_and_course(
    server: LocalServer, session: requests.Session, callback: AtomscaleCallback
) -> None:
    for name, doc in growth(25, start_metadata={"physical_sample": "W1234"}):
        callback(name, doc)
    assert callback.drain(20)

    told = session.get(server.url + "/page/overview", timeout=5).json()
    (stream,) = told["streams"]
    assert (stream["status"], stream["tone"], stream["points"], stream["channels"]) == ("complete", "done", 50, 2)
    assert (stream["sample"], stream["instrument"]) == ("W1234", "MBE 42")
    assert stream["spark"] == [float(i) for i in range(25)]
    assert told["requests"]["total"] == server.counts().total


def test_a_stream_is_told_with_every_point_and_only_again_when_it_has_changed(
    server: LocalServer, session: requests.Session, make_callback: MakeCallback
) -> None:
    callback = make_callback()
    documents = list(growth(30))
    for name, doc in documents[:-6]:
        callback(name, doc)
    assert callback.drain(20)
    (stream,) = server.streams()

    first = session.get(f"{server.url}/page/stream", params={"id": stream.data_id}, timeout=5).json()
    channel = first["channels"][0]
    assert (channel["name"], channel["unit"], channel["count"]) == ("k0", "K", 20)
    assert channel["values"] == [float(i) for i in range(20)]
    again = {"id": stream.data_id, "version": first["version"]}
    assert session.get(f"{server.url}/page/stream", params=again, timeout=5).json()["channels"] == []

    for name, doc in documents[-6:]:
        callback(name, doc)
    assert callback.drain(20)
    last = session.get(f"{server.url}/page/stream", params=again, timeout=5).json()
    assert last["channels"][0]["values"] == [float(i) for i in range(30)]
    begin, end = channel["times"][5], channel["times"][7]
    window = session.get(
        f"{server.url}/page/stream", params={"id": stream.data_id, "begin": begin, "end": end}, timeout=5
    )
    assert window.json()["channels"][0]["values"] == [4.0, 5.0, 6.0, 7.0, 8.0]


def test_a_continuation_is_marked_in_both_streams(
    server: LocalServer, session: requests.Session, callback: AtomscaleCallback
) -> None:
    documents = list(growth(40))
    for name, doc in documents[:22]:
        callback(name, doc)
    for name, doc in documents[22:]:  # a channel that has a gap goes on in a stream of its own
        if name == "event" and doc["seq_num"] == 25:
            doc = doc | {"data": doc["data"] | {"k1": float("nan")}}
        callback(name, doc)
    assert callback.drain(20)

    told = session.get(f"{server.url}/page/overview", timeout=5).json()["streams"]
    assert len(told) > 1
    assert len({stream["run"] for stream in told}) == 1
    texts = [
        mark["text"]
        for stream in told
        for mark in session.get(f"{server.url}/page/stream", params={"id": stream["id"]}, timeout=5).json()["marks"]
    ]
    assert any("begins" in text for text in texts)
    assert any("continues here" in text for text in texts)
