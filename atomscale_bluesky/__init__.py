"""Stream Bluesky runs to Atomscale while the plan runs.

from bluesky import RunEngine
from atomscale_bluesky import AtomscaleCallback

RE = RunEngine({"synth_source_id": 42})
RE.subscribe(AtomscaleCallback())
"""

from importlib.metadata import PackageNotFoundError, version

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

try:
    __version__ = version("atomscale-bluesky")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

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
