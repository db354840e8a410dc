"""Notes the operator's orders for a run in its ledger.

An order takes effect when the run is read again from its files.
"""

from __future__ import annotations

import logging

from ..spool.ledger_format import Discarded, Edited, Obeyed, Unparked
from ..spool.orders import DamagedOrder, Discard, Edit, Move, Retry, Settle
from .claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)


def obey_orders(run: ClaimedRun) -> None:
    """Note the orders that are new, and request that the run is read again. Waits for nothing but the disk.

    Raises:
        SpoolError: An order cannot be decoded, or the ledger cannot be written.
    """
    orders = run.claim.orders()
    for number, order in enumerate(orders[run.state.orders_obeyed :], start=run.state.orders_obeyed + 1):
        match order:
            case Discard():
                run.ledger.note(Discarded(run.unix_time(), number))
            case Edit():
                run.ledger.note(Edited(order.links, number, order.points_per_chunk, order.label))
            case Retry():
                run.ledger.note(Unparked(number))
            case DamagedOrder():
                _logger.error(
                    "run %s: order %d in its orders.jsonl is damaged and has no effect; give it again",
                    run.header.run_uid, number,
                )  # fmt: skip
                run.ledger.note(Obeyed(number))
                continue
            case Settle():
                run.ledger.note(Obeyed(number))  # `settle_is_ordered` has the rest
            case Move():
                run.request_reload("it was moved")  # the process that delivers to the new endpoint notes it
                return
        _logger.info("run %s: %s, as ordered", run.header.run_uid, type(order).__name__.lower())
        if not isinstance(order, Settle):
            run.request_reload(f"{type(order).__name__.lower()} was ordered")


def settle_is_ordered(run: ClaimedRun) -> bool:
    """Return True if the operator has ordered `settle`, and the run has no stop yet. Its writer has to complete it.

    Raises:
        SpoolError: An order cannot be decoded.
    """
    return not run.stopped and any(isinstance(order, Settle) for order in run.claim.orders())
