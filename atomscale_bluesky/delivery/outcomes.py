"""What came of a task in, what it means for its run noted: confirmed, refused, parked, or tried again, and when.

The one retry loop is here and in nothing else: a failure that can clear is tried again without end, with a pause that
all runs share. A wrong key makes everything wait, slowly and loudly. Waiting itself is the uploader's trade.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..api.wire import is_about_the_route
from ..errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError
from ..model.identifiers import FAMILIES
from . import backoff
from .backoff import Pause
from .outage_log import OutageLog
from .run_delivery import Delivery
from .task_runner import Knowledge, Outcome
from .tasks import Kind, Task

if TYPE_CHECKING:
    from ..checks.verification import Verification

_logger = logging.getLogger(__name__)

# How often a finalized run is read back before a difference counts: a minute and a half, in growing pauses.
VERIFY_LOOKS = 8


class Answers:
    """How one server answers, over all runs; belongs to the pump's thread.

    Args:
        knowledge: What has been found out about the server; shared with the senders.
        where: What a warning says of the server and of where the readings are kept meanwhile.
        monotonic, jitter: The clock and the chance that tests hand in.
    """

    def __init__(
        self, knowledge: Knowledge, where: tuple[str, str], monotonic: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self.pause = Pause(jitter)
        self._knowledge = knowledge
        self._outages = OutageLog(*where)
        self._monotonic = monotonic
        self.key_refused_since: float | None = None  # monotonic; None while it is taken, or was not asked for
        self._succeeded_at = 0.0

    def came_back(self, delivery: Delivery, outcome: Outcome) -> None:
        """Note what came of a task in its run."""
        task, error = outcome.task, outcome.error
        if isinstance(error, ApiRefusedError):
            self._answered()
            self._refused(delivery, task, error)
        elif error is not None:
            self._failed(delivery, outcome, error)
        else:
            self._answered()
            match task.kind:
                case Kind.RESOLVE if outcome.links is not None:
                    delivery.resolved(task, outcome.links)
                case Kind.LINK:
                    refused = {link: str(reason) for link, reason in outcome.links_refused.items()}
                    delivery.linked(task, outcome.made, refused)
                case Kind.INITIALIZE:
                    self._knowledge.family = self._knowledge.family or task.family
                    delivery.initialized(task, outcome.data_id, task.family)
                    _logger.info("metrology stream %r is %s", task.label, outcome.data_id)
                case Kind.PUSH:
                    self._pushed(delivery, outcome)
                case Kind.PREVIEW:
                    self._previewed(delivery, outcome)
                case Kind.READ_BACK:
                    self._read_back(delivery, outcome)
                case Kind.FINALIZE:
                    delivery.finalized(task)
                case Kind.CLOCK:
                    delivery.clock_fixed(task, outcome.clock)
                case Kind.VERIFY if outcome.verification is not None:
                    self._verified(delivery, task, outcome.verification)
                case Kind.VERIFY:
                    pass

    def _pushed(self, delivery: Delivery, outcome: Outcome) -> None:
        task = outcome.task
        too_large = outcome.refused and all(error.status == 413 for error in outcome.refused.values())
        if outcome.closed:
            delivery.end_stream(task, "closed by the server")
        elif too_large and not outcome.confirmed and task.points_per_chunk > 1:
            delivery.end_stream(task, "too large", max(1, task.points_per_chunk // 2))
        else:
            delivery.pushed(task, outcome.confirmed, outcome.refused)

    def _previewed(self, delivery: Delivery, outcome: Outcome) -> None:
        if outcome.closed:
            delivery.end_stream(outcome.task, "closed by the server")
        elif outcome.refused:
            delivery.preview_refused(outcome.task, next(iter(outcome.refused.values())), outcome.confirmed)
        else:
            delivery.previewed(outcome.task)

    def _verified(self, delivery: Delivery, task: Task, found: Verification) -> None:
        if found.equal:
            delivery.verified(task)
        elif task.looks < VERIFY_LOOKS:
            # What was stored may take a while until it can be read; that is no trouble of the server's.
            delay_s = backoff.READ.pause_s(task.looks)
            task.looks += 1
            delivery.failed_attempt(task, self._monotonic() + delay_s, ApiUnavailableError(str(found)))
        else:
            delivery.park_run(task, f"read back, and not equal: {found}")

    def _read_back(self, delivery: Delivery, outcome: Outcome) -> None:
        task = outcome.task
        if task.looks < VERIFY_LOOKS and delivery.endings.is_short(task.stream, outcome.points):
            # What is confirmed is not all readable yet, so what is in doubt may not be either.
            delay_s = backoff.READ.pause_s(task.looks)
            task.looks += 1
            waits = ApiUnavailableError("fewer points can be read than are confirmed")
            delivery.failed_attempt(task, self._monotonic() + delay_s, waits)
        else:
            delivery.read_back(task, outcome.points)

    def _refused(self, delivery: Delivery, task: Task, error: ApiRefusedError) -> None:
        known = self._knowledge.family
        if task.kind is Kind.INITIALIZE and known != task.family:
            # The family was a guess; meanwhile another stream may have found out which one it is.
            routeless = error.status in {404, 405} and is_about_the_route(error.detail, task.links)
            following = FAMILIES[FAMILIES.index(task.family) + 1 :] if known is None else (known,)
            if routeless and following:
                task.refusal = str(error)
                delivery.about_to_initialize(task, following[0])
                task.may_exist = False
                delivery.failed_attempt(task, self._monotonic(), error)
                return
            if known is None and task.family != FAMILIES[0]:
                delivery.about_to_initialize(task, FAMILIES[0])  # what a person mends begins from the beginning
        if task.kind is Kind.READ_BACK:
            delivery.read_back(task, {})  # it cannot be read, so nothing of it counts as there
        elif task.kind is Kind.VERIFY:
            delivery.park_run(task, str(error))
        else:
            reason = f"{task.refusal}; {error}" if task.refusal else str(error)
            delivery.park(task, reason + _what_it_named(task, reason))

    def _failed(self, delivery: Delivery, outcome: Outcome, error: ApiError) -> None:
        now = self._monotonic()
        task = outcome.task
        if task.kind is Kind.INITIALIZE and not (
            isinstance(error, ApiKeyError)
            or (isinstance(error, ApiUnavailableError) and not error.may_have_been_applied)
        ):
            task.may_exist = True
        if error.status == 403:
            if task.forbidden_at is not None and self._succeeded_at > task.forbidden_at:
                delivery.park(task, f"forbidden, while others are taken: {error}")
                return
            task.forbidden_at = task.forbidden_at or now
        if isinstance(error, ApiKeyError) and self.key_refused_since is None:
            self.key_refused_since = now
        not_before = self.pause.failed(now, error)
        if task.kind is Kind.PREVIEW:
            not_applied = isinstance(error, ApiKeyError) or (
                isinstance(error, ApiUnavailableError) and not error.may_have_been_applied
            )
            delivery.preview_failed(task, in_doubt=bool(outcome.confirmed) or not not_applied)
            self._outages.failed(now, error, pause_s=self.pause.until - now)
            return
        _logger.debug("attempt %d to %s failed: %s", task.attempts + 1, task, error)
        if task.kind is Kind.LINK or task.unexplained:
            # Chunks may well be taken meanwhile, and each failure makes all of them pause: so ever less often.
            failures = task.unexplained or task.attempts
            not_before = max(not_before, now + backoff.LINK.pause_s(failures))
        delivery.failed_attempt(task, not_before, error, confirmed=outcome.confirmed, made=outcome.made)
        self._outages.failed(now, error, pause_s=self.pause.until - now)

    def _answered(self) -> None:
        self._succeeded_at = self._monotonic()
        self.pause.succeeded()
        self.key_refused_since = None
        self._outages.answered(self._succeeded_at)


def _what_it_named(task: Task, reason: str) -> str:
    """What a refused stream was to be linked to, as far as the refusal does not say it itself."""
    if task.kind is not Kind.INITIALIZE:
        return ""
    named = {
        "synth_source_id": task.links.synth_source_id,
        "physical_sample_id": task.links.physical_sample_id,
        "project_id": task.links.project_id,
    }
    unsaid = [f"{name} {value}" for name, value in named.items() if value is not None and str(value) not in reason]
    return f"; the run names {', '.join(unsaid)}" if unsaid else ""
