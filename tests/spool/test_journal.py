"""Append-only files: what a full disk, a flipped bit, a torn tail and a looking reader do to them, with real files."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscale_bluesky import SpoolError, SpoolFullError
from atomscale_bluesky.model.rows import Position
from atomscale_bluesky.spool import line_bounds
from atomscale_bluesky.spool.journal_reader import MAX_PEEK_BYTES, READ_BYTES, JournalReader
from atomscale_bluesky.spool.journal_writer import JournalWriter
from atomscale_bluesky.spool.line_file import BLOCK_BYTES, MAX_LINE_BYTES, LineFile
from atomscale_bluesky.spool.lines import checksummed, payload_of, table_of
from atomscale_bluesky.spool.row_record import encode_one
from atomscale_bluesky.spool.segments import START, last_line, segment_path, segments


def payload(n: int, size: int = 0) -> bytes:
    return f'[{n:2}, "{"x" * size}"]'.encode()  # as wide for 9 as for 10


def record(number: int, channels: int = 40) -> bytes:
    found = encode_one(0, number, 1.5, "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60", [number + 0.5] * channels)
    assert found is not None
    return found


def numbers(reader: JournalReader) -> list[int]:
    return [json.loads(found.payload)[0] for found in reader.read()]


@pytest.fixture
def open_writer(tmp_path: Path) -> Iterator[Callable[..., JournalWriter]]:
    made: list[JournalWriter] = []

    def make(**arguments: int) -> JournalWriter:
        made.append(JournalWriter(tmp_path, **arguments))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


@pytest.fixture
def open_reader(tmp_path: Path) -> Iterator[Callable[..., JournalReader]]:
    made: list[JournalReader] = []

    def make(position: Position = START) -> JournalReader:
        made.append(JournalReader(tmp_path, position))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


Writers = Callable[..., JournalWriter]
Readers = Callable[..., JournalReader]


# ---- one line --------------------------------------------------------------------------------------------------------


@given(st.binary().filter(lambda text: b"\n" not in text))
def test_a_line_holds_its_payload_behind_a_checksum(content: bytes) -> None:
    text = checksummed(content)

    assert text == b"%08x %b\n" % (zlib.crc32(content), content)
    assert payload_of(text[:-1]) == content


SAME_SIZE = st.integers(0, 30).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size).filter(lambda text: b"\n" not in text), min_size=1)
)


@given(SAME_SIZE, st.data())
def test_many_lines_are_whole_together_only_when_each_is(contents: list[bytes], data: st.DataObject) -> None:
    lines, width = b"".join(map(checksummed, contents)), len(checksummed(contents[0]))
    table = table_of(memoryview(lines), width)
    assert table is not None
    assert [row.tobytes() for row in table] == contents

    damaged = bytearray(lines)
    damaged[data.draw(st.integers(0, len(lines) - 1))] = data.draw(st.integers(0, 255))
    each = [payload_of(text) for text in bytes(damaged).split(b"\n")[:-1]]

    table = table_of(memoryview(bytes(damaged)), width)
    found = None if table is None else [row.tobytes() for row in table]
    # Where it says None, one by one decides.
    assert found in ([None] if each != contents else [None, contents])


@given(content=st.binary(min_size=1, max_size=40).filter(lambda text: b"\n" not in text), data=st.data())
def test_a_line_in_which_any_one_bit_is_flipped_is_known_to_be_damaged(content: bytes, data: st.DataObject) -> None:
    text = bytearray(checksummed(content)[:-1])
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    text[bit // 8] ^= 1 << bit % 8

    found = payload_of(bytes(text))

    # A checksum whose digits are spelled in another way is the same number, and what it protects is intact.
    assert found is None or (bit < 64 and found == content)


@pytest.mark.parametrize("text", [b"", b" ", b"00000000", b"0000000g x", b"00000000x", b"0x000000 a"])
def test_what_is_no_line_is_damaged(text: bytes) -> None:
    assert payload_of(text) is None


def test_a_pager_shows_a_line(tmp_path: Path, open_writer: Writers) -> None:
    open_writer().append(checksummed(b'{"kind":"header"}'))

    checksum = format(zlib.crc32(b'{"kind":"header"}'), "08x")
    assert segment_path(tmp_path, 1).read_text() == checksum + ' {"kind":"header"}\n'


# ---- writing and reading on ------------------------------------------------------------------------------------------


def test_lines_are_read_once_in_order_as_far_as_they_are_written(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(), open_reader()
    assert numbers(reader) == []

    writer.append(checksummed(payload(0)) + checksummed(payload(1)))
    assert numbers(reader) == [0, 1]
    assert numbers(reader) == []

    writer.append(checksummed(payload(2)))
    assert numbers(reader) == [2]
    assert reader.damaged == 0


def test_a_reader_goes_on_from_any_line_that_another_one_read(open_writer: Writers, open_reader: Readers) -> None:
    writer = open_writer(segment_bytes=100)
    for n in range(40):
        writer.append(checksummed(payload(n)))
    found = list(open_reader().read())

    for n, one in enumerate(found):
        assert numbers(open_reader(one.position)) == list(range(n, 40))
    assert [one.position for one in found] == sorted(one.position for one in found)


def test_segments_follow_each_other_and_are_read_on(tmp_path: Path, open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=200), open_reader()
    seen: list[int] = []
    for n in range(100):
        writer.append(checksummed(payload(n, size=20)))
        if n % 7 == 0:
            seen += numbers(reader)
    seen += numbers(reader)

    assert seen == list(range(100))
    assert segments(tmp_path) == list(range(1, 1 + len(segments(tmp_path))))
    assert len(segments(tmp_path)) > 10
    assert all(segment_path(tmp_path, n).stat().st_size < 300 for n in segments(tmp_path))


def test_a_writer_goes_on_in_the_last_segment(tmp_path: Path, open_writer: Writers, open_reader: Readers) -> None:
    first = open_writer(segment_bytes=50)
    for n in range(5):
        first.append(checksummed(payload(n)))
    first.close()
    before = segments(tmp_path)

    open_writer(segment_bytes=10_000).append(checksummed(payload(5)))

    assert segments(tmp_path) == before
    assert numbers(open_reader()) == [0, 1, 2, 3, 4, 5]


def test_a_reader_passes_over_segments_that_are_gone(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer = open_writer(segment_bytes=1)
    for n in range(5):
        writer.append(checksummed(payload(n)))
    segment_path(tmp_path, 1).unlink()
    segment_path(tmp_path, 3).unlink()

    assert numbers(open_reader()) == [1, 3, 4]


def test_the_ten_thousandth_segment_comes_after_the_last_with_four_digits(tmp_path: Path, open_reader: Readers) -> None:
    for number in (9999, 10_000, 10_001):
        segment_path(tmp_path, number).write_bytes(checksummed(payload(number)))

    assert numbers(open_reader()) == [9999, 10_000, 10_001]


def test_a_line_longer_than_a_block_is_read_whole(open_writer: Writers, open_reader: Readers) -> None:
    writer = open_writer()
    for n, size in enumerate([10, READ_BYTES - 30, 3 * READ_BYTES, READ_BYTES, 0]):
        writer.append(checksummed(payload(n, size)))

    assert numbers(open_reader()) == [0, 1, 2, 3, 4]


def test_a_line_longer_than_any_may_be_is_damage_up_to_its_newline(tmp_path: Path, open_reader: Readers) -> None:
    path = segment_path(tmp_path, 1)
    path.write_bytes(checksummed(payload(0)))
    os.truncate(path, path.stat().st_size + MAX_LINE_BYTES + 10)
    reader = open_reader()
    assert numbers(reader) == [0]

    with path.open("ab") as file:
        file.write(b"\n" + checksummed(payload(1)))

    assert numbers(reader) == [1]
    assert reader.damaged == 1
    assert numbers(open_reader()) == [0, 1]


def test_a_half_line_that_grows_slowly_is_read_when_it_is_whole(tmp_path: Path, open_reader: Readers) -> None:
    path, reader, whole = segment_path(tmp_path, 1), open_reader(), checksummed(payload(0, 5 * READ_BYTES))
    for begin in range(0, len(whole), READ_BYTES // 2):
        assert numbers(reader) == []
        with path.open("ab") as file:
            file.write(whole[begin : begin + READ_BYTES // 2])

    assert numbers(reader) == [0]
    assert reader.damaged == 0


def test_a_folder_without_a_journal_has_no_lines(tmp_path: Path, open_reader: Readers) -> None:
    assert numbers(open_reader()) == []
    assert segments(tmp_path) == []


def test_closing_twice_is_closing_once(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=1), open_reader()
    writer.append(checksummed(payload(0)))
    writer.append(checksummed(payload(1)))
    numbers(reader)

    for _ in range(2):
        writer.close()
        reader.close()


def test_lines_survive_a_killed_process_once_they_were_appended(tmp_path: Path, open_reader: Readers) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from atomscale_bluesky.spool.journal_writer import JournalWriter
        from atomscale_bluesky.spool.lines import checksummed
        writer = JournalWriter(Path(sys.argv[1]), segment_bytes=100)
        for n in range(50):
            writer.append(checksummed(b"[%d]" % n))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=False)

    assert numbers(open_reader()) == list(range(50))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o007])
def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        writer = JournalWriter(tmp_path, segment_bytes=1)
        writer.append(checksummed(payload(0)))
        writer.append(checksummed(payload(1)))
        writer.close()
    finally:
        os.umask(before)

    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == ["0o600", "0o600"]


def test_syncing_is_possible_at_any_time_from_either_end(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=1), open_reader()
    writer.sync()
    reader.sync()
    for n in range(5):
        writer.append(checksummed(payload(n)))
        if n % 2:
            writer.sync()
            numbers(reader)
            reader.sync()
    writer.sync()

    assert numbers(reader) == [4]


# ---- a reader beside a writer ----------------------------------------------------------------------------------------


def test_a_reader_sees_each_line_once_while_a_writer_appends(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=4000), open_reader()
    done = threading.Event()
    chance = random.Random(5)
    sizes = [chance.choice([0, 10, 500, 5000]) for _ in range(3000)]

    def write() -> None:
        for n, size in enumerate(sizes):
            writer.append(checksummed(payload(n, size)))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen: list[int] = []
    while not done.is_set():
        seen += numbers(reader)
    thread.join()
    seen += numbers(reader)

    assert seen == list(range(3000))
    assert reader.damaged == 0


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system syncs by other calls")
def test_two_threads_that_sync_at_once_forget_no_segment(
    tmp_path: Path, open_writer: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(segment_bytes=100)
    for n in range(6):
        writer.append(checksummed(payload(n, 90)))
    real, synced, meanwhile = os.fdatasync, set[int](), iter([True])

    def sync(descriptor: int) -> None:
        if next(meanwhile, False):
            writer.sync()  # as another thread does
        real(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fdatasync", sync)
    writer.sync()

    assert synced >= {path.stat().st_ino for path in tmp_path.glob("journal-*.jsonl")}


def test_one_thread_may_sync_while_another_appends(open_writer: Writers, open_reader: Readers) -> None:
    writer = open_writer(segment_bytes=500)
    done = threading.Event()

    def sync() -> None:
        while not done.is_set():
            writer.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    for n in range(2000):
        writer.append(checksummed(payload(n)))
    done.set()
    thread.join()
    writer.sync()

    assert numbers(open_reader()) == list(range(2000))


def test_half_a_line_is_not_read_until_it_is_whole(tmp_path: Path, open_reader: Readers) -> None:
    path, reader = segment_path(tmp_path, 1), open_reader()
    whole = checksummed(payload(0)) + checksummed(payload(1, size=50))
    seen: list[list[int]] = []
    for end in range(0, len(whole) + 1, 5):
        path.write_bytes(whole[:end])
        seen.append(numbers(reader))
    path.write_bytes(whole)
    seen.append(numbers(reader))

    assert sum(seen, []) == [0, 1]  # noqa: RUF017 - a handful
    assert reader.damaged == 0


def test_half_a_line_that_is_taken_back_between_two_looks_leaves_no_trace(tmp_path: Path, open_reader: Readers) -> None:
    path, reader = segment_path(tmp_path, 1), open_reader()
    path.write_bytes(checksummed(payload(0)) + checksummed(payload(1, size=30))[:20])
    assert numbers(reader) == [0]

    path.write_bytes(checksummed(payload(0)) + checksummed(payload(2)))

    assert numbers(reader) == [2]
    assert reader.damaged == 0


def test_half_a_line_that_is_taken_back_within_one_look_leaves_no_trace(tmp_path: Path, open_reader: Readers) -> None:
    path, reader = segment_path(tmp_path, 1), open_reader()
    path.write_bytes(checksummed(payload(0)) + checksummed(payload(1, size=30))[:20])
    lines = reader.read()
    assert json.loads(next(lines).payload)[0] == 0  # the rest of the look comes later

    path.write_bytes(checksummed(payload(0)) + checksummed(payload(2, size=60)))

    assert [json.loads(found.payload)[0] for found in lines] == [2]
    assert reader.damaged == 0


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_costs_one_line_and_no_other(tmp_path: Path, open_writer: Writers, open_reader: Readers) -> None:
    writer = open_writer()
    for n in range(20):
        writer.append(checksummed(payload(n, size=10)))
    begins = [found.position.offset for found in open_reader().read()]
    path = segment_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    for n in (0, 7, 8, 19):
        content[begins[n] + 12] ^= 0x10
    path.write_bytes(content)

    reader = open_reader()

    assert numbers(reader) == [n for n in range(20) if n not in {0, 7, 8, 19}]
    assert reader.damaged == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(flips=st.lists(st.integers(0, 8 * 400 - 1), max_size=4), cut=st.none() | st.integers(0, 400))
def test_no_damage_makes_a_line_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, flips: list[int], cut: int | None
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    written = [payload(n, size=n) for n in range(12)]
    content = bytearray(b"".join(map(checksummed, written)))
    for flip in flips:
        if flip // 8 < len(content):
            content[flip // 8] ^= 1 << flip % 8
    segment_path(folder, 1).write_bytes(content[:cut])
    reader = JournalReader(folder)

    found = [one.payload for one in reader.read()]
    reader.close()

    # A flip may make or take a newline, so one damages two lines at most; what is read was written, in its order.
    assert set(found) <= set(written)
    assert found == sorted(found, key=written.index)
    if cut is None:
        assert len(found) >= 12 - 2 * len(flips)


def test_a_torn_tail_is_cut_off_when_its_file_is_opened_again(tmp_path: Path, open_reader: Readers) -> None:
    whole = checksummed(payload(0)) + checksummed(payload(1))
    for torn in (checksummed(payload(2))[:-1], b"0", b"\x00" * 5000, b"x" * (3 * BLOCK_BYTES)):
        segment_path(tmp_path, 1).write_bytes(whole + torn)
        writer = JournalWriter(tmp_path)
        assert segment_path(tmp_path, 1).read_bytes() == whole
        writer.append(checksummed(payload(3)))
        writer.close()
        assert numbers(open_reader()) == [0, 1, 3]


@pytest.mark.parametrize("torn", [b"x", b"x" * 10, b"x" * (2 * BLOCK_BYTES + 1), b"x" * BLOCK_BYTES])
def test_a_file_that_holds_nothing_but_a_torn_line_becomes_empty(tmp_path: Path, torn: bytes) -> None:
    path = segment_path(tmp_path, 1)
    path.write_bytes(torn)

    LineFile(path).close()

    assert path.read_bytes() == b""


def test_a_torn_tail_before_the_next_segment_counts_as_one_damaged_line(tmp_path: Path, open_reader: Readers) -> None:
    segment_path(tmp_path, 1).write_bytes(checksummed(payload(0)) + b"torn")
    segment_path(tmp_path, 2).write_bytes(checksummed(payload(1)))
    reader = open_reader()

    assert numbers(reader) == [0, 1]
    assert reader.damaged == 1


# ---- a disk without room ---------------------------------------------------------------------------------------------


LIMITED = """
    import json, resource, signal, sys
    from pathlib import Path
    from atomscale_bluesky import SpoolError, SpoolFullError
    from atomscale_bluesky.spool.journal_reader import JournalReader
    from atomscale_bluesky.spool.journal_writer import JournalWriter
    from atomscale_bluesky.spool.lines import checksummed

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    writer, reader = JournalWriter(folder), JournalReader(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    kept, refused, seen = [], [], []
    for n in range(40):
        try:
            writer.append(checksummed(json.dumps([n, "x" * (30 * (n % 3))]).encode()))
            kept.append(n)
        except SpoolFullError as error:
            refused.append([n, str(error)])
        seen += [json.loads(found.payload)[0] for found in reader.read()]
    size = (folder / "journal-0001.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    writer.append(checksummed(b"[1000]"))
    seen += [json.loads(found.payload)[0] for found in reader.read()]
    print(json.dumps({"kept": kept, "refused": refused, "seen": seen, "size": size, "damaged": reader.damaged}))
"""


@pytest.mark.parametrize("limit", [500, 501, 512, 530, 555, 577])
def test_a_write_that_the_disk_takes_in_part_is_taken_back_and_refused(tmp_path: Path, limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), str(limit)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    told = json.loads(done.stdout)

    assert told["kept"] + [n for n, _ in told["refused"]] != told["kept"]
    assert sorted([*told["kept"], *(n for n, _ in told["refused"])]) == list(range(40))
    assert told["seen"] == [*told["kept"], 1000]
    assert told["damaged"] == 0
    assert told["size"] <= limit
    # In part, and then not at all: the journal ends in whole lines either way.
    texts = {text.partition("jsonl ")[2].split()[0] for _, text in told["refused"]}
    assert texts <= {"took", "cannot"}
    assert "took" in texts
    assert all("Free some space" in text for _, text in told["refused"])
    content = segment_path(tmp_path, 1).read_bytes()
    assert all(payload_of(text) is not None for text in content.splitlines())


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as a quota does")
def test_a_disk_without_any_room_refuses_the_line_and_says_so(tmp_path: Path) -> None:
    import resource

    file = LineFile(tmp_path / "full")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(SpoolFullError, match=r"full cannot take more: File too large. Free some space"):
            file.append(checksummed(payload(0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert file.size == 0
    file.close()


class Disk:
    """A disk whose next writes fail, each in the way that is said: an error's number, or how many bytes it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next: list[int | str] = []
        self._write, self._cut = os.write, os.ftruncate
        monkeypatch.setattr(os, "write", self._writes)
        monkeypatch.setattr(os, "ftruncate", self._cuts)

    def _writes(self, descriptor: int, data: bytes) -> int:
        failure = self.next.pop(0) if self.next else ""
        if isinstance(failure, int):
            raise OSError(failure, os.strerror(failure))
        return self._write(descriptor, data[: len(data) // 2] if failure == "half" else data)

    def _cuts(self, descriptor: int, size: int) -> None:
        if self.next and self.next[0] == "cannot cut":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.next.pop(0)))
        self._cut(descriptor, size)


@pytest.mark.parametrize("failure", [errno.ENOSPC, "half"])
def test_a_line_that_finds_a_full_disk_is_written_when_room_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int | str
) -> None:
    disk, made = Disk(monkeypatch), []
    file = LineFile(tmp_path / "lines", make_room=lambda: made.append("room"))
    for number in range(3):
        disk.next = [failure] if number else []
        file.append(checksummed(payload(number)))
    assert len(made) == 2
    for _ in range(2):
        disk.next = [failure, failure]  # the room was not enough
        with pytest.raises(SpoolFullError, match=r"lines .*\. Free some space"):
            file.append(checksummed(payload(7)))
    assert len(made) == 4
    file.append(checksummed(payload(3)))
    file.close()

    assert (tmp_path / "lines").read_bytes() == b"".join(checksummed(payload(number)) for number in range(4))


@pytest.mark.parametrize(
    ("failure", "kind"), [(errno.EIO, SpoolError), (errno.EFBIG, SpoolFullError), (errno.ENOSPC, SpoolFullError)]
)
def test_a_write_that_fails_says_what_was_wrong_and_no_room_is_made_for_what_that_cannot_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int, kind: type[SpoolError]
) -> None:
    disk, made = Disk(monkeypatch), []
    file = LineFile(tmp_path / "lines", make_room=None if failure == errno.ENOSPC else lambda: made.append("room"))
    disk.next = [failure]

    with pytest.raises(SpoolError, match=f"lines cannot take more: {os.strerror(failure)}") as caught:
        file.append(checksummed(payload(0)))

    assert (type(caught.value), caught.value.errno, made, file.size, file.whole_size()) == (kind, failure, [], 0, 0)
    file.close()


def test_half_a_line_that_cannot_be_removed_is_removed_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, file = Disk(monkeypatch), LineFile(tmp_path / "lines")
    file.append(checksummed(payload(0)))
    disk.next = ["half", "cannot cut"]
    with pytest.raises(SpoolError, match="lines ends in half a line that cannot be removed"):
        file.append(checksummed(payload(1)))
    assert (tmp_path / "lines").stat().st_size > file.size
    disk.next = ["cannot cut"]
    with pytest.raises(SpoolError, match="cannot be removed"):
        file.append(checksummed(payload(1)))

    file.append(checksummed(payload(1)))

    assert (tmp_path / "lines").read_bytes() == checksummed(payload(0)) + checksummed(payload(1))
    assert file.size == file.whole_size() == (tmp_path / "lines").stat().st_size
    file.close()


def test_a_file_that_was_closed_until_it_is_needed_goes_on(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines")
    for number in range(3):
        file.append(checksummed(payload(number)))
        file.close_until_needed()
        assert file.whole_size() == (number + 1) * len(checksummed(payload(0)))
    file.sync()
    (tmp_path / "lines").rename(tmp_path / "elsewhere")

    with pytest.raises(SpoolError, match=f"lines cannot be opened again: {os.strerror(errno.ENOENT)}"):
        file.append(checksummed(payload(3)))
    file.close()
    assert (tmp_path / "elsewhere").read_bytes().count(b"\n") == 3


def test_a_folder_that_takes_no_further_file_refuses_new_lines_and_keeps_the_old(tmp_path: Path) -> None:
    program = """
        import resource, sys
        from pathlib import Path
        from atomscale_bluesky import SpoolError
        from atomscale_bluesky.spool.journal_reader import JournalReader
        from atomscale_bluesky.spool.journal_writer import JournalWriter
        from atomscale_bluesky.spool.lines import checksummed

        writer = JournalWriter(Path(sys.argv[1]), segment_bytes=1)
        writer.append(checksummed(b"[0]"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            writer.append(checksummed(b"[1]"))
        except SpoolError as error:
            print(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        writer.append(checksummed(b"[2]"))
        writer.sync()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, capture_output=True, text=True
    )

    assert done.stdout.startswith("SpoolError ")  # no disk is full, so nobody is told to free some space
    assert done.stdout.endswith("takes no further file: Too many open files\n")
    reader = JournalReader(tmp_path)
    assert [found.payload for found in reader.read()] == [b"[0]", b"[2]"]
    reader.close()


def test_a_journal_of_which_nothing_can_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        JournalWriter(tmp_path / "absent")


# ---- looking ahead ---------------------------------------------------------------------------------------------------


def seen_ahead(reader: JournalReader, count: int) -> list[bytes] | None:
    """What the next lines hold, if so many can be taken together."""
    lines = reader.peek(count)
    table = None if lines is None else table_of(lines, len(lines) // count)
    return None if table is None else [row.tobytes() for row in table]


def test_lines_seen_ahead_are_read_all_the_same_unless_they_are_skipped(
    open_writer: Writers, open_reader: Readers
) -> None:
    writer, reader = open_writer(), open_reader()
    writer.append(b"".join(checksummed(payload(n)) for n in range(10)))
    lines = reader.read()

    assert next(lines).payload == payload(0)
    assert seen_ahead(reader, 3) == [payload(1), payload(2), payload(3)]
    assert next(lines).payload == payload(1)
    assert seen_ahead(reader, 4)
    reader.skip(4)
    assert reader.position == open_reader(reader.position).position
    assert next(open_reader(reader.position).read()).payload == payload(6)
    assert [found.payload for found in lines] == [payload(n) for n in range(6, 10)]
    assert reader.peek(1) is None
    writer.append(checksummed(payload(10)))
    assert seen_ahead(reader, 1) == [payload(10)]
    assert numbers(reader) == [10]


def test_the_position_after_skipping_is_where_the_next_line_begins(open_writer: Writers, open_reader: Readers) -> None:
    writer = open_writer()
    writer.append(b"".join(checksummed(payload(n, 30)) for n in range(20)))
    for count in range(1, 20):
        reader = open_reader()
        assert seen_ahead(reader, count)
        reader.skip(count)

        begin = Position(1, count * len(checksummed(payload(0, 30))))
        assert reader.position == begin
        assert next(reader.read()) == (begin, payload(count, 30))


def test_lines_of_which_one_is_wider_are_not_seen_ahead(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(), open_reader()
    writer.append(b"".join(checksummed(payload(n, 31 if n == 5 else 30)) for n in range(10)))

    assert seen_ahead(reader, 5) == [payload(n, 30) for n in range(5)]
    assert seen_ahead(reader, 6) is None
    assert numbers(reader) == list(range(10))


def test_lines_that_fill_several_blocks_can_be_seen_ahead_up_to_a_limit(
    open_writer: Writers, open_reader: Readers
) -> None:
    writer, reader = open_writer(), open_reader()
    for n in range(60):
        writer.append(checksummed(payload(n, 200_000)))

    assert seen_ahead(reader, 20) == [payload(n, 200_000) for n in range(20)]
    assert reader.peek(60) is None  # 12 MB are too much to have in memory at a time
    reader.skip(20)
    assert numbers(reader) == list(range(20, 60))


def test_nothing_is_seen_ahead_across_a_segments_end_or_through_damage(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer = open_writer(segment_bytes=100)
    for n in range(10):
        writer.append(checksummed(payload(n)))
    per_segment = next(n for n in range(2, 10) if seen_ahead(open_reader(), n) is None) - 1
    reader = open_reader()
    reader.skip(per_segment)
    assert numbers(reader) == list(range(per_segment, 10))

    flipped = bytearray(segment_path(tmp_path, 1).read_bytes())
    flipped[12] ^= 1
    segment_path(tmp_path, 1).write_bytes(flipped)
    reader = open_reader()
    assert seen_ahead(reader, 2) is None
    assert numbers(reader) == list(range(1, 10))
    assert reader.peek(1) is None
    assert reader.damaged == 1


def test_a_journal_that_ends_before_so_many_lines_is_told_from_one_that_goes_on(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer = open_writer(segment_bytes=10_000)
    writer.append(b"".join(checksummed(payload(n)) for n in range(3)))
    reader = open_reader()

    def ends_before(lines: int, without: bytes = b"kind") -> bool:
        reader.peek(lines)
        return reader.ends_before(lines, unless_containing=without)

    assert ends_before(4)
    assert not ends_before(3)  # there they are
    assert not ends_before(4, without=b"[ 2,")
    assert not ends_before(MAX_PEEK_BYTES // len(checksummed(payload(0))) + 1)  # more than is to be in memory
    writer.append(checksummed(payload(3)))
    assert ends_before(5)
    assert numbers(reader) == [0, 1, 2, 3]
    assert ends_before(1)  # no line at all
    writer.append(checksummed(payload(4, 10_000)))
    writer.append(checksummed(payload(5)))
    assert not ends_before(3)  # another segment follows
    assert numbers(reader) == [4, 5]


def test_a_journal_that_is_removed_while_it_is_read_ends_there(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer = open_writer()
    writer.append(b"".join(checksummed(payload(n)) for n in range(3)))
    reader = open_reader()
    lines = reader.read()
    assert next(lines).payload == payload(0)
    reader.close()
    for path in tmp_path.rglob("journal-*.jsonl"):
        path.unlink()

    assert reader.peek(9) is None
    assert list(lines) == []
    assert reader.is_at_end()


def test_a_damaged_journal_is_read_to_its_end_line_by_line(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer = open_writer()
    writer.append(checksummed(payload(0))[:-2] + b"#\n" + checksummed(payload(1)))
    reader = open_reader()
    lines = reader.read()

    assert next(lines).payload == payload(1)
    assert reader.damaged == 1
    writer.append(checksummed(payload(2)))
    assert reader.peek(5) is None
    assert not reader.ends_before(5, unless_containing=b"kind")


# ---- ends and borders ------------------------------------------------------------------------------------------------


def test_a_sync_tells_up_to_which_whole_line_the_journal_is_safe(
    tmp_path: Path, open_writer: Writers, open_reader: Readers
) -> None:
    writer, reader = open_writer(), open_reader()
    writer.append(checksummed(payload(0)))
    assert numbers(reader) == [0]
    assert reader.sync() == reader.position == Position(1, len(checksummed(payload(0))))

    writer.append(checksummed(payload(1)))
    safe = reader.sync()
    assert safe == Position(1, 2 * len(checksummed(payload(0)))) > reader.position

    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(checksummed(payload(2))[:-1])
    assert reader.sync() == safe  # half a line may still be taken back


def test_a_sync_reaches_through_all_segments_that_were_read(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=20), open_reader()
    for number in range(7):
        writer.append(checksummed(payload(number)))
        if number in {0, 4}:
            assert numbers(reader)[-1] == number
            assert reader.sync() == reader.position
    assert reader.position.segment < 7
    assert numbers(reader) == [5, 6]
    assert reader.sync() == reader.position
    assert reader.sync() == reader.position


@pytest.mark.parametrize("torn", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 5])
@pytest.mark.parametrize(
    "whole",
    [b"", checksummed(b"[0]"), checksummed(payload(0)) + checksummed(payload(1, BLOCK_BYTES))],
    ids=["nothing", "a line", "a line longer than a block"],
)
def test_a_torn_tail_of_any_length_is_cut_off_after_the_last_newline(tmp_path: Path, whole: bytes, torn: int) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(whole + b"x" * torn)

    file = LineFile(path)
    assert file.size == path.stat().st_size == len(whole)
    file.append(checksummed(b"[1]"))
    assert (file.size, path.read_bytes()) == (len(whole) + len(checksummed(b"[1]")), whole + checksummed(b"[1]"))
    file.close()


def test_what_stands_after_a_cut_is_gone_and_the_next_line_follows_there(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "file.jsonl")
    file.append(checksummed(b"[0]"))
    size = file.size
    file.append(checksummed(b"[1]"))

    file.truncate(size)

    assert file.size == size
    file.append(checksummed(b"[2]"))
    assert (tmp_path / "file.jsonl").read_bytes() == checksummed(b"[0]") + checksummed(b"[2]")
    file.close()


LONG = b"[" + b"1" * (BLOCK_BYTES * 3 // 2) + b"]"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], None),
        ([b""], None),
        ([b"torn"], None),
        ([checksummed(b"[0]")], b"[0]"),
        ([checksummed(b"[0]") + checksummed(b"[1]")], b"[1]"),
        ([checksummed(b"[0]") + checksummed(b"[1]")[:-1]], b"[0]"),
        ([checksummed(b"[0]") + b"00000000 [1]\n"], b"[0]"),
        ([checksummed(b"[0]"), b""], b"[0]"),
        ([checksummed(b"[0]"), b"00000000 [1]\n" + b"torn"], b"[0]"),
        ([checksummed(b"[0]"), checksummed(b"[1]")], b"[1]"),
        (
            [checksummed(b"[0]") + checksummed(b"[" + b"1" * (BLOCK_BYTES - 12) + b"]")],
            b"[" + b"1" * (BLOCK_BYTES - 12) + b"]",
        ),
        ([checksummed(b"[0]" + b" " * BLOCK_BYTES) + checksummed(b"[1]")], b"[1]"),
        ([checksummed(b"[0]") + checksummed(LONG)], LONG),
        ([checksummed(LONG)], LONG),
        ([checksummed(LONG) + b"00000000 " + LONG + b"\n" + b"torn"], LONG),
        ([checksummed(b"[0]"), checksummed(LONG)[:-1]], b"[0]"),
        ([checksummed(b"[0]") + record(0)], b"[0]"),
        ([checksummed(LONG) + record(0)], None),  # a stop is behind all records
        ([checksummed(b"[0]") + b"".join(map(record, range(4000)))], None),
    ],
    ids=[f"journal {n}" for n in range(19)],
)
def test_a_journals_last_line_is_its_last_intact_one(
    tmp_path: Path, files: list[bytes], expected: bytes | None
) -> None:
    for number, content in enumerate(files, start=1):
        segment_path(tmp_path, number).write_bytes(content)

    assert last_line(tmp_path) == expected


def test_a_segment_is_left_when_it_has_reached_its_size_and_not_before(tmp_path: Path, open_writer: Writers) -> None:
    size = len(checksummed(payload(0)))
    writer = open_writer(segment_bytes=2 * size)
    for number in range(5):
        writer.append(checksummed(payload(number)))

    assert [segment_path(tmp_path, n).stat().st_size for n in segments(tmp_path)] == [2 * size, 2 * size, size]


def test_what_is_no_segment_is_not_read_as_one(tmp_path: Path) -> None:
    for name in ("journal-0002.jsonl", "journal-0010.jsonl", "journal-0001.jsonl", "journal-1x.jsonl", "head.jsonl"):
        (tmp_path / name).write_bytes(b"")

    assert segments(tmp_path) == [1, 2, 10]


def test_a_line_that_ends_with_its_block_is_read_once(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(), open_reader()
    first = b"[" + b"1" * (BLOCK_BYTES - 12) + b"]"
    writer.append(checksummed(first) + checksummed(b"[2]"))
    assert len(checksummed(first)) == BLOCK_BYTES

    assert [found.payload for found in reader.read()] == [first, b"[2]"]
    assert reader.position == Position(1, BLOCK_BYTES + len(checksummed(b"[2]")))


def test_lines_are_read_on_where_the_last_look_at_a_segment_ended(open_writer: Writers, open_reader: Readers) -> None:
    writer, reader = open_writer(segment_bytes=20), open_reader()
    found: list[int] = []
    for number in range(12):
        writer.append(checksummed(payload(number)))
        found += numbers(reader)
        assert list(reader.read()) == []

    assert found == list(range(12))
    assert reader.damaged == 0


@pytest.mark.parametrize("follows", [checksummed(payload(2)), record(2)], ids=["text", "record"])
def test_damage_that_ends_shortly_before_a_block_does_costs_no_line_behind_it(
    tmp_path: Path, open_reader: Readers, follows: bytes
) -> None:
    first = checksummed(payload(1))
    for before in range(13):  # as many bytes of the line that follows are in the block
        damage = b"x" * (READ_BYTES - len(first) - before - 1) + b"\n"
        segment_path(tmp_path, 1).write_bytes(first + damage + follows + first)
        reader = open_reader()

        found = [line.payload for line in reader.read()]

        assert found == [payload(1), follows if follows.startswith(b"\xf5") else payload(2), payload(1)]
        assert reader.damaged == 1
        assert reader.position == Position(1, READ_BYTES - before + len(follows) + len(first))


@pytest.mark.parametrize("there", [9, 10, 11])
def test_lines_are_counted_that_are_shorter_than_the_first(tmp_path: Path, open_reader: Readers, there: int) -> None:
    segment_path(tmp_path, 1).write_bytes(
        checksummed(payload(0)) + record(0, 300) + b"".join(map(record, range(1, there)))
    )
    reader = open_reader()
    next(reader.read())

    assert reader.peek(10) is None
    assert reader.ends_before(10, unless_containing=b"none of them") == (there < 10)


# ---- what a writer cuts off when it opens a journal ------------------------------------------------------------------


def cut_by_a_writer(folder: Path, content: bytes) -> int:
    """How many bytes a writer cuts off the end of a journal."""
    path = segment_path(folder, 1)
    path.write_bytes(content)
    JournalWriter(folder).close()
    return len(content) - path.stat().st_size


@pytest.mark.parametrize("channels", [40, 120_000], ids=["short", "longer than a block"])
def test_a_writer_cuts_off_a_torn_record_and_nothing_else(tmp_path: Path, channels: int) -> None:
    whole = record(0, channels) + record(1, channels)
    torn = record(2, channels)

    assert cut_by_a_writer(tmp_path, whole) == 0
    for size in (1, 4, 9, 40, len(torn) // 2, len(torn) - 1):
        assert cut_by_a_writer(tmp_path, whole + torn[:size]) == size


def test_a_torn_record_that_holds_the_byte_of_a_newline_is_cut_off_whole(tmp_path: Path) -> None:
    torn = encode_one(10, 2570, 2.5, "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60", [0.5])  # 10 is the byte of a newline
    assert torn is not None
    assert torn.index(b"\n") < 10
    text = checksummed(payload(7))

    for whole in (text, record(0), b""):
        for size in range(5, len(torn)):
            assert cut_by_a_writer(tmp_path, whole + torn[:size]) == size


def test_a_writer_leaves_an_intact_line_behind_a_damaged_record(tmp_path: Path) -> None:
    text = checksummed(payload(7))
    short = record(1)[:60] + record(1)[160:]  # bytes taken out, so that it seems to go on behind the line
    wide = bytearray(record(1))
    wide[7] ^= 0x40
    wide[record(1).index(b"0b9c") - 2] = 0xDB

    for damaged in (short, bytes(wide)):
        assert cut_by_a_writer(tmp_path, record(0) + damaged + 3 * text) == 0


@pytest.mark.parametrize("unit", [b"\xf5row", b"00000000 [", record(0)[:60], record(0)[:60] + checksummed(payload(1))])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_hostile_content_is_read_and_opened_in_linear_time(
    tmp_path: Path, open_reader: Readers, monkeypatch: pytest.MonkeyPatch, unit: bytes, end: bytes
) -> None:
    content = unit * (2**18 // len(unit)) + end
    segment_path(tmp_path, 1).write_bytes(content)
    looked_at = 0

    def counted(text: bytes) -> bytes | None:
        nonlocal looked_at
        looked_at += len(text)
        return payload_of(text)

    monkeypatch.setattr(line_bounds, "payload_of", counted)
    list(open_reader().read())
    JournalWriter(tmp_path).close()

    assert looked_at < 40 * len(content)
