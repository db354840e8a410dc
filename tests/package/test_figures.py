"""The figures that the manual gives are those of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

from atomscale_bluesky import Settings
from atomscale_bluesky.delivery import outage_log
from atomscale_bluesky.spool import journal_writer, run_writers, spool

DOCS = Path(__file__).parents[2] / "docs"


def test_figures_in_the_manual_are_the_codes() -> None:
    pauses = "{:.0f}, {:.0f} and {:.0f}".format(*(pause / 60 for pause in outage_log.LOG_AGAIN_S))
    said = {
        "reference/spool-format.md": f"a new one after {journal_writer.SEGMENT_BYTES // 2**20} MiB",
        "reference/logging.md": f"again after {pauses} minutes",
    }

    for page, figure in said.items():
        assert figure in (DOCS / page).read_text(encoding="utf-8"), page


def test_a_power_cut_takes_less_than_the_manual_says() -> None:
    assert 0.05 <= run_writers.SYNC_INTERVAL_S < 0.25
    assert outage_log.LOG_AGAIN_S[-1] == 3600


def test_a_spool_without_limits_of_its_own_has_those_of_the_settings() -> None:
    defaults = inspect.signature(spool.Spool).parameters

    assert defaults["max_bytes"].default == Settings.load(environ={}).spool_max_bytes
    assert defaults["sync_each"].default is False
