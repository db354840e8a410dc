"""A span of OpenTelemetry for each task of an upload, where the application has set up OpenTelemetry.

This is the only place that knows OpenTelemetry. It runs in the worker threads, for each task and never for an event.
OpenTelemetry is used only where it is imported already, as it is in an application that has set it up. Where it is not
imported, a task costs one look-up in `sys.modules`.

A process that a callback has started has no code of the application. It is set up by the environment, with the same
variables as everything that `opentelemetry-instrument` starts.
"""

from __future__ import annotations

import logging
import os
import sys
from contextvars import Token
from typing import TYPE_CHECKING, Any

from ..api.connection import Traffic
from ..model.text import safe
from .task_runner import Outcome
from .unfinished_tasks import Task

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_logger = logging.getLogger(__name__)

_EXPORTER = "OTEL_TRACES_EXPORTER"
# How much of an error's text a span has.
MAX_ERROR_CHARACTERS = 300


class TaskSpan:
    """One task that a span is recorded for."""

    def __init__(self, span: Span, token: Token[Any]) -> None:
        self.span = span
        self.token = token


class Tracing:
    """Records the steps of one worker thread. No method raises."""

    def __init__(self) -> None:
        self._provider: object = None
        self._tracer: Tracer | None = None

    def begin(self, run_uid: str, task: Task) -> TaskSpan | None:
        """Begin a span for a task. Return None if the application has not set up OpenTelemetry."""
        if "opentelemetry.trace" not in sys.modules:
            return None
        try:
            return self._begin(run_uid, task)
        except Exception:  # noqa: BLE001 - the application's processors and samplers run here, and delivery goes on
            _logger.debug("a span could not be begun", exc_info=True)
            return None

    def end(self, task_span: TaskSpan | None, outcome: Outcome, traffic: Traffic) -> None:
        """End the span of a task.

        Args:
            task_span: What `begin` returned.
            outcome: The result of the task, or its error.
            traffic: The task's requests.
        """
        if task_span is None:
            return
        try:
            _end(task_span, outcome, traffic)
        except Exception:  # noqa: BLE001 - likewise
            _logger.debug("a span could not be ended", exc_info=True)

    def _begin(self, run_uid: str, task: Task) -> TaskSpan | None:
        from opentelemetry import context, trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            return None
        if self._tracer is None or provider is not self._provider:
            self._provider, self._tracer = provider, provider.get_tracer("atomscale_bluesky")
        work = task.work
        span = self._tracer.start_span(
            f"atomscale {work.kind.name.lower()}",
            kind=trace.SpanKind.CLIENT,
            attributes={
                "atomscale.run_uid": run_uid[:64],
                "atomscale.step": work.kind.name.lower(),
                "atomscale.attempt": task.attempts + 1,
            },
        )
        chunk = task.chunk
        if data_id := getattr(work, "data_id", ""):
            span.set_attribute("atomscale.data_id", str(data_id))
        if chunk is not None:
            span.set_attribute("atomscale.chunk_index", chunk.index)
            span.set_attribute("atomscale.channels", len(chunk.names))
            span.set_attribute("atomscale.points", chunk.points * len(chunk.names))
        return TaskSpan(span, context.attach(trace.set_span_in_context(span)))


def _end(task_span: TaskSpan, outcome: Outcome, traffic: Traffic) -> None:
    from opentelemetry import context, trace

    context.detach(task_span.token)
    span, error = task_span.span, outcome.error
    span.set_attribute("atomscale.requests", traffic.requests)
    span.set_attribute("atomscale.sent_bytes", traffic.sent_bytes)
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        if error.status is not None:
            span.set_attribute("http.response.status_code", error.status)
        span.set_status(trace.Status(trace.StatusCode.ERROR, safe(str(error), MAX_ERROR_CHARACTERS)))
    elif isinstance(outcome.result, str):  # the id of a stream that was made
        span.set_attribute("atomscale.data_id", outcome.result)
    span.end()


def set_up_by_environment(log: logging.Handler) -> None:
    """Set up OpenTelemetry in a process without an application, if its environment asks for spans.

    It takes what `opentelemetry-instrument` would take: `OTEL_TRACES_EXPORTER` and the variables beside it. Failures
    are logged, by OpenTelemetry. Does nothing if `opentelemetry-instrument` has set up this process, too.

    Args:
        log: Gets what OpenTelemetry logs, such as that a collector is not there. Marked, because it is no warning of
            the uploader's: the plan's log is not to repeat it.
    """
    if os.environ.get(_EXPORTER, "none") in {"", "none"}:
        return
    log.addFilter(_marked)
    logging.getLogger("opentelemetry").addHandler(log)
    try:
        from opentelemetry import trace
        from opentelemetry.instrumentation.auto_instrumentation import initialize

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
    except ImportError:
        _logger.warning("%s is set, and this process records no spans: install `atomscale-bluesky[tracing]`", _EXPORTER)
        return
    for other in ("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"):
        os.environ.setdefault(other, "none")  # their defaults need packages that spans alone do not
    initialize()


def _marked(record: logging.LogRecord) -> bool:
    if record.name.startswith("opentelemetry"):
        record.levelname = "OPENTELEMETRY"
    return True
