"""Which commands mend a run that waits for the operator. Pure."""

from __future__ import annotations

from .run_status import RunStatus

PROGRAM = "atomscale-bluesky"
UID_SHOWN = 8

# What `edit` corrects, by the words that a problem has for it. The word that comes first in the problem decides.
_EDITS = (
    ("synth_source_id", "--synth-source-id NUMBER"),
    ("physical_sample_id", "--physical-sample-id UUID"),
    ("physical_sample", "--physical-sample NAME"),
    ("project_id", "--project-id UUID"),
    ("points_per_chunk", "--points-per-chunk NUMBER"),
    ("track_sample", "--no-track-sample"),
    ("instrument", "--synth-source-id NUMBER"),
    ("project", "--project-id UUID"),
    ("sample", "--physical-sample NAME"),
    ("tag", "--tag TAG"),
)


def remedies(run: RunStatus) -> tuple[str, ...]:
    """Return the commands that mend a run, the most likely one first. Empty if it does not wait for the operator."""
    uid = run.run_uid[:UID_SHOWN]
    edit = f"{PROGRAM} edit {uid} {_option(run.problem or '')}"
    retry, discard = f"{PROGRAM} retry {uid}", f"{PROGRAM} discard {uid}"
    again = f"{PROGRAM} move {uid} --to {run.endpoint}"
    match run.cause:
        case "metadata":
            return (edit, discard)
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


def _option(problem: str) -> str:
    """Return the option of `edit` for what a problem is about."""
    found = [(problem.index(word), option) for word, option in _EDITS if word in problem]
    return min(found, key=lambda one: one[0])[1] if found else "--help"
