"""The sources of settings: arguments, the environment, and a file. Each gives values with the name of their source.

Environment: `ATOMSCALE_API_KEY` or `AS_API_KEY`, `ATOMSCALE_API_ENDPOINT` or `AS_API_ENDPOINT` (the first one that is
set and not empty), and `ATOMSCALE_BLUESKY_<NAME>` for every other setting. File: `settings.toml` in the user's
configuration folder for `atomscale-bluesky`, or the one that `ATOMSCALE_BLUESKY_SETTINGS` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import FieldInfo

from ..errors import SettingsError

APP = "atomscale-bluesky"

_KEY_VARIABLES = ("ATOMSCALE_API_KEY", "AS_API_KEY")
_ENDPOINT_VARIABLES = ("ATOMSCALE_API_ENDPOINT", "AS_API_ENDPOINT")
# What may follow our prefix by mistake. Without these, the nearest names would be those of `api` and `keep`, and the
# key would be shown as a wrong value of these settings.
_WITHOUT_PREFIX = {
    "KEY": _KEY_VARIABLES[0],
    "API_KEY": _KEY_VARIABLES[0],
    "ENDPOINT": _ENDPOINT_VARIABLES[0],
    "API_ENDPOINT": _ENDPOINT_VARIABLES[0],
}
_VENDOR_PREFIX = "ATOMSCALE_"
_PREFIX = _VENDOR_PREFIX + "BLUESKY_"
_FILE_VARIABLE = _PREFIX + "SETTINGS"
_SHORT_PREFIX = "AS_API_"
_TEST_PREFIX = _PREFIX + "TEST_"  # of variables that only the tests of this package read

ARGUMENT = "argument"
RELATIVE_REMEDY = "write the whole path, with / or ~ in front; a variable such as $HOME is not replaced"

# All settings by name: of each its type and its default.
Fields = Mapping[str, FieldInfo]


def from_arguments(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the arguments that are given: value and source by name."""
    return {name: (value, ARGUMENT) for name, value in arguments.items() if value is not None}


def file_to_read(file: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the settings' file: `file`, else the one that the environment names, else the user's own.

    If no home folder is known, the path begins with `~`.
    """
    if file is None and environ.get(_FILE_VARIABLE):
        file = Path(environ[_FILE_VARIABLE])
        return with_home(file) or file
    if file is not None:
        return file
    import platformdirs  # takes a while, and a session that names its folders does not need it

    try:
        return platformdirs.user_config_path(APP, appauthor=False) / "settings.toml"
    except RuntimeError:  # older versions of platformdirs return a path with `~` then
        return Path("~/.config", APP, "settings.toml")


def default_spool() -> Path | None:
    """Return the folder of the spool if none is named, or None if no home folder is known."""
    import platformdirs  # as above

    try:
        path = platformdirs.user_state_path(APP, appauthor=False) / "spool"
    except RuntimeError:
        return None
    return None if in_unknown_home(path) else path


def with_home(path: Path) -> Path | None:
    """Return a path with the home folder in the place of a `~` at its beginning, or None if it is not known."""
    try:
        return path.expanduser()
    except RuntimeError:
        return None


def in_unknown_home(path: Path) -> bool:
    """Return True if a path begins with `~`, although that should have been replaced by the home folder."""
    return str(path).startswith("~")


def from_file(file: Path | None, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Return what the settings' file has: value and source by name, of settings and of anything else in it.

    Raises:
        SettingsError: The file cannot be read, or there is none although it is named.
    """
    path = file_to_read(file, environ)
    named = file is not None or bool(environ.get(_FILE_VARIABLE))
    if file is None and in_unknown_home(path):
        if not named:
            return {}
        raise SettingsError(
            f"environment variable {_FILE_VARIABLE} is {str(path)!r}: expected the whole path of a file, because no "
            "home folder is known for it"
        )
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # takes a while, and few sessions have a file

        content = tomllib.loads(text)
    except FileNotFoundError:
        if not named:
            return {}
        raise SettingsError(f"there is no settings file {str(path)!r}; make it, or do not name it") from None
    except (OSError, ValueError) as error:  # not UTF-8, or not TOML
        hint = '; a text has quotes, as in keep = "verified"' if "Invalid value" in str(error) else ""
        raise SettingsError(f"settings file {str(path)!r} cannot be read: {error}{hint}") from error
    return {name: (value, f"file {path}") for name, value in content.items()}


def from_environment(fields: Fields, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Return what the environment has of these settings: value and source by name."""
    found: dict[str, tuple[Any, str]] = {}
    for name in fields:
        for variable in _variables(name):
            if text := environ.get(variable, "").strip():
                found[name] = (_from_text(fields[name], text), f"environment variable {variable}")
                break
    return found


def relative_spool(merged: Mapping[str, tuple[Any, str]]) -> str | None:
    """Return what is wrong with a `spool_dir` that a file or variable gives as a relative path; None if it is not so.

    As an argument it is meant for the current folder. Elsewhere each session would have a spool of its own, and none
    would deliver what another one has left.
    """
    value, source = merged.get("spool_dir", (None, ARGUMENT))
    if source == ARGUMENT or not isinstance(value, str) or not value.strip():
        return None
    path = with_home(Path(value))
    if path is None or path.is_absolute():
        return None
    return f"setting 'spool_dir' ({source}) is {value!r}, so it is another folder in each folder, now {path.absolute()}"


def _variables(name: str) -> tuple[str, ...]:
    """Return the variables that may have a setting. The first one that is set counts."""
    return {"api_key": _KEY_VARIABLES, "endpoint": _ENDPOINT_VARIABLES}.get(name, (_PREFIX + name.upper(),))


def place_of_key(fields: Fields, environ: Mapping[str, str]) -> str:
    """Return where the API key comes from, unless it is an argument: a variable or a file, to be named after "in"."""
    try:
        given = from_file(None, environ) | from_environment(fields, environ)
    except SettingsError:  # the file has changed since it was read
        given = from_environment(fields, environ)
    return given.get("api_key", ("", _KEY_VARIABLES[0]))[1].removeprefix("environment variable ")


def settings_of(variable: str, fields: Fields) -> set[str]:
    """Return the settings that a variable of the environment may give: one, or all if it names the file."""
    return set(fields) if variable == _FILE_VARIABLE else {name for name in fields if variable in _variables(name)}


def unknown_variables(fields: Fields, environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that look like settings of this package and are none, each with the nearest one that is."""
    known = {_PREFIX + name.upper() for name in fields if name not in {"api_key", "endpoint"}} | {_FILE_VARIABLE}
    known |= {*_KEY_VARIABLES, *_ENDPOINT_VARIABLES}
    meant = {name: name for name in known} | {_PREFIX + rest: variable for rest, variable in _WITHOUT_PREFIX.items()}
    ours = [name for name in environ if name.upper().startswith(_PREFIX) and not name.startswith(_TEST_PREFIX)]
    found = {name: nearest(name, meant) for name in ours if name not in known}
    return {name: None if near is None else meant[near] for name, near in found.items()}


def setting_meant(name: str, fields: Fields) -> str | None:
    """Return the setting that is perhaps meant by a name that is none, also by a variable's; None if none is like it.

    In a file, a setting has its own name: `ATOMSCALE_API_KEY` is a variable, and `api_key` the setting.
    """
    rest = name.upper().removeprefix(_VENDOR_PREFIX).removeprefix("AS_").removeprefix("BLUESKY_")
    meant = nearest(rest, [*fields, "key", "api_endpoint"])
    return {"key": "api_key", "api_endpoint": "endpoint"}.get(meant or "", meant)


def doubtful_variables(fields: Fields, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are perhaps misspelt names of ours, such as `ATOMSCALE_ENDPOINT`, each with our name.

    They do not begin with our prefix, so they may as well belong to another program of the vendor. Variables that are
    like none of ours are left out.
    """
    by_rest = {name: _variables(name)[0] for name in fields}
    by_rest |= {"api_endpoint": _ENDPOINT_VARIABLES[0], "settings": _FILE_VARIABLE}
    by_rest |= {f"bluesky_{rest}": variable for rest, variable in by_rest.items()}
    found: dict[str, str] = {}
    for name in environ:
        shout = name.upper()
        if name in {*_KEY_VARIABLES, *_ENDPOINT_VARIABLES} or shout.startswith(_PREFIX):
            continue
        meant = None
        if shout.startswith(_VENDOR_PREFIX):
            rest = nearest(name[len(_VENDOR_PREFIX) :], by_rest, likeness=0.8)
            meant = by_rest[rest] if rest is not None else None
        elif shout.startswith(_SHORT_PREFIX):
            meant = nearest(name, (_KEY_VARIABLES[1], _ENDPOINT_VARIABLES[1]), likeness=0.9)
        if meant is not None:
            found[name] = meant
    return found


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.7) -> str | None:
    """Return the known name that is most like this one, or None if none is like it.

    Args:
        name: Which is none of the known ones.
        known: The names that there are.
        likeness: How much alike they have to be, between 0 and 1, by `difflib`.
    """
    import difflib  # takes a while, and is needed for mistakes only

    by_form = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold().replace("-", "_"), by_form, n=1, cutoff=likeness)
    return by_form[found[0]] if found else None


def _from_text(field: FieldInfo, text: str) -> Any:
    """Return a variable's text as the setting's kind of value: mappings are written as `a=b, c=d`.

    Text that is no mapping, or gives a key twice, is returned as it is, and refused later.
    """
    if field.default_factory is not msgspec.NODEFAULT:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        found = {key.strip(): value.strip() for key, _, value in pairs}
        if all(separator for _, separator, _ in pairs) and len(found) == len(pairs):
            return found
    return text
