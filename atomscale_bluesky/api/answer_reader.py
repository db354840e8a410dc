"""Reads the answers to a client's requests, and raises a typed error for one that is not the API's.

A short answer is read when all of it has arrived. A list and the points of a stream are read while they arrive, and
only what is asked for is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ..errors import ApiTooLargeError, ApiUnavailableError
from . import lists, stream_content, wire
from .answers import AnswerError, Entry, Item
from .connection import AnswerTooLargeError, Connection
from .json_parts import TooMuchError

MAX_CATALOGUE_BYTES = 32 * 2**20

T = TypeVar("T")


class AnswerReader:
    """Reads the answers that come over one connection, in its thread.

    Args:
        connection: Where the requests are sent whose answers are long.
        endpoint: The connection's endpoint, for errors.
        pause: Called after every few kilobytes of a long answer.

    Raises:
        ApiUnavailableError: From every method: the answer is not one that the API gives. A method that sends its
            request raises the connection's errors too.
    """

    def __init__(self, connection: Connection, endpoint: str, pause: Callable[[], None]) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._pause = pause

    def read(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """Return what `read` makes of an answer's body."""
        try:
            return self._connection.key.kept_from_errors(lambda: read(body))
        except (AnswerError, RecursionError) as error:
            raise self._not_from_the_api(error) from error

    def items(self, request: wire.Request) -> list[Item]:
        """Send a request for samples, projects or tags, and return them."""
        return self._read_list(request, lambda parts: lists.read_items(parts, pause=self._pause))

    def instruments(self, request: wire.Request) -> dict[int, str]:
        """Send a request for growth instruments, and return them: id → name."""
        return self._read_list(request, lambda parts: lists.read_instruments(parts, pause=self._pause))

    def first_entry(self, request: wire.Request, is_wanted: Callable[[Entry], bool]) -> Entry | None:
        """Send a request to the catalogue. Return the first entry that is wanted, or None. Keeps no other entry."""

        def read(parts: Iterator[bytes]) -> Entry | None:
            found = None
            try:
                for entry in lists.read_entries(parts, pause=self._pause):
                    found = entry if found is None and is_wanted(entry) else found
            except TooMuchError:
                if found is None:
                    raise
            return found

        return self._read_list(request, read)

    def points(self, request: wire.Request, data_id: str, due: Mapping[str, int]) -> stream_content.StreamContent:
        """Send a request for a stream's points, and return those of some channels, and the names of everything else.

        Args:
            request: The request.
            data_id: The stream's id, for errors.
            due: The channels to read, and how many points each may have. They bound the answer's size.

        Raises:
            ApiTooLargeError: The answer is larger than such a stream can be.
        """
        try:
            return self._connection.send_and_read(
                request,
                stream_content.max_bytes(due),
                lambda parts: stream_content.read_points(parts, due, pause=self._pause),
            )
        except (AnswerTooLargeError, TooMuchError) as error:
            raise ApiTooLargeError(f"stream {data_id} cannot be read back: {error}") from error
        except AnswerError as error:
            raise self._not_from_the_api(error) from error

    def _read_list(self, request: wire.Request, read: Callable[[Iterator[bytes]], T]) -> T:
        """Send a request for a list, and return what `read` makes of its answer while it comes in.

        Raises:
            ApiTooLargeError: The list, or an element of it, is larger than is read.
        """
        try:
            return self._connection.send_and_read(request, MAX_CATALOGUE_BYTES, read)
        except (AnswerTooLargeError, TooMuchError) as error:
            raise ApiTooLargeError(f"a list cannot be read: {error}") from error
        except AnswerError as error:
            raise self._not_from_the_api(error) from error

    def _not_from_the_api(self, error: Exception) -> ApiUnavailableError:
        return ApiUnavailableError(f"{error}; is a proxy between here and {self._endpoint}?", status=200)
