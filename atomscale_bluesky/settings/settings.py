"""The settings of a site: arguments win over the environment, that over the file, and that over the defaults.

`Settings.load` gathers the three sources, checks every value and gives a frozen `Settings`; whatever cannot be used
raises `SettingsError`, which names the setting, where it came from, what was given and what is expected.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from ..errors import SettingsError
from ..spool.spool_folder import spool_folder, warn_if_elsewhere
from ..status.probe_results import read_findings
from .sources import (
    RELATIVE_REMEDY,
    default_spool,
    from_arguments,
    from_environment,
    from_file,
    relative_spool,
    setting_meant,
    with_home,
)
from .values import DEFAULT_ENDPOINT, is_loopback, value_of

_logger = logging.getLogger(__name__)

Api = Literal["auto", "metrology", "tool-state"]
NonFinite = Literal["own_stream", "null", "drop_row"]
Timestamps = Literal["auto", "event", "reading"]
Durability = Literal["interval", "event"]
LayoutChoice = Literal["time_base", "run"]
Keep = Literal["finalized", "verified"]
ClockOf = Literal["host", "reference"]
UploaderPlace = Literal["thread", "process", "none"]
Announce = Literal["auto", "on", "off"]


def _setting(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a site may choose; each field's description is its line in the reference."""

    api_key: Annotated[
        str | None, _setting("Key of your Atomscale account. Without one, readings are spooled until there is.")
    ] = None
    endpoint: Annotated[str, _setting("Origin of the Atomscale API; plain http only to a loopback address.")] = (
        DEFAULT_ENDPOINT
    )
    synth_source_id: Annotated[
        Annotated[int, Meta(ge=0, lt=2**31)] | None, _setting("Growth instrument for runs whose metadata name none.")
    ] = None
    project_id: Annotated[str | None, _setting("Project, a UUID, for runs whose metadata name none.")] = None
    tags: Annotated[
        tuple[str, ...],
        _setting("Tags of runs whose metadata name none. A run that has tags gets one more, for how it ended."),
    ] = ()  # fmt: skip
    metadata_keys: Annotated[
        dict[str, str],
        _setting("Which key of a run's metadata to read for one of ours, as in `project_id = \"atomscale_project\"`. "
                 "`atomscale`: only the dict of that name; `*`: all keys that are not named."),
    ] = {}  # fmt: skip
    points_per_chunk: Annotated[
        int, _setting("Points of each channel in a chunk, for runs whose metadata say nothing.", ge=1, le=100_000)
    ] = 100
    spool_dir: Annotated[
        str | None,
        _setting("Folder that holds the runs not yet finalized. If other things are in it, the runs are in its "
                 "subfolder `atomscale-bluesky`. Default: in the user's state folder."),
    ] = None  # fmt: skip
    spool_max_bytes: Annotated[
        int, _setting("Size of the spool at which new readings begin to be left out.", ge=1_000_000)
    ] = 20 * 10**9
    spool_min_free_bytes: Annotated[
        int, _setting("Free space on the spool's disk below which new readings are left out.", ge=0)
    ] = 500 * 10**6
    event_streams: Annotated[
        tuple[str, ...],
        _setting("Event streams to take, as shell-style patterns; `!pattern` leaves out. The last match decides."),
    ] = ("*", "!baseline", "!interruptions")
    primary: Annotated[
        str, _setting("Event stream that goes into the metrology stream which the start document initializes.")
    ] = "primary"
    monitors: Annotated[
        tuple[str, ...],
        _setting("Event streams that are monitors, as patterns: their points have the readings' own times."),
    ] = ("*_monitor",)
    channels: Annotated[
        tuple[str, ...],
        _setting(
            "Data keys to take, as patterns; `!pattern` leaves out. `hints` as the only pattern: the hinted fields."
        ),
    ] = ("*",)
    rename: Annotated[dict[str, str], _setting("Channel names by data key, where they should differ.")] = {}
    max_elements: Annotated[
        int, _setting("Longest one-dimensional array that becomes one channel per element.", ge=0, le=1000)
    ] = 16
    timestamps: Annotated[
        Timestamps,
        _setting(
            "Time of a point: as the rows' times and `monitors` tell, always the event's, or always the reading's."
        ),
    ] = "auto"
    non_finite: Annotated[
        NonFinite,
        _setting("Channels with NaN, infinite or missing values go on in a continuation, those with the same gaps "
                 "together; or the gaps are sent as null (not promised by the API); or rows with a gap are dropped."),
    ] = "own_stream"  # fmt: skip
    layout: Annotated[
        LayoutChoice,
        _setting("One metrology stream per time base, or one for all event streams of a run, whose channels are named "
                 "`<event stream>/<key>` (several times in one stream are not promised by the API)."),
    ] = "time_base"  # fmt: skip
    max_latency_s: Annotated[
        float,
        _setting("How long a point may wait for its chunk to be full before the chunk is sent with the points it has, "
                 "and again when it has more (not promised by the API). 0: until the chunk is full.", ge=0, le=86_400),
    ] = 0.0  # fmt: skip
    durability: Annotated[
        Durability,
        _setting("Sync accepted readings to disk within 250 ms, or before each call returns."),
    ] = "interval"
    uploader: Annotated[
        UploaderPlace,
        _setting("Deliver in threads of the RunEngine's process, in a process of its own that is started and watched, "
                 "or not at all: the site runs `atomscale-bluesky upload --follow`."),
    ] = "thread"  # fmt: skip
    api: Annotated[Api, _setting("Path family: found out, the documented one, or the one of newer clients.")] = "auto"
    max_connections: Annotated[
        int,
        _setting("Requests under way at the same time, at most. How many there are follows from how quickly the server "
                 "answers; while a plan runs in the same process, 8 at most.", ge=1, le=64),
    ] = 32  # fmt: skip
    max_body_bytes: Annotated[int, _setting("Larger requests are split by channels.", ge=10_000)] = 2**20
    request_timeout_s: Annotated[float, _setting("Limit of one request from first to last byte.", gt=0, le=3600)] = 60.0
    exit_timeout_s: Annotated[
        float, _setting("How long the interpreter's exit may wait for what is still under way.", ge=0, le=3600)
    ] = 10.0
    ca_bundle: Annotated[
        str | None, _setting("File or folder of certificate authorities to trust instead of the usual ones.")
    ] = None
    allow_http: Annotated[
        bool, _setting("Permit plain http to a host that is not loopback; the key travels unencrypted.")
    ] = False
    label: Annotated[
        str,
        _setting("Name of a run's streams in Atomscale; `{key}` is a value of the start document, `{date}` the day."),
    ] = "{plan_name} {scan_id} {date}"  # fmt: skip
    keep: Annotated[
        Keep,
        _setting("How long a run stays in the spool: until its streams are finalized, or until it was also read back "
                 "and every point was equal."),
    ] = "finalized"  # fmt: skip
    clock: Annotated[
        ClockOf,
        _setting("Times as Bluesky recorded them on this host, or shifted to the server's clock, by the same amount "
                 "for the whole run. If that clock is more than a day off, times are not shifted."),
    ] = "host"  # fmt: skip
    probed: Annotated[
        bool,
        _setting("For settings that are not given, use what this endpoint permits, as `atomscale-bluesky probe` has "
                 "found out."),
    ] = False  # fmt: skip
    resend: Annotated[
        bool, _setting("Send a run again that was sent before, for instance when recorded documents are replayed.")
    ] = False
    offline: Annotated[bool, _setting("Spool only; send nothing.")] = False
    announce: Annotated[
        Announce,
        _setting("Print a line when a run begins and when its delivery ends: where the operator sees it (a terminal or "
                 "a notebook), always, or never."),
    ] = "auto"  # fmt: skip

    def __repr__(self) -> str:
        """Return a text with all settings. Of the key it only says that it is set."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the same for rich, which would show the key otherwise."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["api_key"] = "<set>" if self.api_key else None
        return list(shown.items())

    @property
    def spool_path(self) -> Path:
        """The spool's folder, which is the named folder, or its subfolder if the named one holds other files.

        Raises:
            SpoolError: Each of the possible folders holds other files.
            SettingsError: As for `named_folder`.
        """
        return spool_folder(self.named_folder)

    def locate_spool(self) -> Path:
        """Return the folder of the spool, to open it. Warns once per process if it is not the named folder.

        Raises:
            SpoolError: As for `spool_path`.
            SettingsError: As for `named_folder`.
        """
        path = self.spool_path
        warn_if_elsewhere(self.named_folder, path)
        return path

    @property
    def named_folder(self) -> Path:
        """The folder that is named for the spool. `spool_path` is the folder where the spool is.

        Raises:
            SettingsError: It is in a home folder that is not known.
        """
        path = default_spool() if self.spool_dir is None else with_home(Path(self.spool_dir))
        if path is None:
            given = "not given" if self.spool_dir is None else repr(self.spool_dir)
            raise SettingsError(
                f"setting 'spool_dir' is {given}, and no home folder is known: set it to the whole path of a folder"
            )
        return path.absolute()

    @classmethod
    def load(cls, *, environ: Mapping[str, str] | None = None, file: Path | None = None, **arguments: Any) -> Settings:
        """Gather and check all settings. An argument that is None counts as not given.

        Args:
            environ: Used instead of `os.environ`.
            file: Used instead of the user's `settings.toml`. A file named here or by the environment must exist.
            **arguments: Settings by name.

        Raises:
            SettingsError: A setting is unknown or its value cannot be used.
        """
        environ = os.environ if environ is None else environ
        merged = from_file(file, environ) | from_environment(FIELDS, environ) | from_arguments(arguments)
        if (relative := relative_spool(merged)) is not None:
            _logger.warning("%s; %s", relative, RELATIVE_REMEDY)
        return cls.made_of({name: checked_value(name, value, source) for name, (value, source) in merged.items()})

    @classmethod
    def made_of(cls, given: Mapping[str, Any]) -> Settings:
        """Return the settings with these checked values, and with what a probe permits for the others.

        Raises:
            SettingsError: The values do not fit together.
        """
        settings = cls(**given)
        if settings.probed:
            settings = msgspec.structs.replace(settings, **_permitted(settings) | dict(given))
        return _check_together(settings)

    def replaced(self, **arguments: Any) -> Settings:
        """Return these settings, with other values for the arguments that are not None.

        Raises:
            SettingsError: A setting is unknown or its value cannot be used.
        """
        given = {name: checked_value(name, value, "argument") for name, value in arguments.items() if value is not None}
        if self.probed and given.get("endpoint", self.endpoint) != self.endpoint:
            raise SettingsError("setting 'probed' is on, for another endpoint: give the endpoint to Settings.load")
        return _check_together(msgspec.structs.replace(self, **given))


FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


def checked_value(name: str, value: Any, source: str) -> Any:
    """Return a setting's value in its own type.

    Raises:
        SettingsError: The setting is unknown, or the value cannot be used.
    """
    return value_of(checked_name(name, source), value, source)


def checked_name(name: str, source: str) -> msgspec.structs.FieldInfo:
    """Return the setting of this name.

    Raises:
        SettingsError: There is none.
    """
    field = FIELDS.get(name)
    if field is None:
        meant = setting_meant(name, FIELDS)
        hint = f"did you mean {meant!r}? " if meant else ""
        raise SettingsError(f"there is no setting {name!r} ({source}); {hint}there are {', '.join(sorted(FIELDS))}")
    return field


def refuse_other_arguments(given: Iterable[str], taken: Container[str], caller: str) -> None:
    """Raise an error if an argument is not one that the caller takes.

    Args:
        given: The names of the arguments.
        taken: The names that the caller takes.
        caller: Its name, for the error.

    Raises:
        SettingsError: There is another argument. Names the nearest setting, or how this setting is given.
    """
    for name in given:
        if name in taken:
            continue
        checked_name(name, "argument")
        raise SettingsError(
            f"{caller} has no argument {name!r}, but there is a setting of this name: write "
            f"{caller}(settings=Settings.load({name}=...)), or give it by environment or file"
        )


def _permitted(settings: Settings) -> dict[str, Any]:
    """Return the settings that a probe of the endpoint has found to be permitted."""
    found = read_findings(settings.spool_path, settings.endpoint)
    if found is None:
        _logger.warning(
            "nothing is known of what %s permits, so nothing that is not documented is used: run `atomscale-bluesky "
            "probe`, or leave out the setting `probed`", settings.endpoint,
        )  # fmt: skip
        return {}
    return {name: checked_value(name, value, "probe") for name, value in found.permitted.items() if name in FIELDS}


def _check_together(settings: Settings) -> Settings:
    """Check what depends on several settings together."""
    if urlsplit(settings.endpoint).scheme == "http" and not is_loopback(settings.endpoint) and not settings.allow_http:
        raise SettingsError(
            f"setting 'endpoint' is {settings.endpoint!r}: plain http would carry the API key readable over the "
            f"network. Use https, or set allow_http if this is what you want."
        )
    return settings
