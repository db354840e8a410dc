"""The operator's orders for a run, one line each in `orders.jsonl`.

The process that delivers the run carries them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..errors import SpoolError
from ..model.links import Links
from .journal_format import Header
from .line_file import whole_lines
from .lines import FileLine, payload_of
from .own_files import open_to_read

# ---- orders ----------------------------------------------------------------------------------------------------------


class Retry(FileLine, frozen=True, tag="retry"):
    """Try again what is parked or refused."""


class Discard(FileLine, frozen=True, tag="discard"):
    """Give up what is not delivered. What is delivered stays, in streams that are not finalized."""


class Edit(FileLine, frozen=True, tag="edit"):
    """Initialize the run's streams with these values instead of those from its metadata."""

    links: Links
    points_per_chunk: int | None = None


class Settle(FileLine, frozen=True, tag="settle"):
    """Complete the run although it has no stop document and never will."""


class Move(FileLine, frozen=True, tag="move"):
    """Deliver the run to another endpoint, from its first row on. What the previous endpoint has stays there."""

    endpoint: str


OrderLine = Retry | Discard | Edit | Settle | Move

_order_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OrderLine)


def decode_order(payload: bytes) -> OrderLine:
    """Decode a line into its order.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        return _order_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SpoolError(f"an order is not understood: {error}; was it written by a newer version?") from error


ORDERS = "orders.jsonl"


def endpoint_of(folder: Path, header: Header) -> str:
    """Return the endpoint of a run's requests: where the operator moved the run last, or else the one in its header.

    Raises:
            SpoolError: An order cannot be decoded.
    """
    moves = [order.endpoint for order in read_orders(folder) if isinstance(order, Move)]
    return moves[-1] if moves else header.endpoint


def read_orders(folder: Path) -> list[OrderLine]:
    """Return all of the operator's orders for the run in a folder, in order.

    Raises:
            SpoolError: An order cannot be decoded.
    """
    try:
        file = open_to_read(folder / ORDERS)
    except FileNotFoundError:
        return []
    with file:
        payloads = (payload_of(text) for _, text in whole_lines(file) if text is not None)
        return [decode_order(payload) for payload in payloads if payload is not None]
