"""`atomscale-bluesky board`: the runs of spools on a page in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click
from rich.text import Text

from .formatting import console, safe
from .status import open_spool


@click.command
@click.argument("spools", metavar="[SPOOL]...", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8043, show_default=True, help="0 takes any free port.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
def board(spools: tuple[Path, ...], port: int, opens: bool) -> None:
    """Show the runs of this machine on a page, as they grow.

    The page shows what the spools hold: every reading, delivered or not, also during an outage and without a key. It
    reads the spools' files, changes nothing, and answers this machine alone. Without a SPOOL it shows that of the
    settings.
    """
    from ..server import serve_page
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.page_source import SpoolSource

    chosen = [Settings.load(spool_dir=path) for path in spools] or [Settings.load()]

    def there() -> list[Spool]:
        return [spool for settings in chosen if (spool := open_spool(settings)) is not None]

    there()  # now, so that an unusable folder is reported before the page opens

    def ready(url: str) -> None:
        out = console()
        out.print(f"The page is at {url}; stop it with Ctrl-C.", soft_wrap=True)
        for settings in chosen:
            if open_spool(settings) is None:
                text = (
                    f"There is no spool in {safe(settings.spool_path)} yet. The page shows its runs once there are any."
                )
                out.print(Text(text, style="yellow"), soft_wrap=True)
            else:
                out.print(Text(f"It shows the runs in {safe(settings.spool_path)}."), soft_wrap=True)
        if opens:
            webbrowser.open(url)

    serve_page(SpoolSource(there, [settings.spool_path for settings in chosen]), port=port, ready=ready)
