"""`instruments`, `samples`, `projects`: the ids that a run's metadata name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from .asking import asking
from .formatting import console, safe
from .options import Once

if TYPE_CHECKING:
    from ..api.client import Client

_text = click.argument("text", required=False, default="")
_endpoint = click.option("--endpoint", cls=Once, metavar="URL", help="Ask the API there.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command
@_text
@_endpoint
@_json
def instruments(text: str, endpoint: str | None, as_json: bool) -> int:
    """List the growth instruments, for `synth_source_id`; with TEXT, those whose name or id contains it."""
    return _list("synth_source_id", text, endpoint, as_json, lambda client: sorted(client.instruments().items()))


@click.command
@_text
@_endpoint
@_json
def samples(text: str, endpoint: str | None, as_json: bool) -> int:
    """List the physical samples, for `physical_sample`; with TEXT, those whose name or id contains it."""
    return _list("physical_sample_id", text, endpoint, as_json, lambda client: client.samples())


@click.command
@_text
@_endpoint
@_json
def projects(text: str, endpoint: str | None, as_json: bool) -> int:
    """List the projects, for `project_id`; with TEXT, those whose name or id contains it."""
    return _list("project_id", text, endpoint, as_json, lambda client: client.projects())


def _list(
    member: str,
    text: str,
    endpoint: str | None,
    as_json: bool,
    ask: Callable[[Client], Iterable[tuple[int | str, str]]],
) -> int:
    from ..settings import Settings

    with asking(Settings.load(endpoint=endpoint)) as client:
        found = [(number, name) for number, name in ask(client) if text.casefold() in f"{number} {name}".casefold()]
    if as_json:
        click.echo(json.dumps([{member: number, "name": name} for number, name in found], indent=2))
        return 0
    if not found:
        console().print(f"There are none{' with ' + safe(repr(text)) if text else ''}.")
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column(member, no_wrap=True)
    table.add_column("name", overflow="fold")
    for number, name in found:
        table.add_row(Text(safe(number)), Text(safe(name)))
    console().print(table)
    return 0
