"""The meaning of a refusal, for every kind of task.

    a look-up is refused                ignored: it only serves another request, whose own refusal counts
    403 while other tasks may write     this task alone is forbidden, and waits for the operator
    404, 405                            perhaps the path does not exist here
    413                                 too large: a smaller one may be taken, and the stream is open
    any other refusal of a chunk        the stream may be closed: the catalogue is asked

`is_closed` and `status_of` ask the catalogue, so a worker calls them. The other functions are pure.
"""

from __future__ import annotations

import logging
from typing import Any

from ..api.answers import CLOSED
from ..api.client import Client
from ..errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from .tasks.work import UnexplainedError, Work, WorkerContext

_logger = logging.getLogger(__name__)

# A refused look-up shows nothing: a key that may only write gets no answer, and some servers have no catalogue.
LOOK_UP_REFUSED = (ApiKeyError, ApiRefusedError)
# After this many attempts, each without an answer from the catalogue about its stream, a refusal counts as it is.
CATALOGUE_ATTEMPTS = 8
# The status of a stream that the catalogue does not have.
MISSING = "missing"


def is_no_route(error: ApiError) -> bool:
    """Return True if an answer may mean that the path does not exist."""
    return error.status in {404, 405}


def is_too_large(error: ApiError) -> bool:
    """Return True if a smaller request may be taken. It says nothing about the stream."""
    return error.status == 413


def is_forbidden_alone(error: ApiError, forbidden_at: float | None, accepted_at: float) -> bool:
    """Return True if a request is forbidden while others are accepted, so that the key is not the reason.

    A request that left before the key was revoked may be answered late. So the time when a request was sent counts.

    Args:
        error: How the request failed.
        forbidden_at: Since when all attempts of its task were answered 403, or None if the last one was not.
        accepted_at: When the newest task was given out whose result shows that the key may write.
    """
    return error.status == 403 and forbidden_at is not None and accepted_at > forbidden_at


def surely_did_nothing(error: ApiError) -> bool:
    """Return True if a request that failed was not applied, and will not be."""
    if isinstance(error, ApiKeyError):
        return True
    return isinstance(error, ApiUnavailableError) and not error.may_have_been_applied


def is_closed(client: Client, work: Work[Any], data_id: str, context: WorkerContext) -> bool:
    """Return True if the catalogue says that the server has closed the stream, so the chunk was not refused itself."""
    return status_of(client, work, data_id, context) in CLOSED


def status_of(client: Client, work: Work[Any], data_id: str, context: WorkerContext) -> str | None:
    """Return the status that the catalogue has of a stream, or `MISSING`, or None if the catalogue does not tell.

    Raises:
        UnexplainedError: The catalogue gave no answer, which can clear. Not raised after `CATALOGUE_ATTEMPTS`.
    """
    try:
        entry = client.entry_of(data_id)
    except LOOK_UP_REFUSED as error:
        _logger.info("%s was refused, and the catalogue does not tell whether its stream was closed: %s", work, error)
    except ApiUnavailableError as error:
        if context.unexplained + 1 < CATALOGUE_ATTEMPTS:
            raise UnexplainedError from error
    else:
        return MISSING if entry is None else entry.status
    return None
