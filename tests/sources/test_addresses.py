"""User and password in a source's address: they are shown nowhere."""

from __future__ import annotations

import logging
import threading
import traceback

import pytest
from integration.needs import need_module

from atomscale_bluesky import SettingsError

SECRET = "hush8f2c"


@pytest.mark.parametrize(
    "address",
    [
        f"http://grower:{SECRET}@127.0.0.1:1",
        f"nats://grower:{SECRET}@127.0.0.1:port",
        f"nats://grower:{SECRET}/x@127.0.0.1:1",
        f"nats://grower:{SECRET}#x@127.0.0.1:1",
        f"nats://grower:{SECRET}@x@127.0.0.1:port",
        f"grower:{SECRET}@127.0.0.1:port",
        f"grower:{SECRET}://x@127.0.0.1:1",
        f"nats://{SECRET}@127.0.0.1:port",
    ],
)
def test_a_password_in_an_address_of_nats_that_cannot_be_used_is_not_shown(address: str) -> None:
    need_module("nats", "nats-py")
    from atomscale_bluesky.sources.nats import NatsDocuments

    def begin() -> None:
        source = NatsDocuments(["nats://127.0.0.1:2", address], stream="s", durable="d")
        try:
            next(iter(source))
        finally:
            source.close()

    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:(1|port)") as raised:
        begin()
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_password_in_an_address_of_nats_where_nothing_answers_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    need_module("nats", "nats-py")
    from atomscale_bluesky.sources.nats import NatsDocuments

    ending = threading.Event()

    class UntilWarned(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ending.set()

    handler = UntilWarned(logging.WARNING)
    logging.getLogger("atomscale_bluesky").addHandler(handler)
    caplog.set_level(1)
    address = f"nats://grower:{SECRET}@127.0.0.1:1"
    source = NatsDocuments(address, stream="s", durable="d", ending=ending)
    try:
        assert not list(source)
    finally:
        source.close()
        logging.getLogger("atomscale_bluesky").removeHandler(handler)

    assert "the connection to nats://127.0.0.1:1: " in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        f"ftp://grower:{SECRET}@tiled.lab",
        f"http://grower:{SECRET}@tiled.lab:port",
        f"http://grower:{SECRET}/x@tiled.lab",
        f"http://grower:{SECRET}#x@tiled.lab",
        f"http://grower:{SECRET}?x@tiled.lab",
    ],
)
def test_a_password_in_an_address_of_tiled_that_cannot_be_used_is_not_shown(address: str) -> None:
    need_module("tiled", "tiled[client]")
    from atomscale_bluesky.sources.tiled import TiledRuns

    with pytest.raises(SettingsError, match="no address") as raised:
        next(iter(TiledRuns(address)))
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ftp://tiled.lab/mbe", "ftp://tiled.lab/mbe is no address: "),
        (f"ftp://grower:{SECRET}@tiled.lab/mbe", "ftp://tiled.lab/mbe is no address; "),
    ],
)
def test_an_address_of_tiled_that_cannot_be_used_is_named(address: str, shown: str) -> None:
    need_module("tiled", "tiled[client]")
    from atomscale_bluesky.sources.tiled import TiledRuns

    with pytest.raises(SettingsError) as raised:
        next(iter(TiledRuns(address)))
    assert str(raised.value).startswith(shown)
