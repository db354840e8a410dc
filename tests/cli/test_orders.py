"""`retry`, `edit`, `discard` and `move` of several runs, and what they would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.spool import Spool
from atomscale_bluesky.status.spool_status import SpoolStatus

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
Spooled = Callable[..., str]


def orders_in(spool_dir: Path) -> int:
    return len(list(spool_dir.glob("*/orders.jsonl")))


def test_all_parked_runs_are_corrected_at_once_and_delivered(
    say: Say, spooled: Spooled, spool_dir: Path, server: LocalServer
) -> None:
    wrong = [spooled(synth_source_id="the big one") for _ in range(3)]
    right = spooled()
    code, said, _ = say("edit", "--all-parked", "--synth-source-id", "42")

    assert code == 0
    assert all(f"Run {uid[:8]} " in said for uid in wrong)
    assert right[:8] not in said
    assert orders_in(spool_dir) == 3
    assert say("upload")[0] == 0
    assert [stream.synth_source_id for stream in server.streams()] == [42] * 4


def test_several_runs_are_named_and_one_that_is_not_there_is_an_error_of_its_own(
    say: Say, spooled: Spooled, spool_dir: Path
) -> None:
    first, second = spooled(), spooled()
    code, said, complaint = say("retry", first[:8], second[:8], "no-such-run")

    assert code == 1
    assert f"Run {first[:8]} " in said
    assert f"Run {second[:8]} " in said
    assert "no run in the spool begins with 'no-such-run'" in complaint
    assert orders_in(spool_dir) == 2


@pytest.mark.parametrize(
    "arguments",
    [("retry",), ("discard",), ("edit", "--synth-source-id", "42"), ("move", "--to", "http://127.0.0.1:9")],
)
def test_a_dry_run_names_the_runs_and_changes_nothing(
    say: Say, spooled: Spooled, spool_dir: Path, arguments: tuple[str, ...]
) -> None:
    uid = spooled(synth_source_id="the big one")
    before = {path: path.stat().st_mtime_ns for path in spool_dir.rglob("*")}
    code, said, _ = say(*arguments, "--all-parked", "--dry-run")

    assert code == 0
    assert f"Would be ordered: Run {uid[:8]} " in said
    assert {path: path.stat().st_mtime_ns for path in spool_dir.rglob("*")} == before
    assert SpoolStatus(Spool(spool_dir)).status()[0].state == "parked"


def test_discarding_several_runs_asks_once_with_the_sum_of_their_points(
    say: Say, spooled: Spooled, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    asked: list[str] = []

    def confirm(text: str, **_: Any) -> None:
        asked.append(text.replace("\N{NO-BREAK SPACE}", " "))
        raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)
    uids = [spooled(5, synth_source_id="the big one") for _ in range(2)]
    code, _, _ = say("discard", "--all-parked")

    assert code == 130
    assert asked == [f"Give up 20 points of 2 runs ({uids[0][:8]}, {uids[1][:8]}) for good?"]
    assert orders_in(spool_dir) == 0
    assert say("discard", "--all-parked", "--yes")[0] == 0
    assert orders_in(spool_dir) == 2


def test_without_a_run_it_says_how_to_name_one(say: Say, spooled: Spooled) -> None:
    spooled()

    code, _, complaint = say("retry")
    assert code == 2
    assert "name the runs, or give --all-parked" in complaint
    code, said, _ = say("retry", "--all-parked")
    assert (code, said) == (0, "No run waits for the operator.")
