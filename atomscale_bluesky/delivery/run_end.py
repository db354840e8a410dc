"""What is done when a run leaves its uploader: it moves into the history, or the log says what is left of it."""

from __future__ import annotations

from ..spool.gil_yield import GilYield
from ..status.run_summary import history_entry, log_summary
from .claimed_run import ClaimedRun
from .run_orders import obey_orders


def finish(run: ClaimedRun, gil_yield: GilYield | None = None) -> bool:
    """Move a finished run from the spool into the history, and log what was delivered.

    Args:
        run: It is `finished`, and nothing of it is under way.
        gil_yield: Makes way for a plan's thread.

    Returns:
        False if the run stays: an order has come for it; its account does not add up, so it is parked; or its writer
        still has files open.

    Raises:
        SpoolError: The run's files cannot be read or written.
    """
    obey_orders(run)  # one may have come during the last request
    if not run.finished:
        return False
    account = run.run_chunker.account
    contradictions = {} if run.state.discarded else account.contradictions(run.state)
    for contradiction in contradictions.values():
        run.park_for_its_account(contradiction)
        return False
    run.run_chunker.close()
    status = run.status()
    entry = history_entry(status, account, run.state, run.header, endpoint=run.claim.endpoint, finished=run.unix_time())
    if not run.claim.finish(entry, gil_yield):
        return False
    log_summary(status, run.state)
    return True


def log_what_is_left(run: ClaimedRun) -> None:
    """Log the state of a stopped run that is released before it is finished."""
    if run.stopped and not run.finished:
        log_summary(run.status(), run.state, run.server_facts.spool_option)
