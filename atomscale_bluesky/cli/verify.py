"""`atomscale-bluesky verify`: did a run arrive, point by point?"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..model.uids import shown_uid
from ..status.progress import counted, number
from .asking import says_that_it_waits
from .formatting import ConsoleLog, console, moment, safe
from .options import Once
from .runs import run_argument, uid_meant
from .status import no_spool, open_spool

if TYPE_CHECKING:
    from ..checks.verification import Verification
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.run_parts import RunParts

MAX_NAMES = 8  # of series that the service has added; --json has all


@click.command
@run_argument
@click.option(
    "--file",
    "recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with this recorded run, documents in JSON or MessagePack, instead of the run's journal.",
)
@click.option("--data-id", "data_ids", multiple=True, help="With --file: a metrology stream that the run became.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to go on reading while something is missing.",
)
@click.option(
    "--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="The spool that the run is in."
)
@click.option("--endpoint", cls=Once, metavar="URL", help="Ask the API there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    run: str,
    recording: Path | None,
    data_ids: tuple[str, ...],
    patience_s: float,
    spool_dir: Path | None,
    endpoint: str | None,
    as_json: bool,
) -> int:
    """Read a run back from Atomscale and compare every point.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. While the run is in the spool it is compared
    with the run's journal: value, time to the millisecond, unit, order and count. A run leaves the spool as soon as it
    is finalized. Then it is compared with its recorded documents, given by --file; its streams are those that the
    spool's history names, or --data-id.

    With the setting `keep = "verified"` each run is read back before it leaves the spool. For such a run this command
    says when it was read back.

    The exit code is 0 only if the whole run is in Atomscale, and all of it equal. It is 1 if something differs, is
    missing, waits, was refused or could not be compared, and while the run still goes on.
    """
    from ..errors import ApiUnavailableError
    from ..settings import Settings

    settings = Settings.load(spool_dir=spool_dir, endpoint=endpoint)
    spool = open_spool(settings)
    uid = run if spool is None else uid_meant(spool, run)
    try:
        if recording is not None:
            found = _with_recording(settings, spool, uid, recording, data_ids, patience_s)
        elif spool is None:
            raise click.ClickException(no_spool(settings))
        elif (parts := _parts(settings, spool, uid)).read_back_at is not None:
            return _show_read_back(parts, as_json)
        else:
            found = _with_journal(settings, parts, patience_s)
    except ApiUnavailableError as error:
        raise click.ClickException(f"the run could not be read back: {safe(error)}") from None
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _show(found)
    return int(not found.equal)


def _parts(settings: Settings, spool: Spool, run: str) -> RunParts:
    """Return all parts of the run that is meant.

    Raises:
        click.ClickException: There is no such run, or there are several.
    """
    from ..errors import SpoolError
    from ..settings import spool_option
    from ..status.commands import with_option
    from ..status.run_parts import find_parts
    from ..status.spool_status import SpoolStatus

    try:
        return find_parts(spool, SpoolStatus(spool), run)
    except SpoolError as error:
        raise click.ClickException(with_option(safe(error, limit=1000), spool_option(settings))) from None


def _show_read_back(run: RunParts, as_json: bool) -> int:
    """Print when a run was read back, and return the exit code: 1 if not all of the run is in Atomscale."""
    at = run.read_back_at or 0.0
    gone = {name: sum(int(entry.get(name) or 0) for entry in run.finished) for name in ("discarded", "lost")}
    if as_json:
        told = {"run_uid": run.run_uid, "label": run.finished[-1].get("label"), "verified_at": at}
        click.echo(json.dumps(told | {"equal": not any(gone.values())} | gone, indent=2))
    else:
        more = "".join(f"; {number(count)} {name}" for name, count in gone.items() if count)
        said = f"it was read back on {moment(at)} and was equal, and has left the spool{more}"
        text = Text(f"Run {shown_uid(run.run_uid)}: {said}.", style="yellow" if more else "green")
        console().print(text, soft_wrap=True)
    return int(any(gone.values()))


def _with_journal(settings: Settings, run: RunParts, patience_s: float) -> Verification:
    from ..api.client import Client
    from ..checks.verify_run import check_in_spool, verify_parts
    from ..errors import SpoolError
    from ..settings import spool_option
    from ..status.commands import with_option

    client = Client(settings)
    try:
        check_in_spool(run)
        with says_that_it_waits(settings, f", and is repeated for up to {patience_s:g} s (--patience)"):
            return verify_parts(run, client, patience_s=patience_s)
    except SpoolError as error:
        raise click.ClickException(with_option(safe(error, limit=1000), spool_option(settings))) from None
    finally:
        client.close()


def _with_recording(
    settings: Settings,
    spool: Spool | None,
    run: str,
    recording: Path,
    data_ids: tuple[str, ...],
    patience_s: float,
) -> Verification:
    from ..checks.recordings import one_run, verify_recorded
    from ..sources.recordings import RecordingError, read_documents

    out = ConsoleLog(console(stderr=True), logging.ERROR)
    logging.getLogger("atomscale_bluesky").addHandler(out)
    try:
        uid, documents = one_run(read_documents(recording), run)
        streams = data_ids or _known_streams(spool, uid)
        if not streams:
            raise click.UsageError(f"the spool knows no streams of run {safe(uid)}; name them by --data-id")
        return verify_recorded(documents, streams, settings, patience_s=patience_s)
    except RecordingError as error:
        raise click.UsageError(safe(error)) from None
    finally:
        logging.getLogger("atomscale_bluesky").removeHandler(out)


def _known_streams(spool: Spool | None, uid: str) -> tuple[str, ...]:
    """Return the ids of the metrology streams of all parts of a run, from the spool and its history."""
    from ..status.run_parts import parts_of

    return parts_of(spool, uid).data_ids if spool is not None else ()


def _show(found: Verification) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    for title in ("stream", "channels", "points", "arrived"):
        table.add_column(title, justify="right" if title in {"channels", "points"} else "left", overflow="fold")
    for stream in found.streams:
        equal = not (stream.different or stream.uncompared or stream.problem)
        said = stream.problem or (f"{counted(stream.uncompared, 'point')} not compared" if stream.uncompared else "")
        said = counted(stream.different, "difference") if stream.different else said
        table.add_row(
            Text(safe(stream.data_id)),
            number(stream.channels),
            number(stream.points),
            Text("equal" if stream.points else "nothing to compare", style="green" if stream.points else "")
            if equal
            else Text(safe(said), style="bold red"),
        )
    out.print(table)
    for one in found.differences:
        out.print(Text(f"  {safe(one.data_id)} {safe(one.channel)}: {safe(one)}", style="red"), soft_wrap=True)
    if found.different > len(found.differences):
        out.print(Text(f"  and {number(found.different - len(found.differences))} more", style="red"))
    for stream in found.streams:
        if stream.added:
            names = [f"{safe(name)} ({number(values)})" for name, values in [*stream.added.items()][:MAX_NAMES]]
            names += [f"and {number(more)} more"] if (more := len(stream.added) - MAX_NAMES) > 0 else []
            out.print(Text(f"  {safe(stream.data_id)} added by the service: {', '.join(names)}"), soft_wrap=True)
    style = "bold green" if found.equal else "yellow" if found.arrived else "bold red"
    out.print(Text(f"Run {shown_uid(found.run_uid)}: {safe(found)}.", style=style), soft_wrap=True)
    if found.unread:
        command = f"atomscale-bluesky verify {shown_uid(found.run_uid)} --file FILE"
        out.print(Text(f"To compare all of it with its recorded documents: `{command}`."), soft_wrap=True)


def _as_json(found: Verification) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(found) | {
        "equal": found.equal,
        "points": found.points,
        "different": found.different,
        "uncompared": found.uncompared,
        "added": found.added,
    }
