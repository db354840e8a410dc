"""Blocks of code in README and documentation that are marked as running do run, in order, as a reader would run them.

A comment before a block says so: `<!-- runs -->` for one that is executed, in the session of its page;
`<!-- runs as tests -->` for one that is part of a test file. Between them `<!-- the server stops -->` and
`<!-- the server starts -->` tell what the reader does in another terminal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"<!-- (runs|the server stops|the server starts) -->(?:\n```python\n(.*?)\n```)?", re.DOTALL)
TESTS = re.compile(r"<!-- runs as tests -->\n```python\n(.*?)\n```", re.DOTALL)


@pytest.fixture(autouse=True)
def _environment(server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")


def run_page(page: str, server: LocalServer, session: dict[str, Any]) -> int:
    """Run a page's blocks in a session; how many there were."""
    blocks = 0
    for step, code in STEP.findall((ROOT / page).read_text(encoding="utf-8")):
        if step == "the server stops":
            server.unreachable()
        elif step == "the server starts":
            server.reachable()
        else:
            assert code, f"in {page} no block follows a mark"
            exec(compile(code, page, "exec"), session)  # noqa: S102 - it is our own documentation
            blocks += 1
    return blocks


def finished(server: LocalServer) -> list[tuple[str, int | None, int]]:
    return [(stream.status, stream.synth_source_id, stream.points) for stream in server.streams()]


def test_the_three_lines_of_the_readme_stream_every_run(server: LocalServer) -> None:
    RE = RunEngine()  # noqa: N806 - as everybody calls it
    session: dict[str, Any] = {"RE": RE}

    assert run_page("README.md", server, session) == 1
    RE(count([det], num=250))

    callback = next(entry for entry in RE.dispatcher.cb_registry.callbacks.values() for entry in entry.values()).func
    assert isinstance(callback, AtomscaleCallback)
    assert callback.drain(timeout_s=20)
    callback.close()
    assert finished(server) == [("success", 42, 250)]


def test_the_first_stream_of_the_tutorial_survives_an_outage(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    session: dict[str, Any] = {}

    assert run_page("docs/tutorials/first-stream.md", server, session) >= 8

    assert finished(server) == [("success", 42, 250)] * 2
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("]")[1].split()[:3] for line in printed] == [["success", "det", "250"]] * 2


def test_the_run_of_the_guide_is_linked_and_tells_what_it_became(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    RE = RunEngine()  # noqa: N806
    uids: list[str] = []
    with AtomscaleCallback() as callback:
        RE.subscribe(callback)
        RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
        session = {"RE": RE, "growth_plan": lambda: count([det], num=5), "callback": callback, "uid": None}
        session["project_id"] = server.add_project("Nitrides")
        page = (ROOT / "docs/how-to/link-a-run.md").read_text(encoding="utf-8")
        run, told = [code for _, code in STEP.findall(page)]
        exec(run, session)  # noqa: S102 - it is our own documentation
        assert callback.drain(timeout_s=20)
        session["uid"] = uids[0]
        exec(told, session)  # noqa: S102

    (stream,) = server.streams()
    assert stream.project_id == session["project_id"]
    assert set(stream.tags) == {"night shift", "recipe 12", "bluesky: success"}
    assert f"primary {stream.data_id} {stream.label} finalized" in capsys.readouterr().out


def test_the_run_of_the_guide_is_read_back_and_is_there(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with AtomscaleCallback(points_per_chunk=2) as callback:
        *documents, stop = growth(5)
        for name, doc in documents:
            callback(name, doc)
        assert callback.drain(timeout_s=20)

        assert run_page(
            "docs/how-to/check-that-it-arrived.md", server, {"callback": callback, "uid": documents[0][1]["uid"]}
        )

        callback(*stop)
    assert capsys.readouterr().out.strip() == "all 8 points that were confirmed are equal; 2 waiting"


def test_the_reader_of_the_spools_files_reads_them(server: LocalServer, spool_dir: Path) -> None:
    server.unreachable()
    RE = RunEngine()  # noqa: N806
    session: dict[str, Any] = {}
    with AtomscaleCallback() as callback:
        RE.subscribe(callback)
        RE(count([det], num=3))
        run_page("docs/reference/spool-format.md", server, session)
        (journal,) = spool_dir.glob("*/journal-*.jsonl")
        found = list(session["lines"](journal))
        server.reachable()

    kinds = dict.fromkeys(line["kind"] for line in found if isinstance(line, dict))
    assert list(kinds) == ["header", "descriptor", "layout", "stop"]
    assert [line[1] for line in found if isinstance(line, list)] == [0, 1, 2]


def test_the_tests_that_the_guide_shows_pass(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/test-against-the-local-server.md").read_text(encoding="utf-8")
    file = tmp_path / "test_of_a_reader.py"
    file.write_text("\n\n".join(TESTS.findall(page)), encoding="utf-8")

    ended = pytest.main(["-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-p", "no:cov", str(file)])

    assert ended == pytest.ExitCode.OK
