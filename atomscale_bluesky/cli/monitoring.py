"""`status --check`: one line and an exit code, as monitoring plugins have them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..model.uids import shown_uid
from ..status.progress import counted, number
from .formatting import age, plain_blanks, safe

if TYPE_CHECKING:
    from ..settings import Settings
    from ..status.outage import Outage
    from ..status.run_status import RunStatus
    from ..status.spool_status import Status

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Duration(click.ParamType):
    """A time span: `90s`, `10m`, `2h`, `1d`, or a number of seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the span in seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
        if found is None:
            self.fail(f"{safe(repr(value))} is not a time; write 90s, 10m, 2h or 1d", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def check_now(spool_dir: Path | None, max_age_s: float | None) -> int:
    """Print the line and return the exit code."""
    from ..errors import AtomscaleBlueskyError

    try:
        code, text = _check(spool_dir, max_age_s)
    except (AtomscaleBlueskyError, OSError) as error:
        code, text = UNKNOWN, safe(error, limit=2000)
    click.echo(plain_blanks(f"{_WORDS[code]}: {text}"))
    return code


def _check(spool_dir: Path | None, max_age_s: float | None) -> tuple[int, str]:
    from ..settings import Settings
    from ..status.spool_status import SpoolStatus
    from .status import no_spool, open_spool

    settings = Settings.load(spool_dir=spool_dir)
    spool = open_spool(settings)
    if spool is None:
        return UNKNOWN, no_spool(settings)
    return _judge(settings, SpoolStatus(spool).status(), max_age_s, time.time())


def _judge(settings: Settings, runs: Status, max_age_s: float | None, now: float) -> tuple[int, str]:
    """Return the exit code, and what stands behind it: the gravest first."""
    grave: list[str] = []
    slight: list[str] = []
    if runs.no_room:
        grave.append(f"no room for new readings: {safe(runs.no_room)}")
    if urgent := [run for run in runs if run.needs_operator]:
        grave.append(f"{counted(len(urgent), 'run')} for the operator, such as {shown_uid(urgent[-1].run_uid)}")
    oldest = runs.oldest_waiting
    if oldest is not None and max_age_s is not None and now - oldest > max_age_s:
        grave.append(f"the oldest point has waited for {age(now - oldest)}, longer than {age(max_age_s)}")
    unfinished = [run for run in runs if run.unfinished]
    if max_age_s is not None and (late := _late_to_finalize(unfinished, now - max_age_s)):
        grave.append(
            f"run {shown_uid(late[0].run_uid)} is not finalized, longer than {age(max_age_s)} after its last point"
        )
    if unfinished and runs.trouble is not None and runs.key_refused:
        grave.append(f"the API key has been refused {_for_how_long(runs.trouble, now)}")
    elif unfinished and runs.trouble is not None:
        slight.append(f"no data taken {_for_how_long(runs.trouble, now)}")
    if undelivered := sum(run.endpoint not in runs.delivered_to for run in unfinished):
        slight.append(f"nobody delivers {counted(undelivered, 'run')}")
    account = f"{counted(len(runs), 'run')} in {safe(settings.spool_path)}, {number(runs.points.waiting)} points wait"
    code = CRITICAL if grave else WARNING if slight else OK
    return code, "; ".join([*grave, *slight, account])


def _for_how_long(trouble: Outage, now: float) -> str:
    """Return how long it has failed in the present way and why, and how long in all if it began in another way."""
    text = f"for {age(now - trouble.of_kind_since)}: {safe(trouble.error)}"
    if trouble.of_kind_since > trouble.since:
        text += f" (the outage began {age(now - trouble.since)} ago, with another error)"
    return text


def _late_to_finalize(runs: list[RunStatus], before: float) -> list[RunStatus]:
    """Return the runs whose points have all been in Atomscale since before that time."""
    return [run for run in runs if not run.points.waiting and (run.last_confirmed or run.started) < before]
