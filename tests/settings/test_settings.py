"""Where settings come from, and what a wrong one is told."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import certifi
import msgspec
import pytest
from rich.console import Console

from atomscale_bluesky import AtomscaleCallback, Settings, SettingsError
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.checks.settings_report import report_settings
from atomscale_bluesky.settings import is_loopback, spool_option

KEY = "k3y-that-must-not-be-seen"


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_any_source_the_defaults_hold() -> None:
    settings = Settings.load(environ={})

    assert settings == Settings()
    assert settings.endpoint == "https://api.atomscale.ai"
    assert settings.api_key is None


def test_arguments_win_over_the_environment_and_that_over_the_file(toml: Any) -> None:
    file = toml("points_per_chunk = 1\nmax_connections = 2\nprimary = 'fly'\n")
    environ = {"ATOMSCALE_BLUESKY_POINTS_PER_CHUNK": "10", "ATOMSCALE_BLUESKY_MAX_CONNECTIONS": "20"}

    settings = Settings.load(environ=environ, file=file, points_per_chunk=100)

    assert (settings.points_per_chunk, settings.max_connections, settings.primary) == (100, 20, "fly")


def test_an_argument_that_is_none_counts_as_not_given() -> None:
    settings = Settings.load(environ={"ATOMSCALE_BLUESKY_PRIMARY": "fly"}, primary=None)

    assert settings.primary == "fly"
    assert settings.replaced(primary=None) == settings


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"ATOMSCALE_API_KEY": "a", "AS_API_KEY": "b"}, "a"),
        ({"AS_API_KEY": "b"}, "b"),
        ({"ATOMSCALE_API_KEY": "", "AS_API_KEY": "b"}, "b"),
        ({"ATOMSCALE_API_KEY": " \n", "AS_API_KEY": " b\n"}, "b"),
        ({"ATOMSCALE_API_KEY": "a", "AS_API_KEY": ""}, "a"),
        ({"ATOMSCALE_API_KEY": "", "AS_API_KEY": ""}, None),
    ],
)
def test_the_key_comes_from_the_first_variable_that_is_not_empty(environ: dict[str, str], key: str | None) -> None:
    assert Settings.load(environ=environ).api_key == key


def test_the_endpoint_has_two_variables_too() -> None:
    environ = {"ATOMSCALE_API_ENDPOINT": "", "AS_API_ENDPOINT": "https://eu.example.org/"}

    assert Settings.load(environ=environ).endpoint == "https://eu.example.org"


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.load(environ={"ATOMSCALE_BLUESKY_POINTS_PER_CHUNK": ""}).points_per_chunk == 100


def test_a_variables_text_becomes_the_settings_kind_of_value() -> None:
    environ = {
        "ATOMSCALE_BLUESKY_SYNTH_SOURCE_ID": "42",
        "ATOMSCALE_BLUESKY_EVENT_STREAMS": "primary, *_monitor ,",
        "ATOMSCALE_BLUESKY_RENAME": "det1 = flux, det2=gauge,",
        "ATOMSCALE_BLUESKY_OFFLINE": "true",
        "ATOMSCALE_BLUESKY_REQUEST_TIMEOUT_S": "2.5",
        "ATOMSCALE_BLUESKY_DURABILITY": "event",
    }

    settings = Settings.load(environ=environ)

    assert settings.synth_source_id == 42
    assert settings.event_streams == ("primary", "*_monitor")
    assert settings.rename == {"det1": "flux", "det2": "gauge"}
    assert settings.offline is True
    assert settings.request_timeout_s == 2.5
    assert settings.durability == "event"


@pytest.mark.parametrize(
    ("name", "text"),
    [("RENAME", "a=b, a=c"), ("RENAME", "a=b,a=b"), ("METADATA_KEYS", "project_id=x, project_id =y")],
)
def test_a_variable_that_gives_a_name_twice_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"ATOMSCALE_BLUESKY_{name}\) is '{text}': .* each name before a = once"):
        Settings.load(environ={f"ATOMSCALE_BLUESKY_{name}": text})


def test_one_pattern_may_be_given_as_text() -> None:
    assert Settings.load(environ={}, channels="hints").channels == ("hints",)


@pytest.mark.parametrize("name", ["event_streams", "channels", "monitors", "tags"])
def test_a_text_with_commas_is_a_list_in_every_source(toml: Any, name: str) -> None:
    text, items = "primary, pressure_monitor,", ("primary", "pressure_monitor")
    file = toml(f"{name} = '{text}'")

    assert getattr(Settings.load(environ={}, file=file), name) == items
    assert getattr(Settings.load(environ={}, **{name: text}), name) == items
    assert getattr(Settings.load(environ={f"ATOMSCALE_BLUESKY_{name.upper()}": text}), name) == items
    assert getattr(Settings().replaced(**{name: text}), name) == items


def test_a_name_with_a_comma_is_given_in_a_list(toml: Any) -> None:
    assert Settings.load(environ={}, file=toml('channels = ["flux, raw"]')).channels == ("flux, raw",)
    assert Settings.load(environ={}, channels=["flux, raw"]).channels == ("flux, raw",)


def test_the_environment_is_the_processes_own_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCALE_BLUESKY_PRIMARY", "fly")

    assert Settings.load().primary == "fly"


def test_the_users_file_is_read_from_the_configuration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "atomscale-bluesky"
    folder.mkdir()
    (folder / "settings.toml").write_text("[rename]\ndet1 = 'flux'\n")

    assert Settings.load(environ={}).rename == {"det1": "flux"}


def test_the_environment_may_name_the_file(toml: Any) -> None:
    path = toml("max_connections = 3")

    assert Settings.load(environ={"ATOMSCALE_BLUESKY_SETTINGS": str(path)}).max_connections == 3


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no settings file '.*absent.toml'; make it, or do not name it"):
        Settings.load(environ={}, file=tmp_path / "absent.toml")


@pytest.mark.parametrize("content", ["points_per_chunk = ", "a" * 10, "= 1"])
def test_a_file_that_is_no_toml_is_named(toml: Any, content: str) -> None:
    with pytest.raises(SettingsError, match=r"settings file '.*settings.toml' cannot be read"):
        Settings.load(environ={}, file=toml(content))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"primary = '\xff'")

    with pytest.raises(SettingsError, match=r"settings file '.*settings.toml' cannot be read"):
        Settings.load(environ={}, file=path)


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_spool_dir_is_not_the_current_folder(toml: Any, text: str) -> None:
    with pytest.raises(SettingsError, match=r"'spool_dir' \(file .*\) is '.*': expected the path of a folder"):
        Settings.load(environ={}, file=toml(f"spool_dir = '{text}'"))
    with pytest.raises(SettingsError, match=r"'spool_dir' \(argument\) is '.*': expected the path of a folder"):
        Settings().replaced(spool_dir=text)
    assert Settings.load(environ={"ATOMSCALE_BLUESKY_SPOOL_DIR": text}).spool_dir is None


def test_a_text_without_quotes_in_the_file_is_named_with_the_remedy(toml: Any) -> None:
    with pytest.raises(SettingsError, match=r'line 2, column 12\); a text has quotes, as in keep = "verified"$'):
        Settings.load(environ={}, file=toml("points_per_chunk = 50\nuploader = none\n"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("points_per_chunk", 0, "expected a whole number >= 1"),
        ("points_per_chunk", 100_001, "<= 100000"),
        ("points_per_chunk", "many", "expected a whole number"),
        ("points_per_chunk", 1.5, "expected a whole number"),
        ("points_per_chunk", True, "not a value for it"),
        ("synth_source_id", -1, ">= 0"),
        ("synth_source_id", "MBE 2", "expected a whole number"),
        ("synth_source_id", False, "not a value for it"),
        ("spool_max_bytes", 10, ">= 1000000"),
        ("request_timeout_s", 0, "expected a number > 0"),
        ("max_latency_s", "soon", "expected a number"),
        ("request_timeout_s", math.nan, "> 0"),
        ("request_timeout_s", math.inf, "<= 3600"),
        ("exit_timeout_s", math.nan, ">= 0"),
        ("max_connections", 65, "<= 64"),
        ("timestamps", "server", "'server'"),
        ("non_finite", "zero", "'zero'"),
        ("durability", "never", "expected one of 'interval', 'event'"),
        ("uploader", "on", "expected one of 'thread', 'process', 'none'"),
        ("keep", 5, "expected one of 'finalized', 'verified'"),
        ("ca_bundle", "/nowhere/ca.pem", "expected a file or folder that exists"),
        ("offline", "perhaps", "expected true or false"),
        ("channels", 5, "expected a list of texts"),
        ("channels", [5], "expected text"),
        ("rename", "det1", "expected pairs such as a=b, c=d"),
        ("rename", {"a": 1}, "expected text"),
        ("metadata_keys", {"project": "x"}, "there is no 'project'; expected synth_source_id, "),
        ("metadata_keys", {"project_id": " "}, "or 'atomscale' for the dict of that name alone"),
        ("metadata_keys", {"*": "x"}, "expected 'atomscale' for '*'"),
        ("endpoint", "api.atomscale.ai", "expected an address such as"),
        ("endpoint", "ftp://api.atomscale.ai", "expected an address such as"),
        ("endpoint", "https://", "expected an address such as"),
        ("endpoint", "https://host:port", "port"),
        ("endpoint", "https://[::1", "IPv6"),
        ("label", "{", "names in braces"),
        ("label", "{0}", "names in braces"),
        ("label", "{a.b}", "names in braces"),
        ("spool_dir", 5, "expected text"),
        ("spool_dir", "", "expected the path of a folder"),
        ("spool_dir", " ", "expected the path of a folder"),
        ("spool_dir", "/tmp\0", "not text in UTF-8"),
        ("primary", "growth\udcff", "not text in UTF-8"),  # as a variable has it that holds a byte of Latin-1
        ("points_per_chunk", "\udcff", "not text in UTF-8"),
        ("channels", ["T", "\udcff"], "not text in UTF-8"),
        ("rename", {"T": "\udcff"}, "not text in UTF-8"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_source_and_what_is_expected(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={}, **{name: value})

    text = str(caught.value)
    assert text.startswith(f"setting {name!r} (argument) is {value!r}")
    assert expected in text


@pytest.mark.parametrize("key", [KEY, f"\udcff{KEY}"])
def test_a_key_that_is_given_to_the_setting_api_is_not_shown(toml: Any, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={"ATOMSCALE_BLUESKY_API": key})

    assert str(caught.value).startswith("setting 'api' (environment variable ATOMSCALE_BLUESKY_API) is <not shown>")
    with pytest.raises(SettingsError, match="is <not shown>: expected one of 'auto', 'metrology', 'tool-state'$"):
        Settings.load(environ={}, file=toml(f"api = '{KEY}'"))


@pytest.mark.parametrize("name", ["endpoint", "api", "keep", "durability", "uploader", "layout"])
@pytest.mark.parametrize("value", [KEY, [KEY], {"url": KEY}, [f"https://user:{KEY}@host"]])
def test_a_key_that_is_given_to_another_setting_is_not_shown(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={}, **{name: value})

    assert str(caught.value).startswith(f"setting {name!r} (argument) is <not shown>: expected ")


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        (f"https://user:{KEY}@host", "https://<not shown>@host"),
        (f"HTTPS://user:a/{KEY}@host/api", "HTTPS://<not shown>@host/api"),
        (f"https://user:a#{KEY}@b@host", "https://<not shown>@host"),
        (f"https://user:\u2100{KEY}@host", "https://<not shown>@host"),
        (f"user:{KEY}@host", "<not shown>@host"),
        (f"https://host?key={KEY}", "https://host?<not shown>"),
        (f"https://host#{KEY}", "https://host#<not shown>"),
    ],
)
def test_a_password_in_an_endpoint_is_refused_unseen(endpoint: str, shown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={}, endpoint=endpoint)

    expected = "expected an address without user, password, query or fragment"
    assert str(caught.value) == f"setting 'endpoint' (argument) is '{shown}': {expected}"


def test_the_source_of_a_wrong_value_is_told(toml: Any) -> None:
    file = toml("points_per_chunk = 0")

    with pytest.raises(SettingsError, match=rf"setting 'points_per_chunk' \(file {file}\) is 0"):
        Settings.load(environ={}, file=file)
    with pytest.raises(
        SettingsError, match=r"\(environment variable ATOMSCALE_BLUESKY_RENAME\) is 'a:b': expected pairs"
    ):
        Settings.load(environ={"ATOMSCALE_BLUESKY_RENAME": "a:b"})
    with pytest.raises(SettingsError, match=r"\(environment variable AS_API_ENDPOINT\) is 'nowhere'"):
        Settings.load(environ={"AS_API_ENDPOINT": "nowhere"})


def test_a_setting_that_does_not_exist_is_named_with_those_that_do(toml: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"'point_per_chunk' \(argument\); did you mean 'points_per_chunk'\? there are .*points_per"
    ):
        Settings.load(environ={}, point_per_chunk=5)
    with pytest.raises(SettingsError, match=r"there is no setting 'colour' \(file "):
        Settings.load(environ={}, file=toml("colour = 'red'"))


def test_the_texts_of_documents_may_be_formatted_as_numbers_in_a_label() -> None:
    assert Settings.load(environ={}, label="{scan_id:04d} {plan_name:>8}").label == "{scan_id:04d} {plan_name:>8}"


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_no_text_of_the_settings_shows_the_key() -> None:
    settings = Settings.load(environ={"ATOMSCALE_API_KEY": KEY})
    console = Console(file=io.StringIO(), width=200)
    console.print(settings)

    assert settings.api_key == KEY
    for text in (repr(settings), str(settings), f"{settings}", "%s" % settings, console.file.getvalue()):  # noqa: UP031
        assert KEY not in text
        assert "<set>" in text
    assert "api_key=None" in repr(Settings())


@pytest.mark.parametrize("key", [KEY + "ü", KEY + "\x00", KEY + "\nX-Other: 1", KEY.encode(), [KEY], 10**30])
def test_a_key_that_cannot_be_used_is_refused_unseen(key: Any) -> None:
    with pytest.raises(SettingsError, match=r"setting 'api_key' \(argument\) is <not shown>") as caught:
        Settings.load(environ={}, api_key=key)

    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        assert str(10**30) not in str(error)
        error = None if error.__suppress_context__ else error.__context__


def test_blanks_around_a_key_are_not_part_of_it() -> None:
    assert Settings.load(environ={}, api_key=f" {KEY}\r\n").api_key == KEY
    assert Settings.load(environ={}, api_key="   ").api_key is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().api_key = KEY  # type: ignore[misc]
    assert msgspec.structs.replace(Settings(), primary="fly") != Settings()


# ---- the endpoint ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:8042", "http://localhost:8042", "http://[::1]:8042", "https://api.example.org"]
)
def test_plain_http_may_go_to_this_machine(endpoint: str) -> None:
    assert Settings.load(environ={}, endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint", ["http://api.example.org", "http://192.168.1.5:8042", "http://localhost.example.org"]
)
def test_plain_http_to_another_machine_has_to_be_permitted(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"plain http would carry the API key readable.*allow_http"):
        Settings.load(environ={}, endpoint=endpoint)
    with pytest.raises(SettingsError, match="plain http"):
        Settings().replaced(endpoint=endpoint)

    assert Settings.load(environ={}, endpoint=endpoint, allow_http=True).endpoint == endpoint


@pytest.mark.parametrize("scheme", ["HTTP", "Http", "ht\ttp"])
def test_plain_http_to_another_machine_is_refused_however_it_is_written(scheme: str) -> None:
    with pytest.raises(SettingsError, match=r"plain http would carry the API key readable.*allow_http"):
        Settings.load(environ={}, endpoint=f"{scheme}://api.example.org")
    with pytest.raises(SettingsError, match="plain http"):
        Settings().replaced(endpoint=f"{scheme}://api.example.org")


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        ("HTTPS://API.Example.org", "https://api.example.org"),
        ("https://API.example.org:8443/Gate/", "https://api.example.org:8443/Gate"),
        ("HTTP://LocalHost:1", "http://localhost:1"),
        ("https://[FE80::1%Eth0]:1", "https://[fe80::1%Eth0]:1"),
    ],
)
def test_scheme_and_host_of_an_endpoint_are_in_lower_case(written: str, endpoint: str) -> None:
    assert Settings.load(environ={}, endpoint=written).endpoint == endpoint


def test_the_slash_at_the_end_of_an_endpoint_is_not_part_of_it() -> None:
    assert Settings.load(environ={}, endpoint=" https://host/api/ ").endpoint == "https://host/api"


def test_this_machine_is_known_by_its_names() -> None:
    assert is_loopback("http://127.8.9.1")
    assert is_loopback("http://LOCALHOST:1")
    assert not is_loopback("http://10.0.0.1")
    assert not is_loopback("nonsense")


def test_the_spool_is_in_the_users_state_folder_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    assert Settings().spool_path == tmp_path / "atomscale-bluesky" / "spool"
    assert Settings.load(environ={}, spool_dir=tmp_path / "x").spool_path == tmp_path / "x"
    assert Settings.load(environ={}, spool_dir="~/x").spool_path == tmp_path / "home" / "x"
    assert Settings.load(environ={}, spool_dir="x").spool_path == tmp_path / "x"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user of whom the system knows no home folder, as in a container with any number for a user."""
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def getpwuid(number: int) -> Any:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", getpwuid)


@pytest.mark.skipif(os.name == "nt", reason="home folders are POSIX's")
@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder_needs_only_the_spools_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", "http://127.0.0.1:1")
    with AtomscaleCallback(spool_dir=tmp_path / "spool") as callback:
        assert callback.settings.spool_path == tmp_path / "spool"
    assert main(["status", "--spool-dir", str(tmp_path / "spool")]) == 0

    for spool_dir, shown in ((None, "not given"), ("~/spool", "'~/spool'")):
        with pytest.raises(SettingsError, match=rf"'spool_dir'.* is {shown}.*no home folder is known"):
            _ = Settings.load(environ={}, spool_dir=spool_dir).spool_path
        with pytest.raises(SettingsError, match=r"whole path of a folder"):
            AtomscaleCallback(spool_dir=spool_dir)
    capsys.readouterr()
    assert main(["status"]) == 2
    assert capsys.readouterr().err.startswith("atomscale-bluesky: setting 'spool_dir' is not given")
    assert main(["config", "show"]) == 0
    assert main(["doctor"]) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["spool"]


@pytest.mark.skipif(os.name == "nt", reason="home folders are POSIX's")
def test_a_path_in_the_home_folder_of_nobody_is_refused(capsys: pytest.CaptureFixture[str], toml: Any) -> None:
    variable = {"ATOMSCALE_BLUESKY_SPOOL_DIR": "~nobody-here/spool"}
    shown = r"is '~nobody-here/spool': expected the whole path of a folder"
    with pytest.raises(SettingsError, match=rf"'spool_dir' \(environment variable ATOMSCALE.*SPOOL_DIR\) {shown}"):
        Settings.load(environ=variable)
    with pytest.raises(SettingsError, match=rf"'spool_dir' \(file .*\) {shown}"):
        Settings.load(environ={}, file=toml("spool_dir = '~nobody-here/spool'"))
    assert main(["config", "show", "--spool-dir", "~nobody-here/spool"]) == 1
    assert "expected the whole path of a folder" in capsys.readouterr().out

    file = {"ATOMSCALE_BLUESKY_SETTINGS": "~nobody-here/settings.toml"}
    with pytest.raises(
        SettingsError, match=r"ATOMSCALE_BLUESKY_SETTINGS is '~nobody.*expected the whole path of a file"
    ):
        Settings.load(environ=file)
    assert spool_option(Settings(spool_dir="/data/mbe1"), file) == " --spool-dir /data/mbe1"
    (mistake,) = report_settings(environ=file).mistakes
    assert "expected the whole path of a file" in mistake.found


def test_the_certificate_authorities_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").write_text("")

    assert Settings.load(environ={}, ca_bundle="~/ca.pem").ca_bundle == str(tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match="expected a file or folder that exists"):
        Settings.load(environ={}, ca_bundle="~nobody-here/ca.pem")


EXAMPLES: dict[str, tuple[str, Any]] = {
    "keep": ("verified", "verified"),
    "clock": ("reference", "reference"),
    "api_key": ("k", "k"),
    "endpoint": ("https://host", "https://host"),
    "synth_source_id": ("0", 0),
    "project_id": ("0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60", "0b9c7c52-4a55-4d0e-9a53-2c1f4b8e7d60"),
    "tags": ("night shift,recipe 12", ("night shift", "recipe 12")),
    "metadata_keys": (
        "project_id=atomscale_project, *=atomscale",
        {"project_id": "atomscale_project", "*": "atomscale"},
    ),
    "points_per_chunk": ("5", 5),
    "spool_dir": ("x", "x"),
    "spool_max_bytes": ("1000000", 1_000_000),
    "spool_min_free_bytes": ("0", 0),
    "event_streams": ("a,b", ("a", "b")),
    "primary": ("fly", "fly"),
    "monitors": ("m*", ("m*",)),
    "channels": ("hints", ("hints",)),
    "rename": ("a=b", {"a": "b"}),
    "max_elements": ("0", 0),
    "timestamps": ("reading", "reading"),
    "non_finite": ("null", "null"),
    "layout": ("run", "run"),
    "max_latency_s": ("2.5", 2.5),
    "durability": ("event", "event"),
    "uploader": ("process", "process"),
    "api": ("tool-state", "tool-state"),
    "max_connections": ("1", 1),
    "max_body_bytes": ("10000", 10_000),
    "request_timeout_s": ("0.5", 0.5),
    "exit_timeout_s": ("0", 0.0),
    "ca_bundle": (certifi.where(), certifi.where()),
    "allow_http": ("1", True),
    "label": ("{scan_id}", "{scan_id}"),
    "probed": ("true", True),
    "resend": ("true", True),
    "offline": ("true", True),
    "announce": ("off", "off"),
}


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_can_be_given_in_every_way(toml: Any, name: str) -> None:
    text, value = EXAMPLES[name]
    special = {"api_key": "ATOMSCALE_API_KEY", "endpoint": "ATOMSCALE_API_ENDPOINT"}
    variable = special.get(name, f"ATOMSCALE_BLUESKY_{name.upper()}")
    file = toml(f"{name} = {json.dumps(value, separators=(', ', ' = '))}")

    assert getattr(Settings.load(environ={}, **{name: value}), name) == value
    assert getattr(Settings.load(environ={variable: text}), name) == value
    assert getattr(Settings.load(environ={}, file=file), name) == value


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("point_per_chunk", r"there is no setting 'point_per_chunk' \(argument\); did you mean 'points_per_chunk'\?"),
        ("durability", r"write AtomscaleCallback\(settings=Settings.load\(durability=\.\.\.\)\)"),
    ],
)
def test_a_wrong_argument_of_the_callback_raises_with_the_right_one(argument: str, hint: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {argument: 5}

    with pytest.raises(SettingsError, match=hint):
        AtomscaleCallback(spool_dir=tmp_path / "spool", **given)
    assert not (tmp_path / "spool").exists()


def test_a_subclass_of_the_callback_may_take_arguments_of_its_own(tmp_path: Path) -> None:
    class Named(AtomscaleCallback):
        def __init__(self, chamber: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.chamber = chamber

    with Named(chamber="mbe1", spool_dir=tmp_path / "spool", settings=Settings.load(environ={}, offline=True)) as named:
        assert named.chamber == "mbe1"
