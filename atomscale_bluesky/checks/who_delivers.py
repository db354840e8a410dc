"""Runs that no process delivers: which they are, why, and what delivers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..model.text import safe
from ..settings import Settings, spool_option
from ..status.progress import counted
from ..status.spool_status import Status


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Runs for one endpoint that wait, and that no process delivers. Both texts are parts of a sentence."""

    found: str
    remedy: str = ""  # empty if the first part says it

    def __str__(self) -> str:
        """Return it as a sentence."""
        return f"{self.found}: {self.remedy}." if self.remedy else f"{self.found}."


def undelivered(settings: Settings, runs: Status) -> Iterator[Undelivered]:
    """Yield, for each endpoint to which no process delivers, what waits for it and what delivers it.

    Args:
        settings: Of the session or the command that asks: its endpoint, its key and its uploader.
        runs: The spool's status.
    """
    option = spool_option(settings)
    upload = f"atomscale-bluesky upload{option}"
    waiting: dict[str, int] = {}
    for run in runs:
        if run.unfinished:
            waiting[run.endpoint] = waiting.get(run.endpoint, 0) + 1
    for endpoint, count in waiting.items():
        if endpoint in runs.delivered_to:
            continue
        said, shown = (
            f"Nobody delivers {counted(count, 'run')} for {safe(endpoint, 500)}",
            safe(endpoint, 500),
        )
        refused = runs.key_refused and runs.trouble is not None and runs.trouble.endpoint == endpoint
        if endpoint != settings.endpoint:
            yield Undelivered(
                f"{said} at present, and this session's endpoint is another",
                f"`{upload} --endpoint {shown}` delivers; if that endpoint is wrong, "
                f"`atomscale-bluesky move --from {shown} --to {safe(settings.endpoint, 500)}{option}` changes it",
            )
        elif settings.offline:
            yield Undelivered(f"{said}: the setting `offline` is on")
        elif settings.uploader == "none":
            once = f", or deliver once with `{upload}`" if settings.api_key else ""
            yield Undelivered(
                f"{said} at present, and the setting `uploader` is `none`",
                f"{'give the service a key that works, and ' if refused else ''}"
                f"start the service `{upload} --follow`{'' if refused else once}",
            )
        elif not settings.api_key:
            yield Undelivered(
                f"{said} at present, and there is no API key here",
                f"put the key into ATOMSCALE_API_KEY, then `{upload}` delivers",
            )
        elif refused:
            yield Undelivered(
                f"{said} at present, and the last process that did had an API key that is refused",
                f"put a key that works into ATOMSCALE_API_KEY, then the next session delivers, or now `{upload}`",
            )
        else:
            yield Undelivered(f"{said} at present", f"the next session will, or now `{upload}`")


def deliverer(settings: Settings, endpoint: str) -> str:
    """Return who will deliver to an endpoint to which no process delivers now: the end of a sentence.

    Args:
        settings: Of the command that tells it.
        endpoint: Where the runs go.
    """
    upload = f"atomscale-bluesky upload{spool_option(settings)}"
    if endpoint != settings.endpoint:
        return f"by `{upload} --endpoint {safe(endpoint, 500)}`"
    if settings.offline:
        return "once the setting `offline` is off"
    if settings.uploader == "none":
        once = f", or now by `{upload}`" if settings.api_key else ""
        return f"by the service `{upload} --follow`, once it runs{once}"
    if not settings.api_key:
        return f"once the key is in ATOMSCALE_API_KEY: by the next session, or by `{upload}`"
    return f"by the next session, or now by `{upload}`"
