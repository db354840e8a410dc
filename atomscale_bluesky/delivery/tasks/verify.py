"""Reads a finalized run back and compares it, if the run is kept until then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.client import Client
from ...errors import ApiRefusedError
from ...spool.ledger_format import Verified
from ...spool.own_files import OUT_OF_RESOURCES
from .. import backoff
from .read_back import MAX_READS
from .work import Kind, RetryAfter, Work, WorkerContext

if TYPE_CHECKING:
    from ...checks.verification import Verification
    from ..claimed_run import ClaimedRun

_REMEDY = "compare it by `atomscale-bluesky verify`; `atomscale-bluesky retry` reads it again"


class Verify(Work["Verification"], frozen=True, eq=False):
    """Read a whole run back, and compare it."""

    kind: ClassVar[Kind] = Kind.VERIFY

    folder: str  # of the run
    reads: int = 0  # how often it was read back and not equal

    def perform(self, client: Client, context: WorkerContext) -> Verification:
        """Read the run back, and compare it with its files."""
        from ...checks.verify_run import verify_run  # few sessions need it, and there the uploader has it

        try:
            return verify_run(Path(self.folder), client, patience_s=0)
        except OSError as error:  # a SpoolError is one
            if error.errno in OUT_OF_RESOURCES:
                raise
            raise ApiRefusedError(f"the run cannot be verified: {error}") from error

    def apply_result(self, run: ClaimedRun, result: Verification) -> RetryAfter | None:
        """Note that it is equal, or park the run if it is still not equal after `MAX_READS`."""
        if result.equal:
            run.ledger.note(Verified(run.unix_time()))
        elif self.reads < MAX_READS:
            # Stored points may take a while until they can be read. That is no outage.
            return RetryAfter(msgspec.structs.replace(self, reads=self.reads + 1), backoff.READ.pause_s(self.reads))
        else:
            run.park(f"read back, and not equal: {result}", _REMEDY)
        return None

    def apply_refusal(self, run: ClaimedRun, error: ApiRefusedError) -> None:
        """Park the run, which stays in the spool."""
        run.park(str(error), _REMEDY)


def next_work(run: ClaimedRun) -> Verify | None:
    """Return the comparison if it is wanted and all of the run is delivered."""
    if (
        run.header.keep != "verified"
        or not run.delivered
        or run.state.verified
        or run.unfinished_tasks.holds_any(Kind.VERIFY)
    ):
        return None
    for stream in run.streams.values():
        return Verify(stream.opening.stream, stream.opening.label, str(run.claim.folder))
    return None
