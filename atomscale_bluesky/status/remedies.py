"""Which commands mend a run that waits for the operator. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from ..model.uids import shown_uid
from .run_status import RunStatus

PROGRAM = "atomscale-bluesky"

# In the problem of a run whose first request was answered as by a server that has no such API.
NO_API = "no call of the API is at this endpoint, which is perhaps wrong"

# The option of `edit` for each metadata key that cannot be used.
_OPTIONS = {
    "synth_source_id": "--synth-source-id NUMBER",
    "physical_sample_id": "--physical-sample-id UUID",  # before the one that it begins with
    "physical_sample": "--physical-sample NAME",
    "project_id": "--project-id UUID",
    "tags": "--tag TAG",
    "track_sample": "--no-track-sample",
    "stream_name": "--stream-name NAME",
    "points_per_chunk": "--points-per-chunk NUMBER",
}
# What `edit` corrects, by the words that a problem has for it. The word that comes first in the problem decides.
_WORDS = (
    *_OPTIONS.items(),
    ("instrument", "--synth-source-id NUMBER"),
    ("project", "--project-id UUID"),
    ("sample", "--physical-sample NAME"),
    ("tag", "--tag TAG"),
)


def remedies(run: RunStatus, option: str = "", endpoint: str = "") -> tuple[str, ...]:
    """Return the commands that mend a run, the most likely one first. Empty if it does not wait for the operator.

    Args:
        run: The run.
        option: By which the commands find the run's spool, such as ` --spool-dir /data/spool`.
        endpoint: Of the session or the command that asks: where the run could go if its own endpoint is wrong.
    """
    return tuple(f"{command}{option}" for command in _commands(run, endpoint))


def move_away(before: str, endpoint: str = "") -> str:
    """Return the command that moves the runs from a wrong endpoint to another one, or to the same without its path."""
    other = "" if endpoint == before else endpoint
    parts = urlsplit(before)
    if not other and parts.path:
        other = f"{parts.scheme}://{parts.netloc}"
    return f"{PROGRAM} move --from {before} --to {other or 'URL'}"


def _commands(run: RunStatus, endpoint: str) -> tuple[str, ...]:
    if run.state != "parked":
        return ()
    uid = shown_uid(run.run_uid)
    edit = f"{PROGRAM} edit {uid} {edit_options(run.unusable) or _option(run.problem or '')}"
    retry, discard = f"{PROGRAM} retry {uid}", f"{PROGRAM} discard {uid}"
    again = f"{PROGRAM} move {uid} --to {run.endpoint}"
    match run.cause:
        case "metadata":
            return (edit, discard)
        case "stream" if NO_API in (run.problem or ""):
            return (move_away(run.endpoint, endpoint), retry, edit, discard)
        case "missing" | "stream":
            return (edit, retry, discard) if not run.data_ids or run.cause == "missing" else (retry, discard)
        case "link":
            return (edit, retry)
        case "chunk":
            return (retry, discard)
        case "ledger":
            return (again, discard)
        case "run":
            # Its problem says which of these fits.
            return (f"{PROGRAM} verify {uid}", retry, again, discard)
        case _:
            return ()


def edit_options(keys: Iterable[str]) -> str:
    """Return the options of `edit` with which the operator gives what these metadata keys should have been."""
    return " ".join(dict.fromkeys(_OPTIONS.get(key, "--leave-out-unusable") for key in keys))


def _option(problem: str) -> str:
    """Return the option of `edit` for what a problem is about."""
    found = [(problem.index(word), option) for word, option in _WORDS if word in problem]
    return min(found, key=lambda one: one[0])[1] if found else "--help"
