"""A local Atomscale: a real HTTP server with a real database that refuses what the API does not promise to take.

It offers the streaming calls under both path families, reads back what it stored, and has the catalogue, instruments,
physical samples, projects, tags and clock that a streaming client uses. Its page (folder `page`) shows the streams as
they grow. With `control` a test can inspect it and make it misbehave, by faults described as data. It is made for
tests, demonstrations and dry runs on one machine. It analyses nothing.

    local_server     runs a server in a thread or in the foreground; options, how it is configured; ending, when it ends
    instance         one server inside its event loop: its parts, and its two ports
    listener         a port that opens and closes; guard, which refuses requests from web pages of another origin
    middleware       what every request passes before its route: limits, faults, the log of requests
    routes           the paths of the API; request_bodies, the bodies that they take
    streams          the metrology streams: initialize, push, finalize, read back
    catalogue        the items around them: instruments, samples, projects, tags, entries
    rules            what the API does not promise to take, and how it is refused
    store            the database
    page_source      what the page shows; page_server, serves it for the runs of spools, and other web applications
    faults           the names of the calls, and how a test makes them fail; request_log, what a test reads of them
    control_client   a test's end of the control port; control_routes, the server's
    docs_page        the page that describes the API; api_description, answers and examples in its description
"""

from .control_client import ChannelPoints, Control, ServerInfo, StreamState
from .faults import LOGIN_PAGE, CallName, Fault, FaultState
from .local_server import DEFAULT_API_KEY, DEFAULT_PORT, LocalServer, serve
from .options import DEFAULT_INSTRUMENTS, Family, Instrument
from .page_server import serve_app, serve_page
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
    "serve_app",
    "serve_page",
]
