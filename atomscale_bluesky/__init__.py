"""Stream Bluesky runs to Atomscale while the plan runs.

from bluesky import RunEngine
from atomscale_bluesky import AtomscaleCallback

RE = RunEngine({"synth_source_id": 42})
RE.subscribe(AtomscaleCallback())
"""

from .callback import AtomscaleCallback
from .documents.accepted import Accepted
from .documents.recorder import DocumentRecorder
from .documents.validation import validate_metadata
from .errors import (
    ApiError,
    ApiKeyError,
    ApiRefusedError,
    ApiTooLargeError,
    ApiUnavailableError,
    AtomscaleBlueskyError,
    ChannelError,
    DocumentError,
    MetadataError,
    SettingsError,
    SpoolError,
    SpoolFullError,
    StartMissingError,
)
from .settings import Settings

__version__: str

__all__ = [
    "Accepted",
    "ApiError",
    "ApiKeyError",
    "ApiRefusedError",
    "ApiTooLargeError",
    "ApiUnavailableError",
    "AtomscaleBlueskyError",
    "AtomscaleCallback",
    "ChannelError",
    "DocumentError",
    "DocumentRecorder",
    "MetadataError",
    "Settings",
    "SettingsError",
    "SpoolError",
    "SpoolFullError",
    "StartMissingError",
    "__version__",
    "validate_metadata",
]


def __getattr__(name: str) -> str:
    """Return the version, which is looked up among the installed packages when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("atomscale-bluesky")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"
