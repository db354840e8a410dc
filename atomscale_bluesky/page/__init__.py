"""The web page that shows streams while they grow: static files, and the application that serves them.

In: a `Source`, which says what there is to see. The local server has one for its streams, the command `board` one for
spools.
Out: the page, and its data as JSON.
Guaranteed: read only. The page loads nothing from another host, runs no script but its own files, and never takes a
text for markup. No other web page can read the data. Nothing here imports another folder, so the server may use it.
Bounded: what is kept and sent of a stream, by the number of points (`MAX_KEPT`, `MAX_SENT`).

    records  what a source tells: overview, stream, channel. Pure.
    trace    the points of a channel, thinned to a bounded number. Pure.
    app      the ASGI application, and which paths are its own
    static   a folder: page.html, page.js, page.css, and uPlot, which draws (unmodified, with its licence and version)
"""

from .app import PageApp, Source, is_page_path
from .records import Channel, Mark, Outage, Overview, Requests, Stream, StreamLine
from .trace import MAX_KEPT, MAX_SENT, Trace, sparkline

__all__ = [
    "MAX_KEPT",
    "MAX_SENT",
    "Channel",
    "Mark",
    "Outage",
    "Overview",
    "PageApp",
    "Requests",
    "Source",
    "Stream",
    "StreamLine",
    "Trace",
    "is_page_path",
    "sparkline",
]
