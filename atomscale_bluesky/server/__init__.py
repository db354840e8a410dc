"""A local Atomscale: a real HTTP server with a real database that refuses what the API does not promise to take.

It offers the streaming calls under both path families, reads back what it stored, and has the catalogue, instruments,
physical samples, projects, tags and clock that a streaming client uses. Its page (folder `page`) shows the streams as
they grow. With `control` a test can inspect it and make it misbehave, by faults described as data. It is made for
tests, demonstrations and dry runs on one machine. It analyses nothing.
"""

from .control_client import ChannelPoints, Control, ServerInfo, StreamState
from .faults import LOGIN_PAGE, CallName, Fault, FaultState
from .local_server import DEFAULT_API_KEY, DEFAULT_PORT, LocalServer, serve
from .options import DEFAULT_INSTRUMENTS, Family, Instrument
from .request_log import RequestCounts, RequestRecord
from .rules import Rule

__all__ = [
    "DEFAULT_API_KEY",
    "DEFAULT_INSTRUMENTS",
    "DEFAULT_PORT",
    "LOGIN_PAGE",
    "CallName",
    "ChannelPoints",
    "Control",
    "Family",
    "Fault",
    "FaultState",
    "Instrument",
    "LocalServer",
    "RequestCounts",
    "RequestRecord",
    "Rule",
    "ServerInfo",
    "StreamState",
    "serve",
]
