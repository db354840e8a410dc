"""What the answer to a request means that was not taken."""

from __future__ import annotations

import pytest

from atomscale_bluesky.delivery.refusals import is_forbidden_alone, is_no_route, is_too_large, surely_did_nothing
from atomscale_bluesky.errors import ApiError, ApiKeyError, ApiRefusedError, ApiUnavailableError


@pytest.mark.parametrize(
    ("status", "no_route", "too_large"),
    [(404, True, False), (405, True, False), (413, False, True), (422, False, False)],
)
def test_a_status_tells_whether_the_path_is_missing_or_the_request_too_large(
    status: int, no_route: bool, too_large: bool
) -> None:
    error = ApiRefusedError("no", status=status)

    assert (is_no_route(error), is_too_large(error)) == (no_route, too_large)


@pytest.mark.parametrize(
    ("status", "forbidden_at", "accepted_at", "alone"),
    [
        (403, 5.0, 5.5, True),
        (403, 5.0, 5.0, False),
        (403, 5.0, 4.5, False),
        (403, None, 5.5, False),
        (401, 5.0, 5.5, False),
    ],
)
def test_a_request_is_forbidden_alone_if_another_one_was_accepted_since_it_is(
    status: int, forbidden_at: float | None, accepted_at: float, alone: bool
) -> None:
    assert is_forbidden_alone(ApiKeyError("no", status=status), forbidden_at, accepted_at) == alone


@pytest.mark.parametrize(
    ("error", "nothing"),
    [
        (ApiKeyError("no"), True),
        (ApiUnavailableError("no connection", may_have_been_applied=False), True),
        (ApiUnavailableError("no answer", may_have_been_applied=True), False),
        (ApiRefusedError("no", status=422), False),
    ],
)
def test_a_request_surely_did_nothing_if_its_key_was_refused_or_it_never_left(error: ApiError, nothing: bool) -> None:
    assert surely_did_nothing(error) == nothing
