"""The same readings, sent by the vendor's clients and by the callback, are the same data on the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from event_model import compose_run

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

pytestmark = [pytest.mark.witness, pytest.mark.timeout(900)]

FAMILY_OF = {"0.16.0": "metrology", "0.21.10": "tool-state"}
POINTS_PER_CHUNK = 4
UNITS = {"substrate_T": "°C", "pressure (mbar)": "mbar", "温度": None, "shutter": None, "counts": None}
# Nothing that a double can hold is to come out otherwise: neighbours of 1, the smallest and the largest, signs of zero.
AWKWARD = [0.1, 1 / 3, math.nextafter(1, 2), math.nextafter(1, 0), 5e-324, 2.2250738585072014e-308]
AWKWARD += [1.7976931348623157e308, -0.0, 1e16 + 2, -1e-7, math.pi * 1e21]
# Not round, closer than the milliseconds of reading back, from before 1970 and from the year 2100.
TIMES = [-1.5, 0.1, 1_760_000_000.1, 1_760_000_000.1000001, 1_760_000_000.1 + 1 / 3, 1_760_000_001.0000002]
TIMES += [1_760_000_001.9999998, 1_760_000_002, 1_760_000_002.5, 4_102_444_800.123456, 4_102_444_801.7]


def readings() -> dict[str, list[Any]]:
    """Three chunks' worth, of which the last is short: floats, integers, some beyond 2**53, and flags."""
    return {
        "substrate_T": AWKWARD,
        "pressure (mbar)": [value / 7 for value in reversed(AWKWARD)],
        "温度": [math.sin(n) * 10.0**n for n in range(len(TIMES))],
        "shutter": [n % 3 == 0 for n in range(len(TIMES))],
        "counts": [2**53 + 1, -(2**53) - 1, 2**62, *range(len(TIMES) - 3)],
    }


def chunks() -> Iterator[dict[str, Any]]:
    """The readings as the vendor's client takes them."""
    for index, begin in enumerate(range(0, len(TIMES), POINTS_PER_CHUNK)):
        part = slice(begin, begin + POINTS_PER_CHUNK)
        channels = {name: {"timestamps": TIMES[part], "values": values[part]} for name, values in readings().items()}
        yield {
            "index": index,
            "channels": {
                name: channel | ({} if UNITS[name] is None else {"units": UNITS[name]})
                for name, channel in channels.items()
            },
        }


def documents() -> Iterator[tuple[str, Any]]:
    """The readings as Bluesky hands them on."""
    run = compose_run(metadata={"synth_source_id": 42})
    yield "start", run.start_doc
    described = {"source": "sim", "dtype": "number", "shape": []}
    keys = {name: described if unit is None else described | {"units": unit} for name, unit in UNITS.items()}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    yield "descriptor", stream.descriptor_doc
    for n, time in enumerate(TIMES):
        data = {name: values[n] for name, values in readings().items()}
        yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, time), time=time)
    yield "stop", run.compose_stop()


def stored(server: LocalServer, data_id: str) -> dict[str, Any]:
    """What the server holds of a stream, to the last bit of every number."""
    return {
        name: {
            "times": [time.hex() for time in series.times],
            "values": [value.hex() for value in series.values],
            "units": series.units,
            "chunks": series.chunks,
        }
        for name, series in server.points(data_id).items()
    }


def read_back(server: LocalServer, family: str, data_id: str) -> Any:
    session = requests.Session()
    session.trust_env = False
    with session:
        url = f"{server.url}/{family}/{data_id}/timeseries/"
        return session.get(url, headers={"X-API-KEY": server.api_key}, timeout=10).json()


@pytest.mark.parametrize("version", FAMILY_OF)
def test_the_callback_leaves_the_same_data_as_the_client_to_the_last_bit(
    server: LocalServer,
    drive: Callable[..., dict[str, Any]],
    make_callback: Callable[..., AtomscaleCallback],
    version: str,
) -> None:
    family = FAMILY_OF[version]
    theirs = drive(version, server, list(chunks()), points_per_chunk=POINTS_PER_CHUNK)
    assert theirs["delivered"]
    callback = make_callback(api=family, points_per_chunk=POINTS_PER_CHUNK)
    for name, doc in documents():
        callback(name, doc)
    assert callback.drain(timeout_s=30)

    their_stream, our_stream = server.streams()

    assert [their_stream.data_id, their_stream.family, our_stream.family] == [theirs["data_id"], family, family]
    held = stored(server, our_stream.data_id)
    assert held == stored(server, their_stream.data_id)
    assert {name: len(series["values"]) for name, series in held.items()} == dict.fromkeys(UNITS, len(TIMES))
    assert held["substrate_T"]["chunks"] == [(0, 4), (1, 4), (2, 3)]
    assert held["counts"]["values"][:2] == [float(2**53).hex(), (-float(2**53)).hex()]
    assert (our_stream.status, their_stream.status) == ("success", "success")
    assert our_stream.points_per_chunk == their_stream.points_per_chunk
    back = read_back(server, family, our_stream.data_id)
    assert back == read_back(server, family, their_stream.data_id)
    assert set(back["properties"]) == set(UNITS)


def test_the_callback_leaves_the_same_data_in_either_family(
    server: LocalServer, make_callback: Callable[..., AtomscaleCallback], tmp_path: Any
) -> None:
    for family in FAMILY_OF.values():
        callback = make_callback(
            api=family, points_per_chunk=POINTS_PER_CHUNK, spool_dir=str(tmp_path / family), resend=True
        )
        for name, doc in documents():
            callback(name, doc)
        assert callback.drain(timeout_s=30)

    first, second = server.streams()

    assert (first.family, second.family) == tuple(FAMILY_OF.values())
    assert stored(server, first.data_id) == stored(server, second.data_id) != {}
