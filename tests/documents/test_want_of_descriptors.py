"""A bus gives the rest of a killed run, and one file cannot be opened for want of descriptors: nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, DocumentRecorder, Settings
from atomscale_bluesky.server import LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
AT_THE_KILL = 7  # of the run's documents, a start, a descriptor and 5 of 12 events
MOST_OPENED = 40


def killed(folder: Path, server: LocalServer, documents: list[Document]) -> None:
    """Make the spool of a consumer that was killed in mid-run."""
    living = folder.with_name("living")
    with DocumentRecorder(settings(living, server), redelivers=True) as recorder:
        for name, doc in documents[:AT_THE_KILL]:
            recorder.take(name, doc)
        recorder.sync()
        shutil.copytree(living, folder, ignore=shutil.ignore_patterns(".reserve*"))  # which is being made


def settings(folder: Path, server: LocalServer) -> Settings:
    return Settings.load(environ={}, endpoint=server.url, spool_dir=str(folder), spool_min_free_bytes=0)


def give(recorder: DocumentRecorder, folder: Path, documents: list[Document], failing: int) -> bool:
    """Give documents, each until it is taken, while one file cannot be opened. Whether so many files were opened."""
    opened, real = 0, os.open

    def refused_once(path: Any, *arguments: Any, **more: Any) -> int:
        nonlocal opened
        if folder in Path(os.fspath(path)).parents:
            opened += 1
            if opened == failing:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), os.fspath(path))
        return real(path, *arguments, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", refused_once)
        for name, doc in documents:
            wait_until(lambda name=name, doc=doc: not recorder.take(name, doc).try_again)
    return opened >= failing


@pytest.mark.parametrize("left", [False, True], ids=["in the spool", "has left the spool"])
@pytest.mark.parametrize("since", [0, AT_THE_KILL], ids=["all again", "the rest"])
def test_nothing_of_a_killed_run_is_lost_or_doubled_whichever_file_cannot_be_opened_once(
    make_callback: MakeCallback, server: LocalServer, tmp_path: Path, left: bool, since: int
) -> None:
    for failing in range(1, MOST_OPENED):
        documents = list(growth(points=12, keys=1, first=100 * failing))
        folder = tmp_path / str(failing)
        killed(folder, server, documents)
        shutil.rmtree(tmp_path / "living")
        if left:
            with make_callback(spool_dir=str(folder)) as uploading:
                assert uploading.drain(timeout_s=30)

        with DocumentRecorder(settings(folder, server), redelivers=True) as recorder:
            had_so_many = give(recorder, folder, documents[since:], failing)

        with make_callback(spool_dir=str(folder)) as uploading:
            assert uploading.drain(timeout_s=30)
        values = [value for value in held(server)["k0"] if 100 * failing <= value < 100 * (failing + 1)]
        assert sorted(values) == [100.0 * failing + n for n in range(12)], f"the {failing}th file opened"
        if not had_so_many:
            break
    else:
        raise AssertionError("not every file was tried")
