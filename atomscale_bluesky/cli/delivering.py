"""What the commands that deliver share: the check before, the delivery with its bar, and the report after it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from ..model.uids import shown_uid
from ..status.commands import with_option
from ..status.outage import NEW_KEY, read_outage
from ..status.progress import POLL_S, Bar, counted, number
from ..status.remedies import remedies
from .asking import says_that_it_waits
from .formatting import ConsoleLog, safe

if TYPE_CHECKING:
    from ..delivery.uploader import Uploader
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.spool_status import SpoolStatus


# The answer that is about the key, whatever is asked for.
KEY_IS_WRONG = 401
NOT_KNOWN = "whether the key works is not known, and it is tried"


def check_that_it_may_send(settings: Settings, *, as_service: bool = False) -> None:
    """Refuse to begin where nothing may be sent.

    Args:
        settings: Of the command.
        as_service: The command is the service that delivers for sessions whose setting `uploader` is `none`.

    Raises:
        SettingsError: There is no key, or `offline` is on.
    """
    from ..errors import SettingsError

    if settings.offline:
        raise SettingsError("setting 'offline' is on, so nothing may be sent; turn it off for this command")
    if settings.api_key is None and settings.uploader == "none" and not as_service:
        raise SettingsError(
            "no API key here, and the setting 'uploader' is 'none': the service `atomscale-bluesky upload --follow` "
            "has the key and delivers; to deliver once from here, put the key into ATOMSCALE_API_KEY"
        )
    if settings.api_key is None:
        raise SettingsError("no API key: put the key of your Atomscale account into ATOMSCALE_API_KEY")


def check_the_key(settings: Settings, ending: threading.Event | None = None) -> None:
    """Ask the API once: a key that does not work would be waited for, but here nobody can change it.

    Only 401 says that it does not. A key that may not look into the catalogue may deliver all the same; that it is not
    known is printed.

    Args:
        settings: Of the command.
        ending: No answer is waited for once this is set.

    Raises:
        ApiKeyError: The key does not work.
    """
    from ..errors import ApiError

    answer: SimpleQueue[Exception | None] = SimpleQueue()
    threading.Thread(target=_try_the_key, args=(settings, answer), name="key", daemon=True).start()
    with says_that_it_waits(settings):
        while ending is None or not ending.is_set():
            try:
                error = answer.get(timeout=POLL_S)
            except Empty:
                continue
            if isinstance(error, ApiError) and error.status != KEY_IS_WRONG:
                click.echo(f"atomscale-bluesky: {NOT_KNOWN} ({safe(error, limit=500)})", err=True)
            elif error is not None:
                raise error
            return


def _try_the_key(settings: Settings, answer: SimpleQueue[Exception | None]) -> None:
    from ..api.client import Client
    from ..errors import ApiUnavailableError

    try:
        client = Client(settings)
        try:
            client.find_entry("atomscale-bluesky")
        finally:
            client.close()
    except ApiUnavailableError:
        answer.put(None)  # the uploader goes on asking
    except Exception as error:  # noqa: BLE001 - raised in the thread that waits
        answer.put(error)
    else:
        answer.put(None)


@contextmanager
def logged(out: Console, level: int = logging.INFO) -> Iterator[None]:
    """Show what the package logs within the `with`, from this level on."""
    logger, log = logging.getLogger("atomscale_bluesky"), ConsoleLog(out, level)
    before, propagate = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(log)
        logger.setLevel(before)
        logger.propagate = propagate


@contextmanager
def logged_as_a_service() -> Iterator[None]:
    """Send what the package logs within the `with` to standard error, where services are expected to speak."""
    from ..delivery.uploader_service import LOG_FORMAT

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger = logging.getLogger("atomscale_bluesky")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def deliver(out: Console, settings: Settings, spool: Spool, watch: SpoolStatus, ending: threading.Event) -> None:
    """Drain until nothing moves any more, or `ending`. In rounds: an uploader takes up so many runs at a time.

    A key that is refused for some time ends it too, because here nobody can change it.
    """
    from ..delivery.uploader import Uploader
    from ..delivery.uploader_service import KEY_PATIENCE_S

    with Bar(out, watch) as bar:
        while not ending.is_set():
            before = set(spool.run_folders())
            uploader = Uploader(spool, settings)
            uploader.start()
            answer: SimpleQueue[bool] = SimpleQueue()
            threading.Thread(target=_drain, args=(uploader, answer), name="drain", daemon=True).start()
            try:
                while not ending.is_set():
                    try:
                        answer.get(timeout=POLL_S)
                        break
                    except Empty:
                        bar.update()
                    if uploader.key_refused_s > KEY_PATIENCE_S:
                        return
            finally:
                uploader.stop()
            bar.update()
            if before <= set(spool.run_folders()):
                return


def _drain(uploader: Uploader, answer: SimpleQueue[bool]) -> None:
    answer.put(uploader.drain_own(threading.TIMEOUT_MAX))


def report(out: Console, settings: Settings, spool: Spool, watch: SpoolStatus, begun: float) -> int:
    """Say what is left in the spool, and what of the runs delivered since `begun`, Unix seconds, had found no room.

    Return the exit code: 0 if nothing is left.
    """
    from ..model.loss import count_not_kept
    from ..settings import spool_option
    from ..status.run_summary import was_discarded
    from ..status.spool_status import bad_ending
    from .status_text import not_kept_lines

    finished = [entry for entry in spool.history.entries() if float(entry.get("finished") or 0.0) >= begun]
    if discarded := [int(entry.get("discarded") or 0) for entry in finished if was_discarded(entry)]:
        points, runs = counted(sum(discarded), "point"), counted(len(discarded), "run")
        out.print(Text(f"Discarded, as ordered: {points} of {runs}.", style="yellow"), soft_wrap=True)
    missing = [n for entry in finished if (n := count_not_kept(entry.get("left_out") or {}))]
    if missing:
        text = f"{counted(sum(missing), 'reading')} of {counted(len(missing), 'run')} had found no room in the spool."
        out.print(Text(text, style="yellow"), soft_wrap=True)
    status = watch.status()
    for line in not_kept_lines(status):
        out.print(line, soft_wrap=True)
    left = [run for run in status if run.points.waiting or run.points.refused or run.state != "running"]
    if not left:
        if not any(entry.get("delivered") for entry in finished):
            text = "Nothing is left to deliver."
        elif discarded:
            text = "All the rest is delivered."
        else:
            text = "All that was kept is delivered." if missing or status.not_kept else "All of it is delivered."
        out.print(Text(text, style="green"))
        return 0
    option = spool_option(settings)
    for run in left:
        text = f"{safe(run.label, limit=200)} (run {shown_uid(run.run_uid)}), {safe(run.state)}"
        ended = f"its plan ended with {word}" if (word := bad_ending(run.exit_status)) else ""
        ended = "interrupted" if run.interrupted else ended
        text += f" ({ended}): " if ended else ": "
        text += f"{counted(run.points.waiting, 'point')} waiting"
        if run.points.refused:
            text += f", {number(run.points.refused)} refused"
        if run.problem:
            text += f"; {with_option(safe(run.problem), option)}"
        text += "".join(f"; `{safe(command)}`" for command in remedies(run, option, settings.endpoint)[:1])
        out.print(Text(text, style="bold red" if run.problem else "yellow"), soft_wrap=True)
    elsewhere = sum(map(spool.uploader_alive, spool.run_folders()))
    if elsewhere:
        them = f"{counted(elsewhere, 'run')} {'is' if elsewhere == 1 else 'are'}"
        text = f"Of these, {them} in the hands of another process, which goes on."
        outage = read_outage(spool.path)
        if outage is not None and outage.key_refused:
            text = f"{text[:-1]} once its API key is taken: it is refused now, and {NEW_KEY}."
        out.print(text, soft_wrap=True)
    text = f"Not all of it is delivered; `atomscale-bluesky status{safe(option)}` tells more."
    out.print(Text(text), soft_wrap=True)
    return 1
