"""Every setting with its value and where it comes from, and what in the sources is no setting.

Unlike `Settings.load`, which refuses the first mistake, this finds all of them, and says which settings are left.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..settings import (
    FIELDS,
    RELATIVE_REMEDY,
    Settings,
    checked_value,
    doubtful_variables,
    file_to_read,
    from_arguments,
    from_environment,
    from_file,
    relative_spool,
    setting_meant,
    settings_of,
    unknown_variables,
)

DEFAULT, PROBE, FILE = "default", "probe", "file "


@dataclass(frozen=True, slots=True)
class SettingShown:
    """One setting as it is in force; of the API key only that it is set."""

    name: str
    value: Any
    source: str  # default (and why not another one), argument, probe, a variable of the environment, or a file


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something in a source that has no effect, that a session would refuse, or that lets others read the key."""

    found: str
    remedy: str
    refused: bool  # a session does not begin with it
    question: bool = False  # perhaps it is no mistake: a variable may belong to another program


@dataclass(frozen=True, slots=True)
class SettingsReport:
    """The settings in force without the mistakes, and the mistakes."""

    settings: Settings
    file: Path  # which is read if it is there
    shown: tuple[SettingShown, ...]
    mistakes: tuple[Mistake, ...] = field(default_factory=tuple)
    # Settings to which a source gives a value that cannot be used or read. `settings` has the default instead, which is
    # perhaps not what the user means.
    unclear: frozenset[str] = frozenset()
    # Settings for which a variable of another name is perhaps meant. `settings` has them without it.
    questioned: frozenset[str] = frozenset()


def report_settings(
    *, environ: Mapping[str, str] | None = None, file: Path | None = None, **arguments: Any
) -> SettingsReport:
    """Return every setting with its source, and every mistake. Takes the same arguments as `Settings.load`."""
    environ = os.environ if environ is None else environ
    mistakes: list[Mistake] = []
    unclear: set[str] = set()
    beside_file = from_environment(FIELDS, environ) | from_arguments(arguments)
    try:
        merged = from_file(file, environ)
    except SettingsError as error:
        mistakes.append(Mistake(str(error), "mend the file", refused=True))
        unclear |= FIELDS.keys() - beside_file.keys()
        merged = {}
    merged |= beside_file
    usable: dict[str, Any] = {}
    for name, (value, source) in merged.items():
        if name not in FIELDS:
            meant = setting_meant(name, FIELDS)
            unclear |= {meant} - beside_file.keys() if meant else set()
            found = f"there is no setting {name!r} ({source})"
            mistakes.append(Mistake(found, f"did you mean {meant!r}?" if meant else "remove it", refused=True))
            continue
        try:
            usable[name] = checked_value(name, value, source)
        except SettingsError as error:
            unclear.add(name)
            mistakes.append(Mistake(str(error), "give it a value that fits", refused=True))
    for variable, meant in unknown_variables(FIELDS, environ).items():
        unclear |= settings_of(meant, FIELDS) - beside_file.keys() if meant else set()
        found = f"environment variable {variable} is no setting, so it has no effect"
        mistakes.append(Mistake(found, f"did you mean {meant}?" if meant else "remove it", refused=False))
    questioned: set[str] = set()
    for variable, meant in doubtful_variables(FIELDS, environ).items():
        if names := settings_of(meant, FIELDS) - beside_file.keys():
            questioned |= names
            found = f"environment variable {variable} has no effect on this package"
            remedy = f"did you mean {meant}? If it belongs to another program, leave it as it is"
            mistakes.append(Mistake(found, remedy, refused=False, question=True))
    if (relative := relative_spool(merged)) is not None:
        mistakes.append(Mistake(relative, RELATIVE_REMEDY, refused=False))
    mistakes += _readable_key(merged)
    try:
        settings = Settings.made_of(usable)
    except SettingsError as error:
        mistakes.append(Mistake(str(error), "mend the setting `endpoint`", refused=True))
        unclear.add("endpoint")
        usable.pop("endpoint", None)
        settings = Settings(**usable)
    shown = _shown(settings, usable, merged)
    return SettingsReport(
        settings,
        file_to_read(file, environ),
        tuple(shown),
        tuple(mistakes),
        unclear=frozenset(unclear),
        questioned=frozenset(questioned),
    )


def _readable_key(merged: Mapping[str, tuple[Any, str]]) -> list[Mistake]:
    """Return the mistake that the API key is in a file which other users can read, if it is so."""
    source = merged.get("api_key", (None, ""))[1]
    if os.name == "nt" or not source.startswith(FILE):
        return []
    path = source.removeprefix(FILE)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:  # removed since it was read
        return []
    if not mode & 0o077:
        return []
    found = f"settings file {path!r} holds the API key, and others can read it ({mode:04o})"
    return [Mistake(found, f"chmod 600 {shlex.quote(path)}", refused=False)]


def _shown(settings: Settings, usable: Mapping[str, Any], merged: Mapping[str, tuple[Any, str]]) -> list[SettingShown]:
    shown: list[SettingShown] = []
    defaults = Settings()
    for name in FIELDS:
        value = getattr(settings, name)
        source = merged[name][1] if name in usable else DEFAULT
        if name in merged and name not in usable:
            source = f"{DEFAULT}, because the value from {merged[name][1]} cannot be used"
        if source == DEFAULT and value != getattr(defaults, name):
            source = PROBE
        if name == "api_key" and value:
            value = "<set>"
        shown.append(SettingShown(name, value, source))
    return shown
