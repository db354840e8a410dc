"""`atomscale-bluesky metrics`: the account of spools, for Prometheus."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from .delivering import logged_as_a_service
from .formatting import console, safe
from .status import open_spool


class Address(click.ParamType):
    """Where to listen: `127.0.0.1:9464`, `[::1]:9464`."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return host and port."""
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            self.fail(f"{safe(repr(value))} is no address; write host and port, as in 127.0.0.1:9464", param, ctx)
        return host, int(port)


@click.command
@click.argument("spools", metavar="[SPOOL]...", nargs=-1, type=click.Path(file_okay=False, path_type=Path))
@click.option("--listen", type=Address(), default="127.0.0.1:9464", show_default=True, metavar="HOST:PORT",
              help="Answer there; port 0 takes any free one.")  # fmt: skip
@click.option("--allow-remote", is_flag=True, help="Permit a host that other machines can reach.")
def metrics(spools: tuple[Path, ...], listen: tuple[str, int], allow_remote: bool) -> None:
    """Serve the counts of spools to Prometheus, at /metrics.

    It runs beside the plan in a process of its own, reads the spools' files, and changes nothing. It needs no key.
    Without a SPOOL it reads that of the settings. A SPOOL need not be there yet.

    Only this machine can reach it, unless --allow-remote is given. Every program that reaches it can read the names of
    the spools' folders and how much is in them, but no reading, no name of a run and no key.
    """
    from ..server import serve_app
    from ..settings import Settings
    from ..status.spool_figures import SpoolFigures
    from .exposition import MetricsApp, SpoolCollector, Watched

    chosen = [Settings.load(spool_dir=path) for path in spools] or [Settings.load()]
    watched: dict[Path, Watched] = {}
    for settings in chosen:
        open_spool(settings)  # a folder that cannot be used is reported now
        path = settings.spool_path
        figures = SpoolFigures(lambda settings=settings: open_spool(settings))
        figures.read()  # the counting begins now, and the first answer is quick
        watched[path] = Watched(path, figures, settings.spool_max_bytes, settings.spool_min_free_bytes)
    collector = SpoolCollector(watched.values(), importlib.metadata.version("atomscale-bluesky"))

    def ready(url: str) -> None:
        out = console()
        out.print(f"The metrics are at {url}/metrics; stop it with Ctrl-C.", soft_wrap=True)
        for path in watched:
            out.print(Text(f"They are of the spool {safe(path)}."), soft_wrap=True)

    host, port = listen
    with logged_as_a_service():
        serve_app(MetricsApp(collector), host=host, port=port, allow_remote=allow_remote, ready=ready)
