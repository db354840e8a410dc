"""The figures that the manual gives are those of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from atomscale_bluesky import Settings, answers, cutting, journal, spool

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("reference/spool-format.md", f"a new one after {journal.SEGMENT_BYTES // 2**20} MiB"),
        (
            "explanations/what-arrives-and-what-does-not.md",
            f"at most {cutting.MAX_OWN_STREAMS} channels a stream of their own",
        ),
        (
            "reference/logging.md",
            "again after {:.0f}, {:.0f} and {:.0f} minutes and then every hour".format(
                *[s / 60 for s in answers.NAG_S]
            ),
        ),
    ],
)
def test_a_figure_in_the_manual_is_the_codes(page: str, said: str) -> None:
    assert said in (DOCS / page).read_text(encoding="utf-8")


def test_a_power_cut_takes_less_than_the_manual_says() -> None:
    assert 0.05 <= spool.SYNC_INTERVAL_S < 0.25
    assert answers.NAG_S[-1] == 3600


def test_a_spool_without_limits_of_its_own_has_those_of_the_settings() -> None:
    defaults = inspect.signature(spool.Spool).parameters

    assert defaults["max_bytes"].default == Settings.load(environ={}).spool_max_bytes
    assert defaults["sync_each"].default is False
