"""Performs one task in a worker thread. Whatever goes wrong becomes part of the outcome, never an exception."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from ..api.client import Client
from ..errors import ApiError, ApiUnavailableError
from .tasks.work import PartlyDoneError, ServerFacts, UnexplainedError, WorkerContext
from .unfinished_tasks import Task

_logger = logging.getLogger(__name__)


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one task: its kind's result, or an error and the result of what was done before it."""

    task: Task
    result: Any = None
    error: ApiError | None = None
    unexplained: bool = False  # it was refused, and the catalogue did not tell whether its stream is closed


def perform(client: Client, task: Task, server_facts: ServerFacts) -> Outcome:
    """Perform one task, and return its outcome. Never raises."""
    result, unexplained = None, False
    context = WorkerContext(server_facts, task.attempts, task.unexplained)
    try:
        return Outcome(task, task.work.perform(client, context))
    except PartlyDoneError as part:
        result, error = part.result, part.__cause__
    except UnexplainedError as refused:
        unexplained, error = True, refused.__cause__
    except Exception as raised:  # noqa: BLE001 - logged below
        error = raised
    if not isinstance(error, ApiError):
        # A mistake of ours must not end the thread and with it all delivery: it is logged, and tried again.
        _logger.error("%s failed unexpectedly; it is tried again", task, exc_info=error)
        error = ApiUnavailableError(f"{task}: {type(error).__name__}: {error}")
    return Outcome(task, result, error, unexplained)
