"""`atomscale-bluesky upload`: deliver what processes that are gone have left in the spool.

It is the uploader of the callback, without a callback. Runs that a living process delivers are left to it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from .delivering import (
    KEY_IS_WRONG,
    NOT_KNOWN,
    check_that_it_may_send,
    check_the_key,
    deliver,
    logged,
    logged_as_a_service,
    report,
)
from .formatting import console, safe
from .options import Once
from .status import no_spool, open_spool

if TYPE_CHECKING:
    from ..settings import Settings


_logger = logging.getLogger(__name__)


@click.command
@click.option(
    "--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="Deliver the runs of this spool."
)
@click.option(
    "--endpoint", cls=Once, metavar="URL", help="Origin of the API; only runs that were spooled for it are delivered."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop after this time. Default: never.",
)
@click.option("--follow", is_flag=True, help="Stay, and deliver every run as it goes on; for a service.")
def upload(spool_dir: Path | None, endpoint: str | None, timeout_s: float | None, follow: bool) -> int:
    """Deliver what earlier sessions have left.

    Takes over the runs of processes that have ended, completes those that were interrupted, and delivers them. While
    the network is down it waits and tries again. Ctrl-C is safe at any time: what is not delivered stays in the spool,
    and the next upload goes on from there.

    The exit code is 0 only if nothing waits in the spool any more.

    With --follow it serves the spool until SIGTERM or Ctrl-C, for RunEngines whose setting `uploader` is `none`, and
    logs what it does to standard error. The exit codes are then 0 after one of these signals, 75 if the spool is
    served already, 77 when the API key is refused for half a minute, 1 when it failed.
    """
    from ..settings import Settings
    from ..spool.locks import SignalEvent
    from ..status.spool_status import SpoolStatus
    from .status_text import not_kept_lines

    if timeout_s is not None and not timeout_s <= threading.TIMEOUT_MAX:
        raise click.UsageError(f"--timeout is {timeout_s:g}; give a number of seconds, or leave it out")
    settings = Settings.load(spool_dir=spool_dir, endpoint=endpoint)
    if follow:
        return _follow(settings, timeout_s)
    out = console()
    spool = open_spool(settings)
    if spool is None:
        text = no_spool(settings)
        out.print(Text(f"{text[0].upper()}{text[1:]}.", style="yellow"), soft_wrap=True)
        return 0
    if not spool.run_folders():
        for line in not_kept_lines(SpoolStatus(spool).status()):
            out.print(line, soft_wrap=True)
        out.print(Text(f"Nothing waits in {safe(settings.spool_path)}."), soft_wrap=True)
        return 0
    check_that_it_may_send(settings)
    spool = open_spool(settings, read_only=False) or spool
    watch, begun = SpoolStatus(spool), time.time()
    stopping, interrupted = SignalEvent(), SignalEvent()
    if timeout_s is not None:
        _stop_after(timeout_s, stopping)
    check_the_key(settings, stopping)

    def interrupt(_number: int, _frame: object) -> None:
        # Not as an exception: one that is raised while Python tidies up an object is lost.
        interrupted.set()
        stopping.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with logged(out):
            deliver(out, settings, spool, watch, stopping)
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set():
        out.print("Stopped. What is not delivered stays in the spool; begin again whenever you like.", soft_wrap=True)
        return 130
    return report(out, settings, spool, watch, begun)


def _stop_after(timeout_s: float, stopping: threading.Event) -> None:
    timer = threading.Timer(timeout_s, stopping.set)
    timer.daemon = True
    timer.start()


def _follow(settings: Settings, timeout_s: float | None) -> int:
    from ..delivery.uploader_service import serve, stop_on_signals

    check_that_it_may_send(settings, as_service=True)
    stopping, restore_handlers = stop_on_signals()
    if timeout_s is not None:
        _stop_after(timeout_s, stopping)
    try:
        with logged_as_a_service():
            threading.Thread(target=_say_if_refused, args=(settings,), name="key", daemon=True).start()
            return serve(settings, stopping=stopping)
    finally:
        restore_handlers()


def _say_if_refused(settings: Settings) -> None:
    """Log it if the server refuses the key, or to tell. Without it nobody would know before something is to be sent."""
    from ..api.client import Client
    from ..errors import ApiError, ApiUnavailableError

    client = Client(settings)
    try:
        client.find_entry("atomscale-bluesky")
    except ApiUnavailableError as error:
        _logger.warning("%s does not answer: %s; this goes on trying when there is something to send",
                        settings.endpoint, error)  # fmt: skip
    except ApiError as error:
        if error.status != KEY_IS_WRONG:
            _logger.warning("%s: %s (%s)", settings.endpoint, NOT_KNOWN, error)
            return
        _logger.error("%s refuses the API key: %s; put a key that works into ATOMSCALE_API_KEY, and start this again",
                      settings.endpoint, error)  # fmt: skip
    finally:
        client.close()
