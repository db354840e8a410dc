"""Spans of OpenTelemetry for the steps of an upload: with the real SDK, each in a process that has set it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import growth
from waiting import wait_until

from atomscale_bluesky.server import Fault, LocalServer

Run = Callable[..., Any]

SESSION = """
    import json, os, sys
    from atomscale_bluesky import AtomscaleCallback

    def deliver():
        with AtomscaleCallback(points_per_chunk=10) as callback, open(os.environ["DOCUMENTS"]) as documents:
            for name, doc in json.load(documents):
                callback(name, doc)
            return callback.drain(60)
"""
SET_UP = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def spans():
        return [
            {"name": s.name, "kind": s.kind.name, "status": s.status.status_code.name, "why": s.status.description,
             "parent": s.parent is not None, "took": s.end_time - s.start_time, **s.attributes}
            for s in exporter.get_finished_spans() if s.instrumentation_scope.name == "atomscale_bluesky"
        ]
"""


@pytest.fixture
def environment(server: LocalServer, spool_dir: Path, tmp_path: Path) -> dict[str, str]:
    documents = tmp_path / "documents.json"
    documents.write_text(json.dumps(list(growth(25, start_metadata={"tags": ["night"]}))))
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {
        "PYTHONPATH": str(tmp_path),
        "DOCUMENTS": str(documents),
        "ATOMSCALE_API_ENDPOINT": server.url,
        "ATOMSCALE_API_KEY": server.api_key,
        "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
        "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run a session in a process of its own; what its last line says."""

    def run(*parts: str, **more: str) -> Any:
        script = "".join(textwrap.dedent(part) for part in parts)
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=90,
            env=environment | more,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run


def test_each_step_is_a_span_with_run_stream_and_points(run: Run, server: LocalServer) -> None:
    spans = run(SESSION, SET_UP, "assert deliver()\nprint(json.dumps(spans()))")

    (stream,) = server.streams()
    steps = {span["name"] for span in spans}
    assert steps >= {
        "atomscale resolve",
        "atomscale initialize",
        "atomscale push",
        "atomscale link",
        "atomscale finalize",
    }
    assert {span["kind"] for span in spans} == {"CLIENT"}
    assert {span["status"] for span in spans} == {"UNSET"}
    assert len({span["atomscale.run_uid"] for span in spans}) == 1
    assert not any(span["parent"] for span in spans)
    assert all(span["took"] > 0 and span["atomscale.requests"] >= 1 for span in spans if "clock" not in span["name"])
    pushed = sorted(
        (span for span in spans if span["name"] == "atomscale push"), key=lambda s: s["atomscale.chunk_index"]
    )
    assert [(s["atomscale.chunk_index"], s["atomscale.points"], s["atomscale.channels"]) for s in pushed] == [
        (0, 20, 2), (1, 20, 2), (2, 10, 2),
    ]  # fmt: skip
    by_step = {span["atomscale.step"]: span for span in spans}
    for step in ("initialize", "push", "link", "finalize"):
        assert by_step[step]["atomscale.data_id"] == stream.data_id
    assert server.api_key not in json.dumps(spans)


def test_a_failed_attempt_is_a_span_of_its_own_with_the_status(run: Run, server: LocalServer) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503, times=1))

    spans = run(SESSION, SET_UP, "assert deliver()\nprint(json.dumps(spans()))")

    pushed = [span for span in spans if span["name"] == "atomscale push"]
    first, second = (span for span in pushed if span["atomscale.chunk_index"] == 0)
    assert (first["status"], first["http.response.status_code"], first["atomscale.attempt"]) == ("ERROR", 503, 1)
    assert first["error.type"] == "ApiUnavailableError"
    assert "503" in first["why"]
    assert (second["status"], second["atomscale.attempt"]) == ("UNSET", 2)


def test_an_application_that_has_not_set_it_up_does_not_import_it(run: Run) -> None:
    assert run(SESSION, "assert deliver()\nprint(json.dumps([m for m in sys.modules if 'opentelemetry' in m]))") == []


def test_an_application_that_only_imported_it_loads_no_more_of_it(run: Run) -> None:
    told = run(
        SESSION,
        """
        from opentelemetry import trace
        before = {m for m in sys.modules if "opentelemetry" in m}
        assert deliver()
        print(json.dumps(sorted({m for m in sys.modules if "opentelemetry" in m} - before)))
        """,
    )
    assert told == []


def test_a_processor_that_fails_keeps_nothing_from_being_delivered(run: Run, server: LocalServer) -> None:
    told = run(
        SESSION,
        SET_UP,
        """
        from opentelemetry.sdk.trace import SpanProcessor

        class Broken(SpanProcessor):
            def on_start(self, span, parent_context=None):
                raise RuntimeError("broken")
            def on_end(self, span):
                raise RuntimeError("broken")

        provider.add_span_processor(Broken())
        print(json.dumps(deliver()))
        """,
    )
    assert told is True
    assert [stream.status for stream in server.streams()] == ["success"]


def test_the_uploaders_own_process_is_set_up_by_the_environment(run: Run, server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "to_a_file.py").write_text(
        textwrap.dedent(
            """
            import os
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            class ToAFile(ConsoleSpanExporter):
                def __init__(self):
                    super().__init__(out=open(os.environ["SPANS"], "a"), formatter=lambda s: s.to_json(None) + "\\n")
            """
        )
    )
    about = tmp_path / "to_a_file-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: to-a-file\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[opentelemetry_traces_exporter]\nfile = to_a_file:ToAFile\n")
    spans = tmp_path / "spans.jsonl"

    told = run(
        SESSION,
        "print(json.dumps([deliver(), 'opentelemetry' in sys.modules]))",
        ATOMSCALE_BLUESKY_UPLOADER="process",
        OTEL_TRACES_EXPORTER="file",
        OTEL_BSP_SCHEDULE_DELAY="100",
        SPANS=str(spans),
    )

    assert told == [True, False]  # the session itself has nothing of it
    assert [stream.status for stream in server.streams()] == ["success"]
    wait_until(lambda: spans.exists() and '"atomscale finalize"' in spans.read_text())
    found = [json.loads(line) for line in spans.read_text().splitlines()]
    assert {span["name"] for span in found} >= {"atomscale initialize", "atomscale push", "atomscale finalize"}
    assert server.api_key not in spans.read_text()


def test_the_uploaders_own_process_delivers_when_spans_cannot_be_sent(
    run: Run, server: LocalServer, spool_dir: Path
) -> None:
    told = run(
        SESSION,
        "print(json.dumps(deliver()))",
        ATOMSCALE_BLUESKY_UPLOADER="process",
        OTEL_TRACES_EXPORTER="an_exporter_that_is_not_installed",
    )
    assert told is True
    assert "OPENTELEMETRY" in (spool_dir / "uploader.log").read_text()
    assert (spool_dir / "uploader.stderr").read_text() == ""
    assert [stream.status for stream in server.streams()] == ["success"]
