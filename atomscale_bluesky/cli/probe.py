"""`atomscale-bluesky probe`: find out what the server accepts beyond what is documented."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from .formatting import console, safe
from .options import Once

if TYPE_CHECKING:
    from ..status.probe_results import Fact, Findings

_STREAMS = 5


@click.command
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--endpoint", cls=Once, metavar="URL", help="Probe the API there.")
@click.option(
    "--physical-sample-id", help="Link two more streams to this sample, to see whether the server takes that."
)
@click.option(
    "--largest-body", "largest_body_bytes", type=click.IntRange(2**16, 2**27), default=2**22, show_default=True,
    help="The largest request to try, in bytes.",
)  # fmt: skip
@click.option(
    "--spool-dir",
    cls=Once,
    type=click.Path(file_okay=False, path_type=Path),
    help="The spool that keeps what was found.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe(
    yes: bool,
    endpoint: str | None,
    physical_sample_id: str | None,
    largest_body_bytes: int,
    spool_dir: Path | None,
    as_json: bool,
) -> int:
    """Find out what the server accepts beyond what is documented.

    Makes a few small streams on your account, named as a probe, and tries on them what the documentation leaves open.
    Then it reads them back and finalizes them. The answers are kept for this endpoint, and used if the setting `probed`
    is on.

    The exit code is 1 if a question could not be answered, and 0 otherwise.
    """
    from .. import __version__
    from ..api.client import Client
    from ..checks.probe import Probe
    from ..model.identifiers import uuid_of
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.probe_results import Findings, write_findings

    settings = Settings.load(endpoint=endpoint, spool_dir=spool_dir)
    if not settings.api_key:
        raise click.ClickException("there is no API key; put the key of your Atomscale account into ATOMSCALE_API_KEY")
    if physical_sample_id is not None:
        try:
            physical_sample_id = uuid_of(physical_sample_id)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--physical-sample-id") from None
    spool = Spool(settings.locate_spool(), min_free_bytes=settings.spool_min_free_bytes)
    if not yes:
        streams = _STREAMS + 2 * (physical_sample_id is not None)
        click.confirm(f"Make {streams} small streams at {safe(settings.endpoint)}?", abort=True)
    client = Client(settings)
    asked = Probe(client, largest_body_bytes=largest_body_bytes, physical_sample_id=physical_sample_id)
    try:
        facts = tuple(asked.facts())
    finally:
        client.close()
        if asked.left_open:
            ids = ", ".join(map(safe, asked.left_open))
            console(stderr=True).print(f"Not finalized, because the server does not take it: {ids}.", soft_wrap=True)
    found = Findings(settings.endpoint, time.time(), __version__, facts)
    write_findings(spool.path, found)
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(found) | {"permitted": found.permitted}, indent=2))
    else:
        _print(found)
    return int(any(fact.answer is None for fact in facts))


def _print(found: Findings) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("question", "answer", "told by"):
        table.add_column(title, overflow="fold")
    for fact in found.facts:
        table.add_row(Text(fact.question), _answer(fact), Text(safe(fact.evidence)))
    out = console()
    out.print(table)
    permitted = ", ".join(f"{name} = {json.dumps(value)}" for name, value in found.permitted.items())
    out.print()
    out.print(
        f"Permitted at {safe(found.endpoint)}: {permitted or 'nothing beyond what is documented'}."
        + (" The setting `probed` takes it." if permitted else ""),
        soft_wrap=True,
    )


def _answer(fact: Fact) -> Text:
    match fact.answer:
        case None:
            return Text("unknown", style="yellow")
        case True:
            return Text("yes", style="green")
        case False:
            return Text("no")
        case value:
            return Text(str(value))
