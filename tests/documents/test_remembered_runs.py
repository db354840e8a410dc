"""What a recorder remembers of runs that are not open, and for how many of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from atomscale_bluesky.documents import remembered_runs
from atomscale_bluesky.documents.remembered_runs import RememberedRuns


def test_a_run_is_skipped_until_its_stop_comes_and_its_descriptors_are_known_then() -> None:
    runs = RememberedRuns()
    runs.skip("run")
    runs.skip_descriptor("d-1", "run")
    runs.skip_descriptor("d-2", "another")
    assert (runs.skips("run"), runs.skips("another")) == (True, False)
    assert [runs.skips_descriptor(uid) for uid in ("d-1", "d-2", "d-3")] == [True, True, False]
    assert runs.ended_run_of("d-1") is None

    runs.end_skipped("run")
    runs.end_skipped("a run that nobody skips")

    assert not runs.skips("run")
    assert [runs.skips_descriptor(uid) for uid in ("d-1", "d-2")] == [False, True]
    assert [runs.ended_run_of(uid) for uid in ("d-1", "d-2")] == ["run", None]
    assert not runs.has_ended("run")  # nobody recorded it here


def test_the_descriptors_of_a_run_that_ended_and_of_one_that_may_go_on_are_told_apart() -> None:
    runs = RememberedRuns()
    runs.note_descriptors(["d-1", "d-2"], "ended", ended=True)
    runs.note_descriptors(["d-3"], "completed", ended=False)

    assert [runs.ended_run_of(uid) for uid in ("d-1", "d-2", "d-3")] == ["ended", "ended", None]
    assert [runs.completed_run_of(uid) for uid in ("d-1", "d-2", "d-3")] == [None, None, "completed"]


KINDS: dict[str, tuple[Callable[[RememberedRuns, str], object], Callable[[RememberedRuns, str], object]]] = {
    "skipped": (RememberedRuns.skip, RememberedRuns.skips),
    "skipped descriptors": (lambda runs, uid: runs.skip_descriptor(uid, "run"), RememberedRuns.skips_descriptor),
    "ended": (RememberedRuns.note_ended, RememberedRuns.has_ended),
    "ended descriptors": (
        lambda runs, uid: runs.note_descriptors([uid], "run", ended=True),
        RememberedRuns.ended_run_of,
    ),
    "completed descriptors": (
        lambda runs, uid: runs.note_descriptors([uid], "run", ended=False),
        RememberedRuns.completed_run_of,
    ),
    "unknown descriptors": (RememberedRuns.note_unknown, RememberedRuns.is_unknown),
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_the_oldest_are_forgotten(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_runs, "REMEMBERED_RUNS", 3)
    note, remembers = KINDS[kind]
    runs = RememberedRuns()
    for number in range(5):
        note(runs, str(number))

    assert [bool(remembers(runs, str(number))) for number in range(5)] == [False, False, True, True, True]
    others = [name for name, (_, other) in KINDS.items() if name != kind and other(runs, "4")]
    assert others == []


def test_what_was_sought_in_vain_may_be_sought_again_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, now = RememberedRuns(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    runs.note_unknown("for now", 105.0)
    runs.note_unknown("for good")

    def unknown(at: float) -> list[bool]:
        now[0] = at
        return [runs.is_unknown(uid) for uid in ("for now", "for good", "another")]

    assert [unknown(at) for at in (100.0, 104.5)] == [[True, True, False]] * 2
    assert [unknown(at) for at in (105.0, 1e9)] == [[False, True, False]] * 2
