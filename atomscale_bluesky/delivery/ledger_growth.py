"""Since when the ledger of each active run has not grown: a run whose ledger grows makes progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from .run_delivery import RunDelivery


class LedgerGrowth:
    """Remembers the ledgers' sizes, by the runs' folders. Belongs to the deciding thread.

    Args:
        monotonic: Returns monotonic seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._sizes: dict[Path, tuple[int, float]] = {}  # how large each ledger was, and since when

    def begin(self, delivery: RunDelivery) -> None:
        """Count from now on for a run that becomes active."""
        self._sizes[delivery.claim.folder] = (delivery.claim.ledger.size, self._monotonic())

    def update(self, deliveries: Iterable[RunDelivery]) -> None:
        """Note which ledgers of active runs have grown since the last call."""
        now = self._monotonic()
        for delivery in deliveries:
            folder, size = delivery.claim.folder, delivery.claim.ledger.size
            if self._sizes.get(folder, (-1, 0.0))[0] != size:
                self._sizes[folder] = (size, now)

    def quiet_s(self, delivery: RunDelivery) -> float:
        """Return for how many seconds an active run's ledger has not grown, as far as `update` has seen."""
        return self._monotonic() - self._sizes[delivery.claim.folder][1]

    def forget(self, folder: Path) -> None:
        """Forget a run that was released."""
        self._sizes.pop(folder, None)
