"""`atomscale-bluesky serve`: the local server, in the foreground."""

from __future__ import annotations

import _thread
import json
import os
import sys
import threading
from pathlib import Path

import click

from .formatting import console


@click.command
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8042, show_default=True, help="0 takes any free port.")
@click.option(
    "--data", type=click.Path(dir_okay=False, path_type=Path), help="Keep the data in this file. Default: in memory."
)
@click.option("--relax", multiple=True, metavar="RULE", help="Do not insist on this rule; may be repeated.")
@click.option(
    "--family",
    "families",
    multiple=True,
    type=click.Choice(["metrology", "tool-state"]),
    help="Path family to serve; may be repeated. Default: both.",
)
@click.option(
    "--no-multi", is_flag=True, help="Do not offer chunk/multi: every channel then comes in a request of its own."
)
@click.option("--max-body-bytes", type=int, help="Answer a larger body with 413.  [default: 1 MiB]")
@click.option(
    "--silence", "silence_s", type=float, metavar="SECONDS", help="End a stream that gets no request for this long."
)
@click.option("--derived", is_flag=True, help="Return made-up derived series beside those that were streamed.")
@click.option("--control", is_flag=True, help="Let tests and demonstrations inspect the server and make it misbehave.")
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The control's port on this machine. 0, the default, takes any free port.",
)
@click.option("--allow-remote", is_flag=True, help="Permit a --host that other machines can reach.")
@click.option("--json", "as_json", is_flag=True, help="Print the address as one line of JSON.")
@click.option(
    "--until-eof", is_flag=True, help="Stop when standard input ends, which it does when the parent process ends."
)
def serve(
    host: str,
    port: int,
    data: Path | None,
    relax: tuple[str, ...],
    families: tuple[str, ...],
    no_multi: bool,
    max_body_bytes: int | None,
    silence_s: float | None,
    derived: bool,
    control: bool,
    control_port: int,
    allow_remote: bool,
    as_json: bool,
    until_eof: bool,
) -> None:
    """Run a local Atomscale server to try things on.

    It has the streaming calls of the API, keeps the data that it is sent, returns them, and refuses what the API does
    not promise to take. It analyses nothing. Its key is the word `local-key`, and protects nothing.
    """
    from ..server import DEFAULT_API_KEY
    from ..server import serve as run
    from ..server.options import MAX_BODY_BYTES

    def ready(url: str, control_url: str | None) -> None:
        if as_json:
            click.echo(json.dumps({"url": url, "control_url": control_url}))
            return
        out = console()
        out.print(f"A local Atomscale server listens on {url}; stop it with Ctrl-C.", soft_wrap=True)
        out.print("Open that address in a browser to see its streams grow.", soft_wrap=True)
        if control_url:
            out.print(f"Its control is at {control_url}.", soft_wrap=True)
        out.print(f"Data are kept in {str(data)!r}." if data else "Data are kept in memory, and end with it.")
        out.print("To stream to it, set in the environment of your Bluesky session:", soft_wrap=True)
        out.print(f"    ATOMSCALE_API_ENDPOINT={url}", soft_wrap=True)
        out.print(f"    ATOMSCALE_API_KEY={DEFAULT_API_KEY}", soft_wrap=True)

    if until_eof:
        if sys.stdin is None:
            raise click.UsageError("--until-eof needs standard input, which is closed")
        threading.Thread(target=_interrupt_at_eof, name="stdin", daemon=True).start()
    run(
        ready=ready,
        host=host,
        port=port,
        data=data,
        relax=relax,
        families=families or ("metrology", "tool-state"),
        multi=not no_multi,
        silence_s=silence_s,
        derived=derived,
        control=control,
        control_port=control_port,
        allow_remote=allow_remote,
        max_body_bytes=MAX_BODY_BYTES if max_body_bytes is None else max_body_bytes,
    )


def _interrupt_at_eof() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _thread.interrupt_main()
