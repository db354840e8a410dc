"""What the uploader does after an error that nothing foresees: it says so, and goes on from the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from refusing import refuse
from runs import Recorder, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.delivery import active_runs, backoff
from atomscale_bluesky.delivery.backoff import Backoff
from atomscale_bluesky.delivery.uploader import Uploader
from atomscale_bluesky.documents.recorder import DocumentRecorder
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.outage import read_outage

MakeCallback = Callable[..., AtomscaleCallback]


class FaultyClock:
    """A clock whose failure is no error of the operating system, as a mistake of ours would be."""

    def __init__(self) -> None:
        self.fails = False
        self.failures = 0

    def __call__(self) -> float:
        if self.fails:
            self.failures += 1
            raise KeyError("no time")
        return time.monotonic()


@pytest.fixture
def settings(server: LocalServer, spool_dir: Path) -> Settings:
    return Settings.load(
        environ={},
        endpoint=server.url,
        api_key=server.api_key,
        spool_dir=spool_dir,
        spool_min_free_bytes=0,
        points_per_chunk=10,
    )


@pytest.fixture
def clock() -> FaultyClock:
    return FaultyClock()


@pytest.fixture
def delivered(settings: Settings, clock: FaultyClock, spool_dir: Path) -> Iterator[tuple[Uploader, DocumentRecorder]]:
    """An uploader by that clock, and a recorder that tells it of its runs."""
    spool = Spool(spool_dir)
    uploader = Uploader(spool, settings, monotonic=clock)
    recorder = DocumentRecorder(settings, spool=spool, listener=uploader)
    uploader.start()
    yield uploader, recorder
    clock.fails = False
    recorder.close()
    assert uploader.stop(10)
    assert spool.writers.stop_threads()


def test_an_unforeseen_error_is_logged_once_and_delivery_goes_on_from_the_files(
    delivered: tuple[Uploader, DocumentRecorder],
    clock: FaultyClock,
    server: LocalServer,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backoff, "RESTART", Backoff(0.05, 0.2))
    uploader, recorder = delivered
    witness = Recorder()
    documents = list(growth(points=45))
    for name, doc in documents[:25]:
        recorder.take(name, doc)
        witness(name, doc)
    wait_until(lambda: any(stream.points for stream in server.streams()))

    clock.fails = True
    for name, doc in documents[25:]:
        recorder.take(name, doc)
        witness(name, doc)
    for name, doc in growth(points=5):
        recorder.take(name, doc)
    wait_until(lambda: clock.failures >= 5 and read_outage(spool_dir))
    assert "KeyError" in read_outage(spool_dir).error
    assert uploader.running
    clock.fails = False

    assert uploader.drain(30)
    assert sorted((stream.status, stream.points) for stream in server.streams()) == [("success", 10), ("success", 90)]
    assert held(server)["k0"][:45] == [value for _, value in witness.points()["k0"]]
    assert read_outage(spool_dir) is None
    assert Spool(spool_dir).is_empty()
    errors = [record for record in caplog.records if "failed unexpectedly" in record.getMessage()]
    assert [record.levelno for record in errors] == [logging.ERROR]
    assert errors[0].exc_info is not None
    assert str(spool_dir) in errors[0].getMessage()


def test_an_uploader_that_waits_after_an_unforeseen_error_ends_at_once_when_it_is_told_to(
    delivered: tuple[Uploader, DocumentRecorder], clock: FaultyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "RESTART", Backoff(600.0, 600.0))
    uploader, recorder = delivered
    clock.fails = True
    wait_until(lambda: clock.failures)
    recorder.take(*next(growth(points=1)))
    question = uploader.ask_whether_drained()
    clock.fails = False

    assert uploader.stop(10)
    assert question is not None
    assert question.wait(1) is False


def test_open_runs_that_become_unreadable_keep_no_other_from_being_delivered(
    settings: Settings, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "MAX_ACTIVE", 2)
    with DocumentRecorder(settings) as recorder:
        for _ in range(4):
            for name, doc in list(growth(points=5))[:-1]:
                recorder.take(name, doc)
        uploader = Uploader(Spool(spool_dir), settings, follow=True)
        uploader.start()
        try:
            wait_until(lambda: len(server.streams()) == 4)
            for folder in Spool(spool_dir).run_folders()[:3]:
                refuse(monkeypatch, "open", folder)
            for name, doc in growth(points=25):
                recorder.take(name, doc)

            wait_until(lambda: ("success", 50) in [(stream.status, stream.points) for stream in server.streams()])
        finally:
            monkeypatch.undo()
            assert uploader.stop(10)


def test_an_uploader_ends_at_once_while_a_drain_waits_for_a_spool_that_cannot_be_read(
    settings: Settings, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(spool_dir)
    recorder = DocumentRecorder(settings, spool=spool)
    for name, doc in growth(points=5):
        recorder.take(name, doc)
    recorder.close()
    assert spool.writers.stop_threads()
    (folder,) = spool.run_folders()
    other = spool.claim(folder)
    assert other is not None
    uploader = Uploader(Spool(spool_dir), settings)
    uploader.start()
    wait_until(lambda: uploader.idle_since is not None)
    question = uploader.ask_whether_drained()
    assert question is not None

    away = spool_dir.rename(spool_dir.with_name("away"))
    wait_until(lambda: "cannot be read" in caplog.text)
    ended = uploader.stop(5)

    away.rename(spool_dir)
    other.close()
    assert uploader.stop(10)
    assert ended
    assert question.wait(1) is False


def test_a_drain_does_not_say_that_all_is_delivered_while_the_spool_cannot_be_read(
    settings: Settings, spool_dir: Path, server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    with DocumentRecorder(settings) as recorder:
        for name, doc in growth(points=5):
            recorder.take(name, doc)
    uploader = Uploader(Spool(spool_dir), settings)
    away = spool_dir.rename(spool_dir.with_name("away"))
    uploader.start()
    first = uploader.ask_whether_drained()
    assert first is not None
    wait_until(lambda: "cannot be read" in caplog.text)
    assert not first.wait(0.5)
    assert not first.answered.is_set()

    away.rename(spool_dir)
    second = uploader.ask_whether_drained()
    assert second is not None
    assert second.wait(20)
    assert len(held(server)["k0"]) == 5
    assert uploader.stop(10)
