"""`atomscale-bluesky send`: recorded runs from files, into the spool and to Atomscale."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import click

from .send_tiled import send_tiled
from .sending import HowFar, Origin, common_options, send_runs

if TYPE_CHECKING:
    from ..documents.recorder import DocumentRecorder


class _Send(click.Command):
    """The command for files, and with `tiled` as first word the one for catalogues."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments."""
        if args[:1] == ["tiled"]:
            return send_tiled.make_context(f"{info_name} tiled", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Send)
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE…", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@common_options
def send(files: tuple[str, ...], **options: Any) -> int:
    """Send recorded runs.

    Each FILE holds the documents of one or several runs, as JSON lines, a JSON array or MessagePack, and may be
    compressed by gzip, bzip2 or xz. `-` is standard input. The kind of a file is recognised by its content.

    `send tiled` takes runs from a Tiled catalogue instead of files; see `send tiled --help`.

    The runs keep their own times. Give the same command again whenever you like, even after Ctrl-C or a crash: a run
    that was sent is recognised by its uid and not sent again, and an interrupted run is continued. The options for
    instrument, sample and tags apply to runs whose own metadata name none; no document is changed.

    The exit code is 0 only if every document could be used, every run has its stop document, and all is delivered. It
    is 130 after Ctrl-C and 143 after SIGTERM.
    """
    from ..sources.recordings import Recordings

    def begin(_: DocumentRecorder | None, ending: threading.Event) -> Origin:
        source = Recordings(files, ending)
        total = source.total_bytes
        of = "" if total is None else f" of {total / 1e6:.1f}"
        return Origin(source, lambda: HowFar(source.read_bytes, total, f"read {source.read_bytes / 1e6:.1f}{of} MB"))

    return send_runs(begin, **options)
