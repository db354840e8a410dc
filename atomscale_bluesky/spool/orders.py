"""The operator's orders for a run, one line each in `orders.jsonl`.

The process that delivers the run carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import SpoolError
from ..model.endpoints import normalized_endpoint
from ..model.links import Links
from .journal_format import Header
from .ledger import LedgerReader
from .line_file import LineFile, whole_lines
from .lines import FileLine, checksummed, encode, payload_of
from .locks import locked
from .own_files import open_to_read
from .run_reader import HEAD, LEDGER
from .segments import segments


class Retry(FileLine, frozen=True, tag="retry"):
    """Try again what is parked or refused."""


class Discard(FileLine, frozen=True, tag="discard"):
    """Give up what is not delivered. What is delivered stays, in streams that are not finalized."""


class Edit(FileLine, frozen=True, tag="edit"):
    """Initialize the run's streams with these values instead of those from its metadata, or an earlier edit."""

    links: Links
    points_per_chunk: int | None = None  # None: those of the header
    label: str | None = None  # None: that of the header


class Settle(FileLine, frozen=True, tag="settle"):
    """Complete the run although it has no stop document and never will."""


class Move(FileLine, frozen=True, tag="move"):
    """Deliver the run to another endpoint, from its first row on. What the previous endpoint has stays there."""

    endpoint: str

    def __post_init__(self) -> None:
        """Bring the endpoint, which an earlier version kept as it was written, into the form that is compared."""
        msgspec.structs.force_setattr(self, "endpoint", normalized_endpoint(self.endpoint))


OrderLine = Retry | Discard | Edit | Settle | Move


class DamagedOrder:
    """Stands for a line that cannot be read: the ledger names each order by its place in the file."""


AnyOrder = OrderLine | DamagedOrder

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
ORDERS_LOCK = "orders.lock"


class Orders:
    """The operator's orders for the run in a folder. Each line of the file is read once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ORDERS
        self._offset = 0
        self._orders: list[AnyOrder] = []

    def read_on(self) -> Sequence[AnyOrder]:
        """Return all orders given so far, in order. Opens the file only if it has grown.

        Raises:
            SpoolError: An order cannot be decoded. Each later call raises it too, until the file is mended.
        """
        try:
            if self._path.stat().st_size == self._offset:
                return self._orders
            file = open_to_read(self._path)
        except FileNotFoundError:
            return self._orders
        with file:
            for end, text in whole_lines(file, self._offset):
                payload = None if text is None else payload_of(text)
                self._orders.append(DamagedOrder() if payload is None else decode_order(payload))
                self._offset = end
        return self._orders


def endpoint_of(header: Header, orders: Sequence[AnyOrder], folder: Path) -> str:
    """Return the endpoint of a run's requests: where the operator moved the run last, or else the one in its header.

    If an order is damaged, it may have been a move, so a move that the ledger has noted counts.

    Raises:
        SpoolError: An order is damaged, and the ledger cannot be read.
    """
    moves = {number: order.endpoint for number, order in enumerate(orders, start=1) if isinstance(order, Move)}
    if any(isinstance(order, DamagedOrder) for order in orders):
        state = LedgerReader(folder / LEDGER).read_on()
        if state.endpoint is not None and max(moves, default=0) <= state.orders_obeyed:
            return state.endpoint
    return moves[max(moves)] if moves else header.endpoint


def append_order(folder: Path, order: OrderLine, make_room: Callable[[], object]) -> bool:
    """Write an order for the run in a folder. Return False if the run has left the spool.

    Args:
        folder: The run's.
        order: Is synced before this returns.
        make_room: Called when the disk is full.

    Raises:
        SpoolError: The file cannot be written, or another process has its lock for too long.
    """
    lock = folder / ORDERS_LOCK
    if not _is_there(folder):
        return False
    try:
        with locked(lock, make_room):
            if not _is_there(folder):  # its uploader has just finished it, and had the lock meanwhile
                with suppress(OSError):
                    lock.unlink()
                return False
            file = LineFile(folder / ORDERS, make_room=make_room)
            try:
                file.append(checksummed(encode(order)))
                file.sync()
            finally:
                file.close()
    except FileNotFoundError:
        if folder.exists():
            raise
        return False
    return True


def _is_there(folder: Path) -> bool:
    """Return True if a folder holds a run, perhaps a damaged one. Its uploader removes these files when it finishes."""
    try:
        return bool(segments(folder)) or (folder / HEAD).exists()
    except FileNotFoundError:
        return False


def read_orders(folder: Path) -> Sequence[AnyOrder]:
    """Return all of the operator's orders for the run in a folder, in order.

    Raises:
        SpoolError: An order cannot be decoded.
    """
    return Orders(folder).read_on()


def is_settle_ordered(folder: Path) -> bool:
    """Return True if the operator has ordered to complete a run whose stop document never comes.

    Return False if the orders cannot be read. The process that delivers the run logs that.
    """
    try:
        return any(isinstance(order, Settle) for order in read_orders(folder))
    except OSError:  # a SpoolError is one
        return False
