"""How large the spool's reserve is, from the sizes of spool and disk."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from refusing import refuse

from atomscale_bluesky.spool import own_files
from atomscale_bluesky.spool.reserve import NAME, Reserve, is_full, is_limit, min_bytes, with_room

MIB, GIB = 2**20, 2**30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def kept(reserve: Reserve, used_bytes: int, free_bytes: int, disk_bytes: int) -> int:
    """Have the reserve made as large as it gets; its size."""
    size = -1
    while size != (size := reserve.size()) or not size:
        if not reserve.maintain(used_bytes, free_bytes, disk_bytes):
            break
    return reserve.size()


def test_there_is_none_before_it_is_made(folder: Path) -> None:
    assert Reserve(folder).size() == 0


@pytest.mark.parametrize(
    ("used_bytes", "disk_bytes", "expected"),
    [
        (0, 100 * GIB, MIB),  # the least
        (64 * MIB, 100 * GIB, 2 * MIB),  # a thirty-second of the spool
        (100 * GIB, 100 * GIB, 64 * MIB),  # the most
        (100 * GIB, 16 * MIB, 2 * MIB),  # an eighth of a small disk
        (0, 4 * MIB, MIB // 2),
    ],
)
def test_it_is_a_share_of_the_spool_within_bounds(
    folder: Path, used_bytes: int, disk_bytes: int, expected: int
) -> None:
    assert kept(Reserve(folder), used_bytes, 100 * GIB, disk_bytes) == expected
    assert (folder / NAME).stat().st_size == expected


def test_it_is_made_only_if_twice_its_size_is_free(folder: Path) -> None:
    reserve = Reserve(folder)

    assert not reserve.maintain(0, 2 * min_bytes(100 * GIB) - 1, 100 * GIB)
    assert reserve.size() == 0
    assert reserve.maintain(0, 2 * min_bytes(100 * GIB), 100 * GIB)
    assert reserve.size() == MIB


def test_it_does_not_grow_on_a_disk_that_is_nearly_full(folder: Path) -> None:
    reserve = Reserve(folder)

    assert kept(reserve, 64 * MIB, 4 * MIB - 1, 100 * GIB) == MIB
    assert kept(reserve, 64 * MIB, 4 * MIB, 100 * GIB) == 2 * MIB


@pytest.mark.parametrize("content", [b"", b"somebody's own"])
def test_a_foreign_file_of_its_name_is_left_as_it_is_and_named_once(
    folder: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / NAME).write_bytes(content)
    reserve = Reserve(folder)

    for _ in range(3):
        assert reserve.maintain(0, GIB, 100 * GIB)
    reserve.release()
    assert (folder / NAME).read_bytes() == content
    (record,) = caplog.records
    assert f"{folder / NAME} is not the file that this package makes there" in record.getMessage()


@pytest.mark.parametrize("failure", [errno.ENOENT, errno.EMFILE])
def test_a_reserve_that_cannot_be_opened_just_now_is_not_taken_for_a_foreign_file(
    folder: Path, failure: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept(Reserve(folder), 0, GIB, 100 * GIB) == MIB
    reserve = Reserve(folder)
    with monkeypatch.context() as patched:
        refuse(patched, "open", folder / NAME, failure)
        assert reserve.maintain(64 * MIB, GIB, 100 * GIB)
    assert kept(reserve, 64 * MIB, GIB, 100 * GIB) == 2 * MIB

    assert caplog.records == []


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system syncs by other calls")
def test_it_gets_its_name_when_it_is_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    named: list[bool] = []
    replace = os.replace

    def note(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))

    def watched(source: Path, target: Path) -> None:
        found = Path(source).stat()
        named.append((found.st_ino, found.st_size) in synced)
        replace(source, target)

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "replace", watched)
    assert kept(Reserve(folder), 0, GIB, 100 * GIB) == MIB

    assert named == [True]
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_what_a_killed_process_left_half_made_is_removed_and_nothing_else(folder: Path) -> None:
    kept(Reserve(folder), 0, GIB, GIB)
    beginning = (folder / NAME).read_bytes()[:5000]
    old, young = folder / f".{NAME}-0123abcd", folder / f".{NAME}-4567ef00"
    foreign = [folder / f".{NAME}-89ab0123", folder / f".{NAME}-mine", folder / f"{NAME}-89ab0123"]
    for path in (old, young, foreign[1], foreign[2]):
        path.write_bytes(beginning)
    foreign[0].write_bytes(b"a file of a person")
    for path in (old, *foreign):
        os.utime(path, (0, 0))

    kept(Reserve(folder), 0, GIB, GIB)

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (folder / NAME, young, *foreign)
    )


@pytest.mark.parametrize("nofollow", [True, False])  # Windows has no such flag
def test_what_a_link_of_its_name_leads_to_is_left_as_it_is(
    folder: Path, nofollow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "theirs").write_bytes(b"somebody's own")
    try:
        (folder / NAME).symlink_to(folder / "theirs")
    except OSError:
        pytest.skip("this system lets nobody make a link")
    if not nofollow:
        monkeypatch.setattr(own_files, "_O_NOFOLLOW", 0)
    reserve = Reserve(folder)

    assert reserve.maintain(0, GIB, 100 * GIB)
    reserve.release()
    assert (folder / "theirs").read_bytes() == b"somebody's own"
    assert (folder / NAME).is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_of_its_name_holds_nobody_up(folder: Path) -> None:
    os.mkfifo(folder / NAME)
    reserve = Reserve(folder)

    assert reserve.maintain(0, GIB, 100 * GIB)
    reserve.release()
    assert (folder / NAME).is_fifo()


def test_giving_it_up_removes_it_once_and_a_foreign_file_never(folder: Path) -> None:
    reserve = Reserve(folder)
    kept(reserve, 0, GIB, 100 * GIB)
    reserve.release()
    reserve.release()
    assert not (folder / NAME).exists()

    (folder / NAME).write_bytes(b"somebody's own")
    reserve.release()
    assert (folder / NAME).read_bytes() == b"somebody's own"


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, failure: int) -> list[int]:
    """Let no file be written; how many bytes were to be."""
    asked: list[int] = []

    def refused(descriptor: int, data: bytes) -> int:
        asked.append(len(data))
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "write", refused)
    return asked


def test_where_a_quota_is_used_up_it_is_tried_again_after_a_while(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reserve, now = Reserve(folder), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with monkeypatch.context() as patched:
        asked = refuse_to_write(patched, errno.ENOSPC)
        assert not reserve.maintain(0, GIB, 100 * GIB)
        now += 9.9
        assert not reserve.maintain(0, GIB, 100 * GIB)
        assert len(asked) == 1
        now += 0.1
        assert not reserve.maintain(0, GIB, 100 * GIB)
        assert len(asked) == 2
    assert list(folder.iterdir()) == []
    now += 10
    assert kept(reserve, 0, GIB, 100 * GIB) == MIB

    assert caplog.records == []


def test_where_the_disk_fails_there_is_none_and_it_is_not_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = Reserve(folder)
    with monkeypatch.context() as patched:
        refuse_to_write(patched, errno.EIO)
        assert reserve.maintain(0, GIB, 100 * GIB)  # readings are kept all the same
    assert reserve.maintain(0, GIB, 100 * GIB)

    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO])
def test_it_keeps_its_size_if_it_cannot_grow(folder: Path, failure: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, write = Reserve(folder), os.write
    assert kept(reserve, 0, GIB, 100 * GIB) == MIB
    before = (folder / NAME).read_bytes()

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 2**18:
            raise OSError(failure, os.strerror(failure))
        return write(descriptor, data[: 2**17])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        assert reserve.maintain(64 * MIB - 2**18, GIB, 100 * GIB)  # a little less than 2 MiB
    assert (folder / NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("error", "full", "limit"),
    [
        (errno.ENOSPC, True, False),
        (getattr(errno, "EDQUOT", errno.ENOSPC), True, False),
        (errno.EFBIG, False, True),
        (errno.EIO, False, False),
    ],
)
def test_an_error_tells_whether_the_disk_is_full_or_a_file_too_large(error: int, full: bool, limit: bool) -> None:
    assert (is_full(OSError(error, "")), is_limit(OSError(error, ""))) == (full, limit)


def test_a_step_for_which_the_disk_is_full_is_taken_again_when_there_is_room() -> None:
    made: list[str] = []

    def step() -> str:
        if not made:
            raise OSError(errno.ENOSPC, "full")
        return "done"

    assert with_room(step, lambda: made.append("room")) == "done"
    assert made == ["room"]
    with pytest.raises(FileNotFoundError):
        with_room(Path("missing").stat, lambda: made.append("more"))
    with pytest.raises(OSError, match="full"):
        with_room(lambda: made.clear() or step(), lambda: None)
    assert made == []
