"""A lock on a file: one holder at a time, whatever is interrupted, forked or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from waiting import wait_until

from atomscale_bluesky.spool.file_lock import FileLock

HOLD = """
import sys, time
from pathlib import Path
from atomscale_bluesky.spool.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def is_free(path: Path) -> bool:
    """Whether another owner could take the lock now."""
    lock = FileLock(path)
    try:
        return lock.acquire()
    finally:
        lock.release()


def test_a_lock_has_one_holder_and_may_be_taken_and_released_twice(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    assert lock.acquire()
    assert not is_free(path)

    lock.release()
    lock.release()
    assert is_free(path)
    assert path.exists()


def test_a_lock_ends_with_its_object(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire()

    del lock
    assert is_free(path)


def test_a_lock_ends_with_its_process_however_that_ends(path: Path) -> None:
    arguments = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not is_free(path)
        process.kill()
        process.wait()
        assert is_free(path)


def test_a_lock_whose_file_was_removed_is_not_that_of_the_new_file(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    path.unlink()

    assert second.acquire()
    assert not is_free(path)
    first.release()
    assert not is_free(path)


def test_a_missing_folder_is_an_error_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "none" / "one.lock").acquire()
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_no_part_in_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    child = os.fork()
    if not child:
        taken = lock.acquire()  # it is the parent's
        lock.release()
        os.write(1, b"")
        signal.pause() if not taken else None
        os._exit(3)
    try:
        assert not is_free(path)
        lock.release()
        wait_until(lambda: is_free(path))  # although the child lives
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class Interrupted(BaseException):
    """What a signal handler raises."""


def interrupted_after(events: int, what: Any) -> bool:
    """Call something and raise after so many lines of the lock's own code. Return False if it ended before."""
    left = events

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("file_lock.py", "own_files.py")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        what()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_lock_that_was_interrupted_while_made_is_gone_without_a_word(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for events in range(1, 100):
        if not interrupted_after(events, lambda: FileLock(path)):
            break
    assert 5 < events < 99
    assert {one.exc_type for one in said} <= {Interrupted}  # where its `__del__` was interrupted


def test_a_lock_that_was_interrupted_while_taken_can_be_taken_or_given_up(path: Path) -> None:
    for events in range(1, 2000):
        lock = FileLock(path)
        if not interrupted_after(events, lock.acquire):
            break
        if events % 2:
            assert lock.acquire(), events
            assert not is_free(path)
            lock.release()
        del lock
        assert is_free(path), events
    assert 50 < events < 1999


def test_a_lock_that_was_interrupted_while_released_can_be_released(path: Path) -> None:
    for events in range(1, 2000):
        lock = FileLock(path)
        assert lock.acquire()
        if not interrupted_after(events, lock.release):
            break
        lock.release()
        assert is_free(path), events
    assert 10 < events < 1999
