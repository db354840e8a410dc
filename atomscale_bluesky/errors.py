"""Every error this package raises, grouped by what the caller can do about it.

A text names the thing, what was expected and the remedy. None of these errors ever leaves `AtomscaleCallback.__call__`:
a callback that raises would abort the run.
"""

from __future__ import annotations


class AtomscaleBlueskyError(Exception):
    """Any error of this package. Where the difference matters, catch one of its kinds instead."""


class SettingsError(AtomscaleBlueskyError, ValueError):
    """A setting cannot be used; raised when the callback or the command starts, before any run."""


class MetadataError(AtomscaleBlueskyError, ValueError):
    """A start document's metadata cannot be used to initialize a metrology stream."""


class ChannelError(AtomscaleBlueskyError, ValueError):
    """A descriptor or a value cannot become channels of a metrology stream."""


class DocumentError(AtomscaleBlueskyError, ValueError):
    """A Bluesky document cannot be recorded. Nothing of it was kept. What is already recorded is not affected."""


class StartMissingError(DocumentError):
    """A document belongs to a run whose start document never came, so nothing of it was kept.

    `run_uid` is the run's uid, empty if the document names its descriptor only.
    """

    def __init__(self, message: str, *, run_uid: str = "") -> None:
        super().__init__(message)
        self.run_uid = run_uid


class SpoolError(AtomscaleBlueskyError, OSError):
    """The spool cannot be used, or two owners claim the same run."""


class SpoolFullError(SpoolError):
    """There is no disk space for more. Data that was kept before is not touched."""


class LineTooLongError(SpoolError):
    """A document would make a line that no reader of the spool takes. Nothing of it was kept."""


class ApiError(AtomscaleBlueskyError):
    """Atomscale did not do what was asked.

    `status` is the HTTP status of its answer, or None without an answer from the API. `detail` is the answer's message,
    quoted and shortened. `answer` is the body of a refusal as it came, but for the API key.
    """

    def __init__(self, message: str, *, status: int | None = None, detail: str = "", answer: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.answer = answer


class ApiUnavailableError(ApiError):
    """No answer from the API, or one that can change with time: the same request may succeed later.

    `retry_after_s` is how long the server asks to wait, in seconds from now; None if it does not say.
    `may_have_been_applied` is False only if the request certainly never reached the API.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        may_have_been_applied: bool = True,
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s
        self.may_have_been_applied = may_have_been_applied


class ApiKeyError(ApiError):
    """401 or 403: the API key is missing, wrong, revoked or lacks a right. Everything waits for a key that works."""


class ApiRefusedError(ApiError):
    """Any other 4xx: this request will never be accepted as it is."""


class ApiTooLargeError(ApiRefusedError):
    """An answer is larger than is read: about a stream, far larger than what was sent to it."""
