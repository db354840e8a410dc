"""Checks whether everything is ready for a run. Each check passes, warns or fails, with a reason and a remedy.

Nothing is made, changed or sent. The spool is read. The API is asked for its clock, for a search that finds nothing,
and for the list of instruments.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from ..api.client import Client
from ..api.clock import measure
from ..errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError, SettingsError, SpoolError
from ..settings import DEFAULT_ENDPOINT, Settings, is_loopback, spool_option
from ..spool.disk_space import network_file_system
from ..spool.spool import Spool
from ..status.clock_note import CLOCK_WARNS_S, offset_in_words
from ..status.progress import counted
from ..status.spool_status import SpoolStatus
from .who_delivers import undelivered


class Result(Enum):
    """How a check ended."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """What was checked, what was found, and what to do about it."""

    what: str
    result: Result
    found: str
    remedy: str = ""


# The settings that say whether a server is asked, and which one. The API key goes there.
_WHOM_TO_ASK = frozenset({"endpoint", "allow_http", "offline"})


def examine(settings: Settings, unclear: Set[str] = frozenset(), questioned: Set[str] = frozenset()) -> Iterator[Check]:
    """Yield each check as soon as it is done. Sends at most eight requests to the API.

    Args:
        settings: The settings in force.
        unclear: Names of settings for which a source has a value that cannot be used or read. What they decide is not
            checked, because the default is perhaps not what the user means: the key goes to no host that was not named.
        questioned: Names of settings for which a variable of another name is perhaps meant.
    """
    yield _key_is_there(settings, unclear)
    if "spool_dir" in unclear:
        yield Check("spool", Result.FAILED, "not looked at: no usable `spool_dir`", "first mend the settings")
    else:
        yield from _spool(settings)
    if settings.offline:
        yield Check("server", Result.WARNING, "not asked: `offline` is set", "unset it to send what is spooled")
        return
    if not unclear.isdisjoint(_WHOM_TO_ASK):
        why = "what cannot be read or used of the settings may say which server is meant, or that none is to be asked"
        if len(unclear) == 1:
            why = f"no usable `{next(iter(unclear))}`"
        yield Check("server", Result.FAILED, f"not asked: {why}", "first mend the settings")
        return
    if "endpoint" in questioned:
        yield Check("server", Result.WARNING,
                    f"not asked: {settings.endpoint} is perhaps not the `endpoint` you mean, and would get the key",
                    "answer the question above, or set ATOMSCALE_API_ENDPOINT")  # fmt: skip
        return
    client = Client(settings)
    try:
        yield from _server(settings, client)
    finally:
        client.close()


def _key_is_there(settings: Settings, unclear: Set[str]) -> Check:
    if settings.api_key:
        return Check("API key", Result.PASSED, "set")
    if "api_key" in unclear:
        return Check("API key", Result.FAILED, "no usable `api_key`", "first mend the settings")
    if settings.uploader == "none":
        return Check(
            "API key", Result.PASSED, "not set, and not needed here: `uploader` is `none`, so a service delivers"
        )
    return Check(
        "API key",
        Result.FAILED,
        "not set: readings are spooled, none is sent",
        "put the key of your Atomscale account into ATOMSCALE_API_KEY",
    )


def _server(settings: Settings, client: Client) -> Iterator[Check]:
    try:
        clock = measure(client)
    except (ApiKeyError, ApiRefusedError) as error:  # it answers all the same
        if answer := _answer_of_another_service(client):
            yield _not_the_api(settings, answer)
            return
        yield Check("server", Result.PASSED, f"{settings.endpoint} answers")
        yield _tls(settings)
        yield Check("clock", Result.WARNING, f"the server does not tell its time: {error}",
                    "make sure that NTP sets this host's clock")  # fmt: skip
    except ApiError as error:
        if "certificate" in str(error).lower():
            yield Check("TLS", Result.FAILED, str(error),
                        "name your site's own authority by `ca_bundle`; else this is not Atomscale")  # fmt: skip
        else:
            yield Check("server", Result.FAILED, str(error),
                        "check the network, the proxy and `endpoint`; runs are spooled")  # fmt: skip
        return
    else:
        yield Check("server", Result.PASSED, f"{settings.endpoint} answers in {clock.delay_s * 1e3:.0f} ms")
        yield _tls(settings)
        off = abs(clock.offset_s) > CLOCK_WARNS_S + clock.delay_s / 2
        yield Check(
            "clock",
            Result.WARNING if off else Result.PASSED,
            offset_in_words(clock.offset_s, clock.delay_s),
            "let the host's clock be set by NTP" if off else "",
        )
    if settings.api_key:
        yield from _key_works(settings, client)


def _answer_of_another_service(client: Client) -> str:
    """Return the answer to a call that Atomscale's API certainly has, if it is "not found"; else an empty text."""
    try:
        client.find_entry("atomscale-bluesky doctor")
    except ApiRefusedError as error:
        return str(error) if error.status in {404, 405} else ""
    except ApiError:
        return ""
    return ""


def _not_the_api(settings: Settings, answer: str) -> Check:
    path = urlsplit(settings.endpoint).path
    remedy = f"set `endpoint` to Atomscale's, such as {DEFAULT_ENDPOINT}"
    if path:
        remedy = f"leave out {path!r}: `endpoint` is an origin such as {DEFAULT_ENDPOINT}"
    return Check("server", Result.FAILED, f"{settings.endpoint} answers, but not as Atomscale does: {answer}", remedy)


def _tls(settings: Settings) -> Check:
    if settings.endpoint.startswith("https:"):
        return Check("TLS", Result.PASSED, f"the certificate of {urlsplit(settings.endpoint).hostname} is trusted")
    if is_loopback(settings.endpoint):
        return Check("TLS", Result.PASSED, "none needed: the server is on this machine")
    return Check("TLS", Result.WARNING, "the API key travels readable over plain http", "use an https endpoint")


def _key_works(settings: Settings, client: Client) -> Iterator[Check]:
    try:
        client.find_entry("atomscale-bluesky doctor")
        instruments = client.instruments()
    except ApiUnavailableError as error:
        yield Check("key works", Result.WARNING, str(error), "try again")
        return
    except ApiError as error:
        if error.status == 401:
            yield Check("key works", Result.FAILED, str(error), "make a new key in Atomscale's dashboard")
        else:  # a key may be there for sending alone
            yield Check("key works", Result.WARNING, f"not known: {error}",
                        "none, if readings arrive; else ask for the permissions that the key lacks")  # fmt: skip
        return
    yield Check("key works", Result.PASSED, "the catalogue can be read")
    wanted = settings.synth_source_id
    shown = ", ".join(f"{number} ({name})" for number, name in sorted(instruments.items())) or "none"
    if wanted is None:
        yield Check("instrument", Result.PASSED, f"`synth_source_id` comes from each run's metadata; there are {shown}")
    elif wanted in instruments:
        yield Check("instrument", Result.PASSED, f"{wanted} is {instruments[wanted]}")
    else:
        yield Check("instrument", Result.FAILED, f"there is no instrument {wanted}; there are {shown}",
                    "set `synth_source_id` to one of them")  # fmt: skip


def _spool(settings: Settings) -> Iterator[Check]:
    try:
        path = settings.spool_path
    except (SpoolError, SettingsError) as error:
        yield _unusable(error, "choose another `spool_dir`")
        return
    if path != settings.named_folder:
        yield Check("spool", Result.WARNING, f"{settings.named_folder} holds other things, so the spool is {path}",
                    "set `spool_dir` to that, or to a folder of its own")  # fmt: skip
    if not path.exists():
        yield _can_be_made(path)
        return
    try:
        spool = Spool(path, read_only=True)
    except SpoolError as error:
        mend = "" if path.exists() and not path.is_dir() else ", or mend its permissions"
        yield _unusable(error, f"choose another `spool_dir`{mend}")
        return
    yield _can_be_written(path)
    kind = network_file_system(path)
    yield Check(
        "file system",
        Result.WARNING if kind else Result.PASSED,
        f"a network file system ({kind})" if kind else "on this machine",
        "set `spool_dir` to a folder on a local disk" if kind else "",
    )
    yield _disk_room(settings, spool)
    yield _leftovers(settings, spool)


def _unusable(error: SpoolError | SettingsError, remedy: str) -> Check:
    """Return the check for a spool that cannot be used. The error ends with its own remedy, which is not repeated."""
    return Check("spool", Result.FAILED, str(error).removesuffix("; choose another `spool_dir`"), remedy)


def _disk_room(settings: Settings, spool: Spool) -> Check:
    used, free = spool.disk_space.measure_all()
    max_bytes, min_free = settings.spool_max_bytes, settings.spool_min_free_bytes
    room = f"{used / 1e6:.0f} MB of {max_bytes / 1e6:.0f} MB used, {free / 1e6:.0f} MB free on the disk"
    out = "new readings are left out"
    if used >= max_bytes:
        return Check("room", Result.FAILED, f"{room}: {out}", "deliver what waits, or raise `spool_max_bytes`")
    if free < min_free:
        found = f"{room}, and {min_free / 1e6:.0f} MB are to stay free (`spool_min_free_bytes`): {out}"
        return Check("room", Result.FAILED, found, "free some space on that disk, or lower `spool_min_free_bytes`")
    if spool.disk_space.why_full_now():
        return Check("room", Result.FAILED, f"{room}, so the disk is full: {out}", "free some space on that disk")
    if used > 0.8 * max_bytes:
        return Check("room", Result.WARNING, room, "deliver what waits, or raise `spool_max_bytes`")
    if free < 2 * min_free:
        return Check("room", Result.WARNING, room, "free some space on that disk, or deliver what waits")
    return Check("room", Result.PASSED, room)


def _can_be_written(path: Path) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode)
    if not os.access(path, os.W_OK | os.X_OK):
        return Check("spool", Result.FAILED, f"{path} cannot be written",
                     "choose another `spool_dir`, or mend its permissions")  # fmt: skip
    if os.name != "nt" and mode & 0o022:
        return Check("spool", Result.WARNING, f"others can rename and remove what is in {path} ({mode:04o})",
                     "`chmod go-w` that folder, or set `spool_dir` to a folder of your own")  # fmt: skip
    return Check("spool", Result.PASSED, f"{path} can be written, by you alone")


def _can_be_made(path: Path) -> Check:
    above = next(folder for folder in path.parents if folder.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return Check("spool", Result.PASSED, f"{path} is made when it is first needed")
    why = "cannot be written" if above.is_dir() else "is no folder"
    return Check("spool", Result.FAILED, f"{path} cannot be made: {above} {why}", "choose another `spool_dir`")


def _leftovers(settings: Settings, spool: Spool) -> Check:
    try:
        runs = SpoolStatus(spool).status()
    except OSError as error:
        return Check("leftovers", Result.FAILED, str(error), "see to it that the spool's folder can be read")
    damaged = [run for run in runs if run.state == "unreadable"]
    if damaged:
        return Check("leftovers", Result.WARNING,
                     f"runs that cannot be read: {len(damaged)}; {damaged[0].folder}: {damaged[0].problem}",
                     "they are kept; make them readable, update the package, or move their folders away")  # fmt: skip
    status = f"atomscale-bluesky status{spool_option(settings)}"
    parked = [run for run in runs if run.state == "parked"]
    if parked:
        return Check("leftovers", Result.WARNING, f"runs wait for the operator: {len(parked)}; {parked[0].problem}",
                     f"see `{status}`; mend with `edit`, `retry` or `discard`")  # fmt: skip
    waiting = runs.points.waiting
    if not waiting:
        return Check("leftovers", Result.PASSED, "nothing waits")
    said = f"{counted(waiting, 'point')} of {counted(len(runs), 'run')} wait"
    if alone := list(undelivered(settings, runs)):
        found = "; ".join(f"{one.found[0].lower()}{one.found[1:]}" for one in alone)
        return Check("leftovers", Result.WARNING, f"{said}; {found}", "; ".join(one.remedy for one in alone))
    if runs.trouble is not None:
        return Check("leftovers", Result.WARNING, f"{said}; Atomscale takes no data: {runs.trouble.error}",
                     f"a process goes on trying; see `{status}`")  # fmt: skip
    return Check("leftovers", Result.PASSED, f"{said}, and a process delivers them")
