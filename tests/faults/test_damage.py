"""A sample of the random damages of a journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscale_bluesky.spool import journal_reader

from .damage import play


@pytest.mark.parametrize("block", [64, 300, 2**18])
def test_a_damaged_journal_gives_no_false_line_and_loses_no_untouched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(journal_reader, "READ_BYTES", block)  # so that damages lie across the borders of blocks

    assert play(range(block, block + 200), tmp_path) == {}
