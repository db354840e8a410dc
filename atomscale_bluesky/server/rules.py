"""The rules of the local server: it refuses what the API does not promise to take, each by a rule with a name.

The API's documents say little about refusals. A client that passes here has relied on nothing undocumented. Each rule
can be waived by its name (`relax`). Then the server does what seems most likely instead. The HTTP status of a refusal
is not documented either, so the statuses below are this server's own choice: 422 for a body that cannot be taken, 409
if it contradicts what the server holds, 404 for what does not exist. A client must not depend on more than their class.

Not waivable, since there is no sensible alternative: 401 without the right key; 404 for an unknown `data_id` or path;
405; 413 above `max_body_bytes`; 422 for a body that is no JSON object of the right types, a negative `chunk_index`, or
`points_per_chunk` below 1; 409 for data of a stream that was closed after a silence.

Chunks may arrive in any order, so a hole or a short chunk in the middle shows only when the stream is finalized.
"""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """One thing that the API does not promise. The value is the name by which the rule is relaxed."""

    status: int
    """The HTTP status of a refusal by this rule."""
    doc: str
    """What the rule demands, in one line."""

    def __new__(cls, value: str, status: int, doc: str) -> Rule:
        """Make a member whose value is `value`."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        member.doc = doc
        member.__doc__ = doc
        return member

    OVER_LENGTH = "over_length", 422, "A chunk has at most `points_per_chunk` points."
    SHORT_CHUNK = "short_chunk", 409, "Only the last chunk of a channel is short (judged at finalize)."
    HOLE = "hole", 409, "A channel's chunk indices have no hole up to its last (judged at finalize)."
    LATE_CHANNEL = "late_channel", 409, "A channel begins with chunk 0; it may end early (judged at finalize)."
    CHANGED_CHUNK = "changed_chunk", 409, "A chunk that is sent again has the same times and values."
    GROWN_CHUNK = "grown_chunk", 409, "A short chunk is not sent again with further points."
    TIME_BASE = "time_base", 422, "All channels have identical timestamps under the same chunk index."
    NON_FINITE = "non_finite", 422, "Times and values are finite numbers: no null, NaN or infinity."
    EMPTY_CHUNK = "empty_chunk", 422, "A chunk has at least one point, a multi body at least one channel."
    UNEQUAL_LENGTHS = "unequal_lengths", 422, "`timestamps` and `values` have the same length."
    CHANNEL_NAME = "channel_name", 422, "A channel name has 1 to 255 characters, and no more bytes in UTF-8."
    CHANGED_UNITS = "changed_units", 409, "A channel keeps its units from chunk to chunk."
    TEXT_LENGTH = (
        "text_length",
        422,
        "`stream_name`, units, and names of tags and physical samples have at most 255 characters.",
    )
    UNKNOWN_MEMBER = "unknown_member", 422, "A body has only the members that the API names."
    CONTENT_TYPE = "content_type", 415, "A body is plain JSON and says so: `application/json`, not compressed."
    UNKNOWN_INSTRUMENT = "unknown_instrument", 404, "`synth_source_id` is an instrument of the organisation."
    UNKNOWN_SAMPLE = "unknown_sample", 404, "`physical_sample_id` is a physical sample of the organisation."
    UNKNOWN_PROJECT = "unknown_project", 404, "`project_id` is a project of the organisation."
    TOOL_STATE_SAMPLE = "tool_state_sample", 422, "`physical_sample_id` goes into metrology's `initialize` only."
    FAMILY = "family", 404, "A stream is fed, finalized and read under the paths it was initialized with."
    AFTER_FINALIZE = "after_finalize", 409, "A finalized stream takes no more data."
    SECOND_FINALIZE = "second_finalize", 409, "A stream is finalized once."


class Refusal(Exception):  # noqa: N818 - it is an answer to the client, not an error of this program
    """Answers a request with `status` and `{"detail": detail}`. The request changed nothing."""

    def __init__(self, status: int, detail: object, *, rule: Rule | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.rule = rule


def refused(rule: Rule, detail: str) -> Refusal:
    """Return the refusal by `rule`. Its name is at the end of the text, so that a log shows what to relax."""
    return Refusal(rule.status, f"{detail} [{rule.value}]", rule=rule)
