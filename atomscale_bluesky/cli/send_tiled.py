"""`atomscale-bluesky send tiled`: the runs of a Tiled catalogue, into the spool and to Atomscale."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from .sending import HowFar, Origin, common_options, print_runs, send_runs

if TYPE_CHECKING:
    from ..documents.recorder import DocumentRecorder


class _Moment(click.ParamType):
    """A date or a time, to Unix seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the Unix seconds."""
        try:
            return datetime.fromisoformat(value).astimezone().timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is not a time; expected one such as 2024-01-31 or 2024-01-31T22:15", param, ctx)


@click.command("tiled")
@click.argument("catalogue", metavar="CATALOGUE")
@click.option("--since", type=_Moment(), help="Only runs that began then or later: 2024-01-31, or with T22:15.")
@click.option("--until", type=_Moment(), help="Only runs that began before.")
@click.option("--run", "run_uids", multiple=True, metavar="UID", help="Only this run; its first 5 characters will do.")
@click.option("--scan-id", "scan_ids", type=int, multiple=True, metavar="N", help="Only runs with this scan id.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N runs that were not sent yet.")
@click.option("--unfinished", is_flag=True, help="Also runs without a stop document, as interrupted.")
@common_options
def send_tiled(
    catalogue: str,
    since: float | None,
    until: float | None,
    run_uids: tuple[str, ...],
    scan_ids: tuple[int, ...],
    limit: int | None,
    unfinished: bool,
    **options: Any,
) -> int:
    """Send runs of a Tiled catalogue, oldest first.

    CATALOGUE is its address, such as http://tiled.lab:8000/mbe, or the name of a profile of Tiled. The key comes from
    TILED_API_KEY, from the profile, or from an earlier `tiled login`, and not from the command line, which others can
    read.

    Give the same command again whenever you like: a run that was sent is recognised by its uid, and not even fetched.
    Times without a zone are local. The options for instrument, sample and tags apply to runs whose own metadata name
    none.

    A run without a stop document is still going on, or its writer has died. It is skipped and reported. Give
    --unfinished, best with --run, for runs that will get no more documents.

    The exit code is 0 only if every run could be read and has its stop document, and all is delivered. It is 130 after
    Ctrl-C and 143 after SIGTERM.
    """
    from ..errors import SettingsError
    from ..sources.tiled import TiledRuns

    if "api_key=" in catalogue:
        raise SettingsError(
            "the address has a key, which others can read in the list of processes; put it into TILED_API_KEY"
        )

    def begin(recorder: DocumentRecorder | None, ending: threading.Event) -> Origin:
        source = TiledRuns(
            catalogue,
            since=since,
            until=until,
            run_uids=run_uids,
            scan_ids=scan_ids,
            limit=limit,
            unfinished=unfinished or recorder is None,
            known=lambda uid: recorder is not None and recorder.has_whole(uid),
            documents=recorder is not None,
            ending=ending,
        )

        def print_unusable(out: Console) -> int:
            text = "Run {} has no stop document yet, so it is left for another time; --unfinished sends it."
            print_runs(out, source.left_for_later, text, "So are")
            return int(bool(source.left_for_later))

        def how_far() -> HowFar:
            total = source.total_runs
            return HowFar(source.runs, total, "" if total is None else f"run {source.runs} of {total}")

        return Origin(
            source,
            how_far,
            known_runs=lambda: source.known_runs,
            print_unusable=print_unusable,
            unusable=("run or document cannot be used: {}", "runs or documents cannot be used: {}"),
        )

    return send_runs(
        begin, without_stop=f"would be {'sent as interrupted' if unfinished else 'left for another time'}", **options
    )
