"""`board`: the runs of a spool on a page, read from its files alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
Board = Callable[..., Any]


@pytest.fixture
def board(spool_dir: Path) -> Iterator[Board]:
    """Ask the board of the spool, in a process of its own without key and server, which is ended in the end."""
    spool_dir.mkdir(exist_ok=True)
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("ATOMSCALE", "AS_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "board", str(spool_dir), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=environment,
    ) as child, requests.Session() as session:  # fmt: skip
        session.trust_env = False
        assert child.stdout is not None
        url = child.stdout.readline().split()[4].rstrip(";")

        def ask(path: str = "/page/overview", **query: Any) -> Any:
            answer = session.get(url + path, params=query, timeout=20)
            return answer.json() if path.startswith("/page/") else answer

        ask.url = url  # type: ignore[attr-defined]
        yield ask
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_is_shown_from_its_files_alone_and_nothing_is_written(
    make_callback: MakeCallback, spool_dir: Path, board: Board
) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(25, start_metadata={"plan_name": "<b>grow</b>"}):
        callback(name, doc)
    callback.close()
    before = files_of(spool_dir)

    (line,) = wait_until(lambda: board()["streams"])
    assert line["name"].startswith("<b>grow</b>")
    assert (line["points"], line["channels"], line["note"]) == (50, 2, "50 waiting")
    assert line["spark"] == [float(n) for n in range(25)]
    told = board("/page/stream", id=line["id"])
    assert told["channels"][0]["values"] == [float(n) for n in range(25)]
    assert told["channels"][0]["unit"] == "K"
    assert files_of(spool_dir) == before


def test_a_growth_is_seen_live_during_an_outage(make_callback: MakeCallback, server: LocalServer, board: Board) -> None:
    server.misbehave(Fault(status=503))
    callback = make_callback()
    documents = list(growth(40))
    for name, doc in documents[:22]:
        callback(name, doc)

    line = wait_until(lambda: next((one for one in board()["streams"] if one["points"] == 40), None))
    assert (line["status"], line["tone"]) == ("running", "live")
    outage = wait_until(lambda: board()["outage"])
    assert "503" in outage["error"]
    for name, doc in documents[22:]:
        callback(name, doc)
    told = wait_until(lambda: (found := board("/page/stream", id=line["id"]))["channels"][0]["count"] == 40 and found)
    assert told["channels"][0]["values"][-1] == 39.0

    server.behave()
    assert callback.drain(60)
    done = wait_until(lambda: next((one for one in board()["streams"] if one["status"] == "delivered"), None))
    assert (done["id"], done["points"]) == (line["id"], 80)
    kept = board("/page/stream", id=line["id"])  # it has left the spool, and is still shown to those who watched it
    assert kept["channels"][0]["count"] == 40


def test_what_is_delivered_and_where_a_further_stream_begins_is_marked(
    make_callback: MakeCallback, board: Board
) -> None:
    callback = make_callback()
    documents = list(growth(60))
    for name, doc in documents[:-1]:
        if name == "event" and doc["seq_num"] == 25:
            doc = doc | {"data": doc["data"] | {"k1": float("nan")}}
        callback(name, doc)
    wait_until(lambda: callback.status().points.delivered > 80)

    (line,) = board()["streams"]
    texts = [mark["text"] for mark in board("/page/stream", id=line["id"])["marks"]]
    assert "a further stream: gap" in texts
    assert "delivered up to here" in texts
    values = board("/page/stream", id=line["id"])["channels"][1]["values"]
    assert values[24] is None


def test_nobody_else_can_read_the_board_or_a_file_by_it(board: Board, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    url = board.url  # type: ignore[attr-defined]

    assert requests.get(url, headers={"Host": "evil.example"}, timeout=5).status_code == 421
    assert requests.get(url + "/page/overview", headers={"Sec-Fetch-Site": "cross-site"}, timeout=5).status_code == 403
    assert requests.post(url + "/page/overview", json={}, timeout=5).status_code == 405
    for identity in (str(tmp_path), "/etc/passwd", "../secret.txt"):
        assert requests.get(url + "/page/stream", params={"id": identity}, timeout=5).status_code == 404


def test_the_command_says_where_there_is_no_spool_yet(tmp_path: Path, spool_dir: Path, callback: Any) -> None:
    for name, doc in growth(2):
        callback(name, doc)
    (tmp_path / "typo").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "atomscale_bluesky", "board", str(tmp_path / "typo"), str(spool_dir), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        said = [child.stdout.readline(), child.stdout.readline()]
        child.send_signal(signal.SIGTERM)

    assert said == [
        f"There is no spool in {tmp_path / 'typo'} yet. The page shows its runs once there are any.\n",
        f"It shows the runs in {spool_dir}.\n",
    ]
