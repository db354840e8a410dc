"""Which option a command needs to find the spool of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomscale_bluesky import Settings
from atomscale_bluesky.settings import spool_option


def test_a_folder_that_environment_or_file_name_needs_no_option(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    by_variable = {"ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool)}
    file = tmp_path / "settings.toml"
    file.write_text(f"spool_dir = '{spool}'\n")
    by_file = {"ATOMSCALE_BLUESKY_SETTINGS": str(file)}

    assert spool_option(Settings(spool_dir=str(spool)), by_variable) == ""
    assert spool_option(Settings(spool_dir=str(spool)), by_file) == ""
    assert spool_option(Settings(), {}) == ""


def test_a_folder_that_only_the_session_knows_is_named_whole_and_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = {"ATOMSCALE_BLUESKY_SPOOL_DIR": str(tmp_path / "other")}

    assert spool_option(Settings(spool_dir="mbe1"), {}) == f" --spool-dir {tmp_path / 'mbe1'}"
    assert spool_option(Settings(spool_dir="mbe 1"), elsewhere) == f" --spool-dir '{tmp_path / 'mbe 1'}'"
    assert spool_option(Settings(), elsewhere).startswith(" --spool-dir /")


def test_a_relative_folder_is_named_because_a_command_may_be_given_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    option = spool_option(Settings(spool_dir="mbe1"), {"ATOMSCALE_BLUESKY_SPOOL_DIR": "mbe1"})
    assert option == f" --spool-dir {tmp_path / 'mbe1'}"


def test_settings_that_cannot_be_read_leave_the_folder_named(tmp_path: Path) -> None:
    option = spool_option(Settings(spool_dir="/data/mbe1"), {"ATOMSCALE_BLUESKY_SETTINGS": str(tmp_path / "none.toml")})
    assert option == " --spool-dir /data/mbe1"
