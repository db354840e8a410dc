"""What commands say while a server does not answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

Say = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", ["instruments", "doctor", "upload"])
def test_a_command_says_once_that_it_waits_for_a_server_that_hangs_and_up_to_how_long(
    say: Say, spooled: Callable[..., str], server: LocalServer, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    spooled(5)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_REQUEST_TIMEOUT_S", "4")
    server.misbehave(Fault(hang=True, times=1))

    waits = f"atomscale-bluesky: waiting for {server.url} to answer; a request may take up to 4 s\n"
    assert say(command)[2].count(waits) == 1
    server.behave()
    assert "waiting for" not in say(command)[2]


def test_verify_says_that_it_waits_for_a_server_that_refuses_connections_and_for_how_long(
    say: Say, make_callback: Callable[..., AtomscaleCallback], server: LocalServer
) -> None:
    callback = make_callback()
    documents = list(growth(25))
    for name, doc in documents[:-1]:
        callback(name, doc)
    wait_until(lambda: sum(stream.points for stream in server.streams()) == 40)
    server.unreachable()

    code, _, complaint = say("verify", "last", "--patience", "5")
    assert code == 1
    assert complaint.startswith(f"atomscale-bluesky: waiting for {server.url} to answer; a request may take up to ")
    assert ", and is repeated for up to 5 s (--patience)\n" in complaint
    assert "the run could not be read back: " in complaint
