"""One task in, the requests it takes, what came of it out.

What one thing to do may need more than one request for is decided here: to look for a stream before it is made again,
to ask the catalogue whether a refused stream was closed or finalized, to push a chunk in parts or channel by channel.
Where a look-up of that kind is refused, it has told nothing: the outcome is that of the request it was made for.
Nothing is repeated, noted or waited for.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..api.client import Client, ClockReading, Pushed
from ..api.clock import measure
from ..api.wire import CLOSED, Entry, push_bytes
from ..errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError, SpoolError
from ..model.chunk import Chunk
from ..model.links import Links
from .link_resolver import make, resolve
from .tasks import Kind, Link, Points, Task

if TYPE_CHECKING:
    from ..checks.verification import Verification

_logger = logging.getLogger(__name__)

# After so many attempts a run whose times are to be shifted goes without, if the server answers other requests.
CLOCK_ATTEMPTS = 4
# After so many attempts a refusal counts as it is, if the catalogue gave no answer about its stream each time.
CATALOGUE_ATTEMPTS = 8


class Outcome(msgspec.Struct):
    """What came of one task."""

    task: Task
    error: ApiError | None = None
    data_id: str = ""
    confirmed: tuple[str, ...] = ()
    refused: dict[str, ApiRefusedError] = {}
    closed: bool = False  # the server has closed the stream
    points: Points = {}  # as read back
    clock: ClockReading | None = None  # None: it cannot be measured
    verification: Verification | None = None
    links: Links | None = None  # with ids for names
    made: list[Link] = []
    links_refused: dict[Link, ApiRefusedError] = {}


class Knowledge(msgspec.Struct):
    """What has been found out about the server; each is a plain flag that any worker may set."""

    family: str | None = None  # the one that streams are made in
    clock_measured: float = -math.inf  # when, monotonic
    single_only: set[str] = set()  # families without chunk/multi


def perform(client: Client, task: Task, knowledge: Knowledge) -> Outcome:
    """Do one task, and tell what came of it; whatever goes wrong is part of that."""
    outcome = Outcome(task)
    try:
        _perform(client, task, outcome, knowledge)
    except ApiError as error:
        outcome.error = error
    except Exception as error:  # noqa: BLE001 - logged below
        # A mistake of ours must not end the thread and with it the delivery of everything: it is said, and tried again.
        _logger.exception("%s failed in a way that it should not", task)
        outcome.error = ApiUnavailableError(f"{task}: {type(error).__name__}: {error}")
    return outcome


def _perform(client: Client, task: Task, outcome: Outcome, knowledge: Knowledge) -> None:
    match task.kind:
        case Kind.RESOLVE:
            outcome.links = resolve(client, task.links)
        case Kind.INITIALIZE:
            outcome.data_id = _initialize(client, task)
        case Kind.LINK:
            make(client, task, outcome.made, outcome.links_refused)
        case Kind.FINALIZE:
            _finalize(client, task)
        case Kind.READ_BACK:
            outcome.points = client.points(task.family, task.data_id, task.due).points
        case Kind.CLOCK:
            outcome.clock = _clock(client, task)
        case Kind.VERIFY:
            from ..checks.verification import verify_run  # takes a while, and few runs are read back

            try:
                outcome.verification = verify_run(Path(task.folder), client, patience_s=0)
            except SpoolError as error:
                raise ApiRefusedError(f"the run cannot be verified: {error}") from error
        case Kind.PUSH | Kind.PREVIEW if task.chunk is not None:
            pushed = _push(client, task, task.chunk, knowledge)
            outcome.confirmed, outcome.refused = pushed.confirmed, pushed.refused
            outcome.error = pushed.unavailable
            if pushed.refused and not pushed.confirmed and pushed.unavailable is None:
                outcome.closed = _is_closed(client, task)


def _initialize(client: Client, task: Task) -> str:
    data_id = None
    if task.may_exist:
        # An earlier request may have been applied though its answer never came: look before making another.
        try:
            entry = client.find(task.label)
        except (ApiKeyError, ApiRefusedError) as error:
            # Nothing was ever pushed to a stream whose id is not known, so all that may be left is an empty one.
            _logger.warning(
                "%r may be in Atomscale already, and the catalogue does not tell (%s); it is made again, and an empty "
                "stream of this label may be left there", task.label, error,
            )  # fmt: skip
        else:
            data_id = entry.data_id if entry else None
            _logger.info(
                "%r %s", task.label, "was found in the catalogue" if entry else "is not in the catalogue; made anew"
            )
    if data_id is None:
        try:
            data_id = client.initialize(
                task.family, label=task.label, points_per_chunk=task.points_per_chunk, links=task.links
            )
        except ApiKeyError as error:
            _check_instrument(client, task.links.synth_source_id, error)
            raise
    return data_id


def _check_instrument(client: Client, source_id: int | None, error: ApiKeyError) -> None:
    """Tell a key that may not write from one that may, but not for somebody else's instrument.

    Raises:
        ApiRefusedError: The instrument is not among those that the key can see.
    """
    if error.status != 403 or source_id is None:
        return
    try:
        known = client.instruments()
    except ApiError:
        return
    if source_id not in known:
        raise ApiRefusedError(
            f"growth instrument {source_id} is not one that this key can see ({error}); correct it with "
            f"`edit --synth-source-id`",
            status=error.status,
        ) from error


def _finalize(client: Client, task: Task) -> None:
    try:
        client.finalize(task.family, task.data_id)
    except ApiRefusedError:
        # Refused because it was done: an answer may have been lost, or the server closed a stream that was silent.
        entry = _entry(client, task)
        if entry is None or entry.status not in CLOSED:
            raise
        if entry.status != "success":
            _logger.warning(
                "%r was closed by the server as %s before it was finalized; it is whole", task.label, entry.status
            )


def _clock(client: Client, task: Task) -> ClockReading | None:
    """The server's clock; None where the server has none, or does not tell it while it answers other requests."""
    try:
        return measure(client)
    except ApiRefusedError:
        return None
    except ApiError as error:
        if task.attempts + 1 < CLOCK_ATTEMPTS:
            raise ApiUnavailableError(str(error), status=error.status) from error
        try:
            client.entry(task.data_id)  # raises where the server does not answer this either: then all waits anyway
        except ApiRefusedError:
            pass  # it does answer
        except ApiKeyError as refused:
            if refused.status == 401:
                raise  # with a key that works the clock may be told
        return None


def _is_closed(client: Client, task: Task) -> bool:
    """Return True if the catalogue says that the server has closed the stream, so the chunk was not refused itself."""
    entry = _entry(client, task)
    return entry is not None and entry.status in CLOSED


def _entry(client: Client, task: Task) -> Entry | None:
    """Return the stream's entry in the catalogue, None where there is none or the catalogue does not tell.

    A key that may only write gets no answer here, and some deployments have no catalogue. That says nothing about the
    request which was refused before, so that one's own reason has to stand.

    Raises:
        ApiUnavailableError: There was no answer, which can clear; not raised after `CATALOGUE_ATTEMPTS`.
    """
    try:
        return client.entry(task.data_id)
    except (ApiKeyError, ApiRefusedError) as error:
        _logger.info("%s was refused, and the catalogue does not tell whether its stream was closed: %s", task, error)
    except ApiUnavailableError:
        task.unexplained += 1
        if task.unexplained < CATALOGUE_ATTEMPTS:
            raise
    return None


def _push(client: Client, task: Task, chunk: Chunk, knowledge: Knowledge) -> Pushed:
    """Push all channels at once; singly where that does not exist, in halves to find those that are not taken."""
    apart = [name for name in chunk.names if name in task.apart] if task.apart else []
    together = chunk.only(name for name in chunk.names if name not in task.apart) if apart else chunk
    if not together.columns or task.family in knowledge.single_only:
        return client.push_channels(task.family, task.data_id, chunk)
    if len(together.columns) > 1 and push_bytes(together) > client.max_body_bytes:
        return _push_halves(client, task, chunk, knowledge)
    try:
        client.push(task.family, task.data_id, together)
    except ApiRefusedError as error:
        if error.status in {404, 405}:
            one_by_one = client.push_channels(task.family, task.data_id, chunk)
            if one_by_one.confirmed:
                knowledge.single_only.add(task.family)
            return one_by_one
        if task.kind is Kind.PREVIEW:
            return Pushed((), dict.fromkeys(chunk.names, error))  # nobody has to know which channel it is
        if len(together.columns) > 1:
            if error.status != 413 and chunk is task.chunk and _is_closed(client, task):
                return Pushed((), dict.fromkeys(chunk.names, error))  # all of it would be refused, one by one
            return _push_halves(client, task, chunk, knowledge)
        pushed = Pushed((), {together.names[0]: error})
    else:
        pushed = Pushed(together.names, {})
    if not apart:
        return pushed
    rest = client.push_channels(task.family, task.data_id, chunk.only(apart))
    return Pushed(pushed.confirmed + rest.confirmed, pushed.refused | rest.refused, rest.unavailable)


def _push_halves(client: Client, task: Task, chunk: Chunk, knowledge: Knowledge) -> Pushed:
    """Push a chunk that is too large for one request, or refused as a whole, in two, under the same index.

    One refused channel of n is found, and all others are through, after about 2 log2(n) requests.
    """
    half = len(chunk.names) // 2
    first = _push(client, task, chunk.only(chunk.names[:half]), knowledge)
    if first.unavailable:
        return first
    second = _push(client, task, chunk.only(chunk.names[half:]), knowledge)
    return Pushed(first.confirmed + second.confirmed, first.refused | second.refused, second.unavailable)
