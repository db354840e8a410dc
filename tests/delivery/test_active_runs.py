"""More runs than are delivered at a time, of which some wait for a person: nobody waits behind them."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.delivery import active_runs
from atomscale_bluesky.delivery.run_scheduler import RunScheduler
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool import orders, run_reader
from atomscale_bluesky.spool.orders import Discard, Edit, OrderLine, Retry
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
NO_INSTRUMENT = 999


@pytest.fixture(autouse=True)
def _two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 2)


@pytest.fixture
def parked(make_callback: MakeCallback) -> list[str]:
    """Runs in the spool, three more than are delivered at a time, that name an instrument which is not there."""
    return list(spooled(make_callback, [NO_INSTRUMENT] * 5))


def spooled(make_callback: MakeCallback, instruments: list[int]) -> Iterator[str]:
    before = make_callback(offline=True)
    for instrument in instruments:
        documents = list(growth(points=25, start_metadata={"synth_source_id": instrument}))
        for name, doc in documents:
            before(name, doc)
        yield documents[0][1]["uid"]
    before.close()


def order(spool_dir: Path, callback: AtomscaleCallback, uid: str, what: OrderLine) -> None:
    Spool(spool_dir).give_order(next(Path(run.folder) for run in callback.status() if run.run_uid == uid), what)


def points(server: LocalServer) -> list[tuple[str, int]]:
    return [(stream.status, stream.points) for stream in server.streams()]


@pytest.mark.usefixtures("parked")
def test_runs_that_wait_for_the_operator_hold_up_no_other_run(make_callback: MakeCallback, server: LocalServer) -> None:
    list(spooled(make_callback, [42, 42, 42]))
    callback = make_callback()

    assert not callback.drain(timeout_s=60)
    assert points(server) == [("success", 50)] * 3
    assert [(run.state, run.points.waiting) for run in callback.status()] == [("parked", 50)] * 5


@pytest.mark.usefixtures("parked")
def test_a_run_of_this_process_does_not_wait_behind_parked_runs(
    make_callback: MakeCallback, server: LocalServer
) -> None:
    callback = make_callback()
    assert not callback.drain(timeout_s=60)
    for name, doc in growth(points=25):
        callback(name, doc)

    assert not callback.drain(timeout_s=60)
    assert points(server) == [("success", 50)]


def test_a_run_that_made_way_is_delivered_when_the_operator_corrects_it(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, parked: list[str]
) -> None:
    callback = make_callback()
    assert not callback.drain(timeout_s=60)
    for uid in parked:
        order(spool_dir, callback, uid, Edit(Links(synth_source_id=42)))

    wait_until(lambda: callback.status() == (), timeout_s=60)
    assert points(server) == [("success", 50)] * 5
    assert callback.drain(timeout_s=60)


@pytest.mark.usefixtures("parked")
def test_a_run_that_made_way_becomes_active_again_when_there_is_a_place(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback, spool = make_callback(), Spool(spool_dir)
    assert not callback.drain(timeout_s=60)
    first = {folder for folder in spool.run_folders() if spool.uploader_alive(folder)}
    assert len(first) == 2
    for folder in first:
        spool.give_order(folder, Discard())

    wait_until(lambda: not first & set(spool.run_folders()), timeout_s=60)
    wait_until(lambda: sum(map(spool.uploader_alive, spool.run_folders())) == 2, timeout_s=60)
    assert len(callback.status()) == 3


def test_the_log_reports_the_waiting_points_of_a_run_that_makes_way(
    make_callback: MakeCallback, parked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback()
    with caplog.at_level(logging.WARNING):
        callback.drain(timeout_s=60)
        callback.close()

    for uid in parked:
        assert f"run {uid} is parked: 0 points delivered, 50 not; `atomscale-bluesky status" in caplog.text


def test_taking_up_a_run_reads_its_header_and_its_orders_once(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(spooled(make_callback, [42]))
    spool = Spool(spool_dir)
    (folder,) = spool.run_folders()
    spool.give_order(folder, Edit(Links(synth_source_id=42)))
    spool.give_order(folder, Retry())
    decoded: list[bytes] = []
    for module, name in ((run_reader, "decode_journal"), (orders, "decode_order")):
        decode = getattr(module, name)
        monkeypatch.setattr(module, name, lambda payload, decode=decode: (decoded.append(payload), decode(payload))[1])

    scheduler = RunScheduler(spool, server.url)
    scheduler.scan()
    (delivery,) = scheduler.active
    scheduler.scan()

    assert delivery.run.state.orders_obeyed == 2
    kinds = Counter(json.loads(payload)["kind"] for payload in decoded)
    assert (kinds["header"], kinds["edit"], kinds["retry"]) == (1, 1, 1)
    scheduler.active.close()


@pytest.mark.parametrize("call", ["open", "listdir", "scandir", "stat"])
def test_the_uploader_goes_on_after_a_time_in_which_the_system_refused_it_files(
    make_callback: MakeCallback,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    callback = make_callback(points_per_chunk=10)
    runs = [list(growth(points=25)) for _ in range(5)]
    for documents in runs:
        for name, doc in documents[:8]:
            callback(name, doc)
    wait_until(lambda: len(server.streams()) > 0)
    real = getattr(os, call)
    refused: list[object] = []

    def refuse(*args: object, **more: object) -> object:
        if threading.current_thread().name.startswith("atomscale-uploader"):
            refused.append(args)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*args, **more)

    monkeypatch.setattr(os, call, refuse)
    for documents in runs:
        for name, doc in documents[8:]:
            callback(name, doc)
    wait_until(lambda: len(refused) > 0)
    time.sleep(1.0)  # for several scans and polls
    monkeypatch.setattr(os, call, real)

    assert callback.drain(timeout_s=60)
    assert points(server) == [("success", 50)] * 5
    assert not any("Traceback" in record.getMessage() or record.exc_info for record in caplog.records)
