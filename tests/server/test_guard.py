"""A web page in a browser on the same machine cannot read the local server or make it do anything."""

from __future__ import annotations

import pytest
import requests

from atomscale_bluesky.server import LocalServer

STRANGERS = [
    "evil.example",
    "evil.example:8042",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "2130706433",
    "[::",
]


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        session.headers["X-API-KEY"] = "local-key"
        yield session


def paths(server: LocalServer) -> list[str]:
    return [f"{server.url}/data_entries/", f"{server.url}/gateway/time", f"{server.control_url}/control/streams"]


@pytest.mark.parametrize("host", STRANGERS)
def test_a_request_under_another_name_is_refused_on_every_port(server, session, host):
    for path in paths(server):
        answer = session.get(path, headers={"Host": host}, timeout=5)

        assert answer.status_code == 421
        assert repr(host) in answer.json()["detail"]
    assert server.counts().total == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "LOCALHOST:80", "localhost.", "[::1]:8042", "127.1.2.3"])
def test_a_request_under_any_name_of_the_loopback_is_answered(server, session, host):
    for path in paths(server):
        assert session.get(path, headers={"Host": host}, timeout=5).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:8888", "http://[", ""])
def test_a_page_of_another_origin_changes_nothing(server, session, origin):
    for method, url in (
        ("POST", f"{server.control_url}/control/unreachable"),
        ("POST", f"{server.control_url}/control/reachable"),
        ("GET", f"{server.control_url}/control/streams"),
        ("POST", f"{server.url}/tags/"),
    ):
        answer = session.request(method, url, json={"name": "x"}, headers={"Origin": origin}, timeout=5)

        assert answer.status_code == 403
    assert server.control.info().reachable
    assert session.get(f"{server.url}/tags/", timeout=5).json() == []


def test_the_servers_own_pages_are_answered(server, session):
    answer = session.get(f"{server.url}/data_entries/", headers={"Origin": server.url}, timeout=5)

    assert answer.status_code == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_the_control_takes_no_body_that_a_form_could_send(server, session, media):
    answer = session.post(
        f"{server.control_url}/control/unreachable", data=b'{"seconds": 1}', headers={"Content-Type": media}, timeout=5
    )

    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]
    assert server.control.info().reachable
