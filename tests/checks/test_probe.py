"""What a server accepts beyond what is documented is found out, and nothing else is."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, Settings, SettingsError
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.server.rules import Rule

Found = Callable[..., dict[str, Any]]

# What each rule of the local server forbids, by the name of the fact that tells it; no request of a probe is about the
# others, which are about bodies that nobody wants to send.
TOLD_BY = {
    Rule.NON_FINITE: "null",
    Rule.TIME_BASE: "times",
    Rule.OVER_LENGTH: "over_length",
    Rule.CHANGED_CHUNK: "changed",
    Rule.GROWN_CHUNK: "grown",
    Rule.AFTER_FINALIZE: "after_finalize",
    Rule.SECOND_FINALIZE: "second_finalize",
    Rule.SHORT_CHUNK: "short",
    Rule.HOLE: "hole",
    Rule.LATE_CHANNEL: "late",
    Rule.TOOL_STATE_SAMPLE: "sample_tool-state",
}
STRICT = {
    "metrology": True, "tool-state": True, "multi": True, "search": True, "largest_body": 2**20,
    "null": False, "times": False, "over_length": False, "changed": False, "grown": False, "after_finalize": False,
    "second_finalize": False, "short": False, "hole": False, "late": False,
    "sample_metrology": True, "sample_tool-state": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _spool_of_this_test(monkeypatch: pytest.MonkeyPatch, spool_dir: Path) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_DIR", str(spool_dir))
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES", "0")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalServer]]:
    """A server with these options, which the commands ask."""
    made: list[LocalServer] = []

    def begin(**options: Any) -> LocalServer:
        made.append(LocalServer(control=True, **options))
        made[-1].start()
        monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", made[-1].url)
        monkeypatch.setenv("ATOMSCALE_API_KEY", made[-1].api_key)
        return made[-1]

    yield begin
    for server in made:
        server.close()


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Found:
    """What a probe finds, by the name of the question, without what takes its time."""

    def probe(*arguments: str) -> dict[str, Any]:
        main(["probe", "--yes", "--json", *arguments])
        told = json.loads(capsys.readouterr().out)
        return {fact["name"]: fact["answer"] for fact in told["facts"] if fact["name"] != "read_back"}

    return probe


@pytest.mark.parametrize("rule", [None, *Rule])
def test_a_probe_finds_what_is_relaxed_and_nothing_else(
    serve: Callable[..., LocalServer], found: Found, rule: Rule | None
) -> None:
    serve(relax=[rule] if rule else [])
    sample = Client(Settings.load()).create_sample("GaN-0417")
    facts = found("--physical-sample-id", sample)

    assert facts == STRICT | ({TOLD_BY[rule]: True} if rule in TOLD_BY else {})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"families": ["metrology"]}, {"tool-state": False}),
        ({"families": ["tool-state"]}, {"metrology": False}),
        ({"multi": False}, {"multi": False}),
        ({"max_body_bytes": 200_000}, {"largest_body": 2**17}),
        ({"relax": ["non_finite", "hole", "grown_chunk"], "multi": False},
         {"null": True, "hole": True, "grown": True, "multi": False}),
    ],
)  # fmt: skip
def test_a_probe_finds_which_paths_and_sizes_are_served(
    serve: Callable[..., LocalServer], found: Found, options: dict[str, Any], told: dict[str, Any]
) -> None:
    serve(**options)

    strict = {name: answer for name, answer in STRICT.items() if not name.startswith("sample")}
    assert found() == strict | told


def test_a_probe_finalizes_what_it_made_and_names_what_it_could_not(
    serve: Callable[..., LocalServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()

    assert main(["probe", "--yes"]) == 0
    said, complaint = capsys.readouterr()

    streams = server.streams()
    assert len(streams) == 5
    assert all((stream.label or "").startswith("atomscale-bluesky probe ") for stream in streams)
    (left,) = [stream.data_id for stream in streams if stream.status != "success"]
    assert left in complaint.replace("\n", "")
    assert "nothing beyond what is documented" in said


def test_a_probe_asks_before_it_makes_anything(
    serve: Callable[..., LocalServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))

    assert main(["probe"]) == 130
    assert f"Make 5 small streams at {server.url}?" in capsys.readouterr().out
    assert server.requests() == []


def test_a_server_that_asks_to_be_left_alone_is_asked_again(serve: Callable[..., LocalServer], found: Found) -> None:
    server = serve()
    server.misbehave(
        Fault(call="initialize", status=429, headers={"Retry-After": "0.01"}, times=2),
        Fault(call="chunk_multi", status=503, headers={"Retry-After": "0.01"}, times=2),
    )

    assert found()["multi"] is True
    assert len(server.streams()) == 5


def test_a_stream_that_was_made_while_its_answer_was_lost_is_found_and_finalized(
    serve: Callable[..., LocalServer], found: Found
) -> None:
    server = serve(relax=["short_chunk"])
    server.misbehave(Fault(call="initialize", reset_after=True, times=1))

    assert found()["metrology"] is True
    assert len(server.streams()) == 5
    assert {stream.status for stream in server.streams()} == {"success"}


def test_what_could_not_be_found_out_is_unknown_and_permits_nothing(
    serve: Callable[..., LocalServer], capsys: pytest.CaptureFixture[str], spool_dir: Path
) -> None:
    server = serve(relax=["non_finite"])
    server.misbehave(Fault(call="chunk_multi", chunk_index=1, status=500))

    assert main(["probe", "--yes"]) == 1
    assert "unknown" in capsys.readouterr().out
    assert Settings.load(probed=True).non_finite == "own_stream"


def test_points_that_are_taken_and_read_back_as_something_else_are_no_yes(
    serve: Callable[..., LocalServer], found: Found
) -> None:
    server = serve(relax=["non_finite"])
    server.misbehave(Fault(call="chunk_multi", chunk_index=1, body=json.dumps([]), times=1))

    assert found()["null"] is False


# Whoever runs the tests in the background may have them, and their children, ignore it.
PROBE_THAT_HEARS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from atomscale_bluesky.__main__ import main
sys.exit(main(["probe", "--yes"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process of its own")
def test_ctrl_c_ends_a_probe_and_finalizes_what_it_made(serve: Callable[..., LocalServer]) -> None:
    server = serve()
    server.misbehave(Fault(call="chunk_multi", chunk_index=2, delay_s=3.0, times=1))
    with subprocess.Popen(
        [sys.executable, "-c", PROBE_THAT_HEARS_CTRL_C], env=dict(os.environ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_until(lambda: server.requests("chunk_multi"), 30)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "stopped" in complaint
    assert {stream.status for stream in server.streams()} == {"success"}


def test_a_key_that_does_not_work_a_server_that_is_away_and_no_key_at_all_are_told(
    serve: Callable[..., LocalServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    monkeypatch.setenv("ATOMSCALE_API_KEY", "another")
    assert main(["probe", "--yes"]) == 1
    assert "check the key in ATOMSCALE_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    server.unreachable()
    assert main(["probe", "--yes"]) == 1
    assert "the server makes no stream, so nothing can be asked" in capsys.readouterr().err
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    assert main(["probe", "--yes"]) == 1
    assert "there is no API key" in capsys.readouterr().err
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)
    assert main(["probe", "--yes", "--physical-sample-id", "GaN"]) == 2
    assert "expected a UUID" in capsys.readouterr().err


def test_a_callback_takes_what_a_probe_has_found(
    serve: Callable[..., LocalServer], found: Found, spool_dir: Path
) -> None:
    server = serve(relax=["non_finite", "time_base"])
    found()

    with AtomscaleCallback(settings=Settings.load(probed=True, points_per_chunk=10)) as callback:
        assert (callback.settings.non_finite, callback.settings.layout) == ("null", "run")
        for name, doc in growth(10):
            if name == "event" and doc["seq_num"] == 3:
                doc["data"]["k0"] = math.nan
            callback(name, doc)
        assert callback.drain(timeout_s=30)

    (stream,) = [stream for stream in server.streams() if "probe" not in str(stream.label)]
    assert server.points(stream.data_id)["k0"].values[:4] == [0.0, 1.0, None, 3.0]


def test_what_a_person_has_set_wins_over_what_was_probed(
    serve: Callable[..., LocalServer], found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(relax=["non_finite", "time_base"])
    found()

    monkeypatch.setenv("ATOMSCALE_BLUESKY_PROBED", "true")
    monkeypatch.setenv("ATOMSCALE_BLUESKY_NON_FINITE", "own_stream")
    settings = Settings.load(layout="time_base")
    assert (settings.non_finite, settings.layout) == ("own_stream", "time_base")
    assert Settings.load().layout == "run"
    monkeypatch.delenv("ATOMSCALE_BLUESKY_PROBED")
    assert Settings.load().layout == "time_base"


def test_what_one_endpoint_permits_is_not_taken_for_another(
    serve: Callable[..., LocalServer], found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    serve(relax=["non_finite"])
    found()
    probed = Settings.load(probed=True)

    with caplog.at_level(logging.WARNING):
        elsewhere = Settings.load(probed=True, endpoint="https://atomscale.invalid")

    assert elsewhere.non_finite == "own_stream"
    assert "nothing is known of what https://atomscale.invalid permits" in caplog.text
    with pytest.raises(SettingsError, match="probed"):
        probed.replaced(endpoint="https://atomscale.invalid")


def test_a_file_of_findings_that_cannot_be_read_permits_nothing(
    serve: Callable[..., LocalServer], found: Found, spool_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(relax=["non_finite"])
    found()
    (file,) = spool_dir.glob("probed-*.json")
    file.write_bytes(file.read_bytes()[:-20])

    assert Settings.load(probed=True).non_finite == "own_stream"
    assert "run `atomscale-bluesky probe`" in caplog.text
