"""Which runs become active when more of them wait than there are places, and which make way.

A quarter of the places is for runs that are not written in this process: here, "the other runs".

An active run makes way for a queued one if

    nothing can be done for it: it waits for the operator, or has nothing to send until more is written
    none of its attempts has succeeded for a minute
    a run that is being written here is queued, and the other runs have more than their quarter
    one of the other runs is queued, and the other runs have less than their quarter
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from ..spool.gil_yield import GilYield
from .active_runs import ActiveRuns
from .run_delivery import RunDelivery
from .tasks.work import Kind

# How long one call may go on claiming runs before the uploader sees to its messages again.
FILL_S = 0.05
# A run without progress for `QUIET_S` makes way, one run every `QUIET_PERIOD_S`.
QUIET_S, QUIET_PERIOD_S = 60.0, 10.0
# How many runs that could go on make way in one scan for runs that have waited.
TURNS_PER_SCAN = 4


class Turns:
    """Decides which runs are active. Belongs to the deciding thread.

    Args:
        active: The active runs, and those that wait.
        gil_yield: Makes way for a plan's thread.
        monotonic: Returns monotonic seconds. A test passes its own.
    """

    def __init__(
        self, active: ActiveRuns, gil_yield: GilYield | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._active = active
        self._gil_yield = gil_yield or GilYield()
        self._monotonic = monotonic
        self._quiet_put_back_at = float("-inf")

    def fill_places(self) -> bool:
        """Claim runs whose turn it is while there are places, for up to `FILL_S`. Return True if there were any."""
        active, waiting = self._active, self._active.waiting
        end, any_claimed = self._monotonic() + FILL_S, False
        while waiting.any_queued and (active.free_places > 0 or self.free_a_place()):
            others = len(active) - sum(map(self._is_live, active))
            folder = waiting.pop_next(live_first=not waiting.any_backlog or others >= self._for_others)
            if folder is None:
                break
            active.claim(folder)
            any_claimed = True
            self._gil_yield.make_way()
            if self._monotonic() >= end:
                return True
        while active.free_places > 0 and (folder := waiting.pop_set_aside()) is not None:
            active.claim(folder)
            any_claimed = True
            if self._monotonic() >= end:
                break
        return any_claimed

    def free_a_place(self) -> bool:
        """Set a run aside for which nothing can be done now. Return False if there is none.

        The choice is random. If a few more runs are being written than there are places, and each has its turn in the
        same order, the run that was set aside longest ago would always be the one that is needed next.
        """
        idle = [delivery for delivery in self._active if delivery.idle]
        return bool(idle) and self._active.set_aside(random.choice(idle))  # noqa: S311 - no secret

    def give_turns(self, *, server_answers: bool) -> None:
        """Let runs make way that could go on, so that none waits for ever and those being written wait least.

        Args:
            server_answers: True while the server answers. While it does not, no run is preferred to another.
        """
        active, waiting = self._active, self._active.waiting
        live = [delivery for delivery in active if self._is_live(delivery)]
        others = [delivery for delivery in active if not self._is_live(delivery)]
        spare = len(others) - self._for_others
        if server_answers and waiting.any_live and spare > 0:  # the youngest of the others give their place back
            for delivery in [one for one in reversed(others) if _may_stop(one)][: min(spare, TURNS_PER_SCAN)]:
                active.put_back(delivery, first=True)
        elif server_answers and (waiting.any_live or spare < 0):  # those that have had their place longest
            for delivery in [one for one in live if _may_stop(one)][:TURNS_PER_SCAN]:
                active.put_back(delivery)
        now = self._monotonic()
        if active.free_places > 0 or now - self._quiet_put_back_at < QUIET_PERIOD_S:
            return
        for delivery in active:
            failed = delivery.run.unfinished_tasks.failed_tasks
            verifies = any(task.kind is Kind.VERIFY for task in failed)
            if active.ledger_growth.quiet_s(delivery) >= QUIET_S and failed and _may_stop(delivery) and not verifies:
                self._quiet_put_back_at = now
                active.put_back(delivery)
                return

    @property
    def _for_others(self) -> int:
        """Return how many places are kept for runs that are not being written here."""
        all_places = len(self._active) + self._active.free_places
        return max(1, all_places // 4)

    def _is_live(self, delivery: RunDelivery) -> bool:
        return delivery.claim.folder in self._active.written_here


def _may_stop(delivery: RunDelivery) -> bool:
    """Return True if a run can be released: nothing of it is under way, and it is not about to be finished."""
    return delivery.run.unfinished_tasks.in_flight == 0 and not delivery.run.finished and not delivery.may_reload_now
