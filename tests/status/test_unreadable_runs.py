"""One run whose files the disk does not return: it is named, and everything else is told and delivered as before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from refusing import refuse
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.page_source import SpoolSource
from atomscale_bluesky.status.spool_figures import SpoolFigures

MakeCallback = Callable[..., AtomscaleCallback]


@pytest.fixture(params=["open", "scandir"])
def unreadable(
    request: pytest.FixtureRequest, make_callback: MakeCallback, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of the first of two runs in the spool: its files cannot be opened, or it cannot be listed."""
    with make_callback(offline=True) as callback:
        for _ in range(2):
            for name, doc in growth(points=25):
                callback(name, doc)
    folder = Spool(spool_dir).run_folders()[0]
    refuse(monkeypatch, request.param, folder)
    return folder


@pytest.fixture
def environment(server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")


def test_a_run_whose_files_cannot_be_read_is_listed_beside_the_others(
    unreadable: Path, make_callback: MakeCallback
) -> None:
    status = make_callback(offline=True).status()

    assert sorted(run.state for run in status) == ["unreadable", "waiting"]
    (run,) = [run for run in status if run.state == "unreadable"]
    assert (run.folder, str(unreadable) in run.problem) == (str(unreadable), True)
    assert status.points.waiting == 50


def test_a_run_that_can_be_read_again_has_its_account_again(
    unreadable: Path, make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = make_callback(offline=True)
    assert "unreadable" in {run.state for run in callback.status()}
    monkeypatch.undo()

    assert [(run.state, run.points.waiting) for run in callback.status()] == [("waiting", 50)] * 2


@pytest.mark.usefixtures("environment")
def test_the_commands_name_a_run_whose_files_cannot_be_read(
    unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--check"]) == 2
    assert "1 run for the operator" in capsys.readouterr().out

    assert main(["status", "--json"]) == 1
    assert sorted(run["state"] for run in json.loads(capsys.readouterr().out)["runs"]) == ["unreadable", "waiting"]

    main(["doctor", "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["leftovers"]["result"] == "warning"
    assert unreadable.name in checks["leftovers"]["found"]


@pytest.mark.usefixtures("environment")
def test_upload_delivers_the_other_run_and_names_the_one_that_stays(
    unreadable: Path, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload"]) == 1

    assert unreadable.name[:8] in capsys.readouterr().out
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("arguments", "code"), [(["status", "--check"], 3), (["status"], 2)])
def test_a_spool_that_cannot_be_listed_is_named_without_a_traceback(
    make_callback: MakeCallback,
    spool_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    make_callback(offline=True).close()
    refuse(monkeypatch, "scandir", spool_dir)

    assert main(arguments) == code

    said = capsys.readouterr()
    assert str(spool_dir) in said.out + said.err


@pytest.mark.usefixtures("unreadable")
def test_monitoring_keeps_the_numbers_of_the_other_runs(spool_dir: Path) -> None:
    figures = SpoolFigures(lambda: Spool(spool_dir, read_only=True)).read()

    assert figures is not None
    assert (figures.points.waiting, figures.runs_for_operator) == (50, 1)


@pytest.mark.parametrize("uploader", ["thread", "none"])
@pytest.mark.parametrize("call", ["open", "scandir"])
def test_a_drain_is_answered_while_a_run_cannot_be_read(
    make_callback: MakeCallback, spool_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str, uploader: str
) -> None:
    with make_callback(offline=True) as before:
        for name, doc in growth(points=25):
            before(name, doc)
    refuse(monkeypatch, call, Spool(spool_dir).run_folders()[0])

    drain = make_callback(uploader=uploader).ask_whether_drained()

    assert drain is not None
    assert drain.answered.wait(30)
    assert drain.answer is False


@pytest.mark.usefixtures("unreadable")
def test_the_page_shows_the_other_run(spool_dir: Path) -> None:
    source = SpoolSource(lambda: [Spool(spool_dir, read_only=True)], [spool_dir])

    overview = asyncio.run(source.overview())

    assert len(overview.streams) == 2
