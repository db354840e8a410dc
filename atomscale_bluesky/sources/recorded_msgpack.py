"""Documents of a MessagePack file of any size, one after the other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import IO

from .forms import Document, from_numpy
from .recording_errors import EXPECTED, MAX_DOCUMENT, CutOffError, RecordingError, usable


class _Counted(io.RawIOBase):
    """A file that counts what was read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.read_so_far = 0

    def read(self, size: int = -1) -> bytes:
        """Read, and count."""
        block = self._file.read(size)
        self.read_so_far += len(block)
        return block


def from_msgpack(file: IO[bytes], name: str, unusable: Callable[[str], object] | None) -> Iterator[Document]:
    """Yield the documents of a MessagePack file.

    Args:
        file: The file, at its beginning.
        name: What errors call it.
        unusable: Called with the reason for each document that cannot be used, if the next one can be found. None:
            raise an error.

    Raises:
        CutOffError: The file ends within a document.
        RecordingError: It holds something else.
    """
    try:
        import msgpack
    except ImportError as error:
        raise RecordingError(
            f"{name} is MessagePack, and msgpack is not installed: `pip install 'atomscale-bluesky[cli]'`"
        ) from error
    counted = _Counted(file)
    unpacker = msgpack.Unpacker(
        counted,
        strict_map_key=False,
        object_hook=from_numpy,
        unicode_errors="surrogateescape",
        max_buffer_size=MAX_DOCUMENT,
    )
    number = whole = 0
    while True:
        where = f"{name}, document {number + 1}"
        try:
            found = unpacker.unpack()
        except msgpack.OutOfData:
            break
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            raise RecordingError(f"{where} is no MessagePack ({type(error).__name__}: {error}); {EXPECTED}") from error
        number, whole = number + 1, unpacker.tell()
        document = usable(found, where, unusable)
        if document is not None:
            yield document
    if whole < counted.read_so_far:
        raise CutOffError(f"{name}, document {number + 1} is cut off: the file ends within this document")
