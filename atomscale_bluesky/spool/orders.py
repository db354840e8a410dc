"""What people have ordered for a run, one line each in `orders.jsonl`; whoever delivers the run obeys."""

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
    """Give up what is not delivered; what is stays, in streams that are not finalized."""


class Edit(FileLine, frozen=True, tag="edit"):
    """Initialize the run's streams with these values instead of what its metadata said."""

    links: Links
    points_per_chunk: int | None = None


class Settle(FileLine, frozen=True, tag="settle"):
    """Complete the run although its stop document has not come: it never will."""


class Move(FileLine, frozen=True, tag="move"):
    """Deliver the run to another endpoint, from its first row on; what the one before has stays there."""

    endpoint: str


OrderLine = Retry | Discard | Edit | Settle | Move

_order_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OrderLine)


def decode_order(payload: bytes) -> OrderLine:
    """An order as its type.

    Raises:
        SpoolError: The line is intact, but of a kind or shape that this version does not know.
    """
    try:
        return _order_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SpoolError(f"an order is not understood: {error}; was it written by a newer version?") from error


ORDERS = "orders.jsonl"


def endpoint_of(folder: Path, header: Header) -> str:
    """Where a run's requests may go: where it was spooled for, or where a person has moved it since.

    Raises:
        SpoolError: An order is not understood.
    """
    moves = [order.endpoint for order in read_orders(folder) if isinstance(order, Move)]
    return moves[-1] if moves else header.endpoint


def read_orders(folder: Path) -> list[OrderLine]:
    """Everything that people have asked to be done with the run in a folder, in order.

    Raises:
        SpoolError: An order is not understood.
    """
    try:
        file = open_to_read(folder / ORDERS)
    except FileNotFoundError:
        return []
    with file:
        payloads = (payload_of(text) for _, text in whole_lines(file) if text is not None)
        return [decode_order(payload) for payload in payloads if payload is not None]
