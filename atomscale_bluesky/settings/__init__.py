"""The settings of a site, each of which has a default.

In: arguments, the environment, and a file.
Out: a frozen `Settings`.
Guaranteed: a value that cannot be used is refused with a text that names the setting, its source and what is expected.

    settings      every setting with its default, and how the sources are put together
    sources       arguments, the environment, and the file
    spool_option  which option a command needs to find the spool of these settings
    values        checks a value, and turns it into its setting's type
"""

from .settings import (
    FIELDS,
    Announce,
    Api,
    ClockOf,
    Durability,
    Keep,
    LayoutChoice,
    NonFinite,
    Settings,
    Timestamps,
    UploaderPlace,
    checked_value,
    refuse_other_arguments,
)
from .sources import (
    APP,
    RELATIVE_REMEDY,
    doubtful_variables,
    file_to_read,
    from_arguments,
    from_environment,
    from_file,
    place_of_key,
    relative_spool,
    setting_meant,
    settings_of,
    unknown_variables,
)
from .spool_option import spool_option
from .values import DEFAULT_ENDPOINT, is_loopback, path_in_endpoint

__all__ = [
    "APP",
    "DEFAULT_ENDPOINT",
    "FIELDS",
    "RELATIVE_REMEDY",
    "Announce",
    "Api",
    "ClockOf",
    "Durability",
    "Keep",
    "LayoutChoice",
    "NonFinite",
    "Settings",
    "Timestamps",
    "UploaderPlace",
    "checked_value",
    "doubtful_variables",
    "file_to_read",
    "from_arguments",
    "from_environment",
    "from_file",
    "is_loopback",
    "path_in_endpoint",
    "place_of_key",
    "refuse_other_arguments",
    "relative_spool",
    "setting_meant",
    "settings_of",
    "spool_option",
    "unknown_variables",
]
