"""Where each setting comes from, and what in the sources is no setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomscale_bluesky import SettingsError
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.checks.settings_report import report_settings
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.settings import Settings

KEY = "a-secret-key-of-many-characters"


def test_every_setting_is_shown_with_its_value_and_source(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("points_per_chunk = 50\nlabel = '{scan_id}'\n")
    environ = {"AS_API_KEY": KEY, "ATOMSCALE_BLUESKY_LABEL": "{plan_name}"}
    report = report_settings(environ=environ, file=file, spool_dir=tmp_path)
    shown = {one.name: (one.value, one.source) for one in report.shown}

    assert list(shown) == list(Settings.__struct_fields__)
    assert shown["points_per_chunk"] == (50, f"file {file}")
    assert shown["label"] == ("{plan_name}", "environment variable ATOMSCALE_BLUESKY_LABEL")
    assert shown["spool_dir"] == (str(tmp_path), "argument")
    assert shown["offline"] == (False, "default")
    assert shown["api_key"] == ("<set>", "environment variable AS_API_KEY")
    assert KEY not in repr(report)
    assert report.mistakes == ()


def test_every_mistake_is_found_and_the_other_settings_hold(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("point_per_chunk = 50\ncolour = 'red'\nmax_connections = 'many'\nprimary = 'fly'\n")
    environ = {"ATOMSCALE_BLUESKY_SPOOLDIR": "/x", "ATOMSCALE_BLUESKY_ZZZ": "1", "ATOMSCALE_BLUESKY_OFFLINE": "1"}
    report = report_settings(environ=environ, file=file)
    remedies = {one.found.partition(" (")[0]: (one.remedy, one.refused) for one in report.mistakes}

    assert remedies["there is no setting 'point_per_chunk'"] == ("did you mean 'points_per_chunk'?", True)
    assert remedies["there is no setting 'colour'"] == ("remove it", True)
    assert remedies["setting 'max_connections'"][1]
    variable = "environment variable ATOMSCALE_BLUESKY_SPOOLDIR is no setting, so it has no effect"
    assert remedies[variable] == ("did you mean ATOMSCALE_BLUESKY_SPOOL_DIR?", False)
    assert len(report.mistakes) == 5
    assert (report.settings.primary, report.settings.offline, report.settings.max_connections) == ("fly", True, 32)
    with pytest.raises(SettingsError, match=r"did you mean 'points_per_chunk'\?"):
        Settings.load(environ={}, file=file)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ATOMSCALE_API_KEY", "api_key"),
        ("key", "api_key"),
        ("AS_API_KEY", "api_key"),
        ("ATOMSCALE_API_ENDPOINT", "endpoint"),
        ("api_endpoint", "endpoint"),
        ("ATOMSCALE_BLUESKY_SPOOL_DIR", "spool_dir"),
        ("spool-dirs", "spool_dir"),
    ],
)
def test_the_name_of_a_variable_in_the_file_is_named_with_the_setting(tmp_path: Path, name: str, meant: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"{name} = '{KEY}'\n")
    (mistake,) = report_settings(environ={}, file=file).mistakes

    assert mistake.remedy == f"did you mean {meant!r}?"
    assert KEY not in repr(mistake)
    with pytest.raises(SettingsError, match=rf"there is no setting '{name}' .* did you mean '{meant}'\?"):
        Settings.load(environ={}, file=file)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ATOMSCALE_BLUESKY_API_KEY", "ATOMSCALE_API_KEY"),
        ("ATOMSCALE_BLUESKY_APIKEY", "ATOMSCALE_API_KEY"),
        ("ATOMSCALE_BLUESKY_KEY", "ATOMSCALE_API_KEY"),
        ("ATOMSCALE_BLUESKY_ENDPOINT", "ATOMSCALE_API_ENDPOINT"),
        ("ATOMSCALE_BLUESKY_API_ENDPOINT", "ATOMSCALE_API_ENDPOINT"),
    ],
)
def test_a_variable_of_the_key_or_endpoint_with_our_prefix_is_named_with_the_right_one(name: str, meant: str) -> None:
    (mistake,) = report_settings(environ={name: KEY}).mistakes

    assert mistake.remedy == f"did you mean {meant}?"
    assert KEY not in repr(mistake)


def test_a_variable_of_the_packages_own_tests_is_no_mistake() -> None:
    assert report_settings(environ={"ATOMSCALE_BLUESKY_TEST_SEED": "7"}).mistakes == ()


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o400, 0), (0o644, 1), (0o640, 1)])
def test_a_key_in_a_file_that_others_can_read_is_a_mistake_with_the_command_that_mends_it(
    tmp_path: Path, mode: int, count: int
) -> None:
    file = tmp_path / "my settings.toml"
    file.write_text(f"api_key = '{KEY}'\n")
    file.chmod(mode)
    mistakes = report_settings(environ={}, file=file).mistakes

    assert [one.remedy for one in mistakes] == [f"chmod 600 '{file}'"] * count
    assert KEY not in repr(mistakes)
    assert not any(one.refused for one in mistakes)
    assert report_settings(environ={"AS_API_KEY": KEY}, file=file).mistakes == ()


def test_settings_that_do_not_fit_together_and_a_broken_file_are_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("endpoint = 'http://chamber.example'\n")
    (mistake,) = report_settings(environ={}, file=file).mistakes
    assert "allow_http" in mistake.found
    file.write_text("endpoint = \n")
    (mistake,) = report_settings(environ={}, file=file).mistakes
    assert "cannot be read" in mistake.found


def test_config_show_prints_them_and_its_exit_code_tells_of_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATOMSCALE_API_KEY", KEY)
    assert main(["config", "show"]) == 0
    monkeypatch.setenv("ATOMSCALE_BLUESKY_POINT_PER_CHUNK", "4")
    assert main(["config", "show", "--endpoint", "https://other.example"]) == 1

    said = " ".join(capsys.readouterr().out.split())
    assert "points_per_chunk 100 default" in said
    assert "endpoint https://other.example argument" in said
    assert "did you mean ATOMSCALE_BLUESKY_POINTS_PER_CHUNK?" in said
    assert KEY not in said
    assert main(["config", "show", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in told["settings"]} == set(Settings.__struct_fields__)
    assert len(told["mistakes"]) == 1


def test_config_show_names_the_file_and_the_spool_also_where_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def shown() -> str:
        main(["config", "show"])
        return " ".join(capsys.readouterr().out.split())

    def told() -> list[object]:
        main(["config", "show", "--json"])
        answer = json.loads(capsys.readouterr().out)
        return [answer[name] for name in ("file", "file_exists", "spool")]

    file = tmp_path / "settings.toml"
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr("platformdirs.user_state_path", lambda *_, **__: tmp_path / "state")
    assert f"Settings file: {file}, which is not there. Spool: {tmp_path / 'state' / 'spool'}." in shown()
    assert told() == [str(file), False, str(tmp_path / "state" / "spool")]

    file.write_text(f"spool_dir = '{tmp_path / 'here'}'\nkeep = 'for ever'\n")
    said = shown()
    assert f"Settings file: {file}. Spool: {tmp_path / 'here'}." in said
    assert f"keep finalized default, because the value from file {file} cannot be used" in said
    assert told() == [str(file), True, str(tmp_path / "here")]

    file.write_text("spool_dir = 5\n")
    assert "Spool: none that can be used, as `doctor` explains." in shown()
    assert told() == [str(file), True, None]


def test_doctor_names_a_mistake_and_goes_on_with_the_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"offlin = true\noffline = true\nspool_dir = '{tmp_path / 'spool'}'\n")
    without = {name: text for name, text in os.environ.items() if not name.startswith("ATOMSCALE_BLUESKY_")}
    ended = subprocess.run(
        [sys.executable, "-m", "atomscale_bluesky", "doctor", "--json"],
        env=without | {"ATOMSCALE_BLUESKY_SETTINGS": str(file)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ended.returncode == 1
    checks = {check["what"]: check for check in json.loads(ended.stdout)}
    assert checks["settings"]["result"] == "failed"
    assert checks["settings"]["remedy"] == "did you mean 'offline'?"
    assert checks["server"]["found"] == "not asked: `offline` is set"


def test_a_spool_that_is_another_folder_in_each_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "settings.toml"
    for text in ("spool", "$HOME/spool"):
        file.write_text(f"spool_dir = '{text}'\n")
        (mistake,) = report_settings(environ={}, file=file).mistakes
        assert f"is '{text}', so it is another folder in each folder, now {tmp_path / text}" in mistake.found
        assert "write the whole path" in mistake.remedy
        assert not mistake.refused
        caplog.clear()
        assert Settings.load(environ={}, file=file).named_folder == tmp_path / text
        assert "write the whole path" in caplog.text
    assert report_settings(environ={"ATOMSCALE_BLUESKY_SPOOL_DIR": "spool"}).mistakes != ()

    caplog.clear()
    file.write_text("spool_dir = '~/spool'\n")
    assert report_settings(environ={}, file=file).mistakes == ()
    assert report_settings(environ={}, spool_dir="spool").mistakes == ()  # as an argument it is meant so
    Settings.load(environ={}, spool_dir="spool")
    assert "whole path" not in caplog.text


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("ATOMSCALE_API_ENDPIONT", "ATOMSCALE_API_ENDPOINT"),
        ("ATOMSCALE_ENDPOINT", "ATOMSCALE_API_ENDPOINT"),
        ("AS_API_ENDPIONT", "AS_API_ENDPOINT"),
        ("ATOMSCALE_APIKEY", "ATOMSCALE_API_KEY"),
        ("atomscale_api_key", "ATOMSCALE_API_KEY"),
        ("ATOMSCALE_SPOOL_DIR", "ATOMSCALE_BLUESKY_SPOOL_DIR"),
        ("ATOMSCALE_BLUSKY_CHANNELS", "ATOMSCALE_BLUESKY_CHANNELS"),
        ("ATOMSCALE_SETTINGS", "ATOMSCALE_BLUESKY_SETTINGS"),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours_is_a_question_and_no_error(variable: str, meant: str) -> None:
    (mistake,) = report_settings(environ={variable: KEY}).mistakes

    assert mistake.found == f"environment variable {variable} has no effect on this package"
    assert mistake.remedy == f"did you mean {meant}? If it belongs to another program, leave it as it is"
    assert (mistake.refused, mistake.question) == (False, True)
    assert KEY not in repr(mistake)


def test_variables_of_other_programs_and_those_that_are_set_properly_too_are_no_question() -> None:
    others = {"ATOMSCALE_SKIP_CLOCK_SYNC": "1", "AS_API_VERSION": "2", "ATOMSCALE_LOG": "x", "AS_PATH": "x"}
    assert report_settings(environ=others).mistakes == ()
    assert report_settings(environ={"ATOMSCALE_ENDPOINT": "x", "AS_API_ENDPOINT": "https://host"}).mistakes == ()
    assert report_settings(environ={"ATOMSCALE_SPOOL_DIR": "x"}, spool_dir="/x").mistakes == ()


def test_config_show_and_doctor_name_a_misspelt_endpoint_and_the_key_goes_nowhere(tmp_path: Path) -> None:
    with LocalServer() as server:
        ours = ("ATOMSCALE", "AS_API")
        environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)} | {
            "ATOMSCALE_API_ENDPIONT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(tmp_path / "spool"),
            "XDG_CONFIG_HOME": str(tmp_path),
        }

        def said(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "atomscale_bluesky", *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

        shown = said("config", "show")
        assert (
            "ATOMSCALE_API_ENDPIONT has no effect on this package; did you mean ATOMSCALE_API_ENDPOINT?" in shown.stdout
        )
        assert shown.returncode == 0
        checked = said("doctor", "--json")
        checks = {check["what"]: check for check in json.loads(checked.stdout)}
        assert checks["settings"]["result"] == "warning"
        assert checks["server"]["result"] == "warning"
        assert checks["server"]["found"].startswith(
            "not asked: https://api.atomscale.ai is perhaps not the `endpoint` you"
        )
        assert checked.returncode == 0
