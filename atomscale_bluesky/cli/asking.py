"""What the commands that ask the API share: the key that they need, and what they say while and if no answer comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .formatting import safe

if TYPE_CHECKING:
    from ..api.client import Client
    from ..settings import Settings

# After how long without an answer a command says that it waits.
SAID_AFTER_S = 3.0


@contextmanager
def says_that_it_waits(settings: Settings, more: str = "") -> Iterator[None]:
    """Say on standard error, once, that the server is waited for, if the `with` lasts longer than three seconds.

    Args:
        settings: Of the command.
        more: What else to say about how long that may take.
    """
    text = f"atomscale-bluesky: waiting for {safe(settings.endpoint)} to answer; a request may take up to "
    text += f"{settings.request_timeout_s:g} s{more}"
    timer = threading.Timer(SAID_AFTER_S, click.echo, (text,), {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def asking(settings: Settings) -> Iterator[Client]:
    """Give the `with` a client.

    Raises:
        click.ClickException: There is no API key, or the API does not answer.
    """
    from ..api.client import Client
    from ..errors import ApiUnavailableError

    if not settings.api_key:
        raise click.ClickException("there is no API key; put the key of your Atomscale account into ATOMSCALE_API_KEY")
    client = Client(settings)
    try:
        with says_that_it_waits(settings):
            yield client
    except ApiUnavailableError as error:
        raise click.ClickException(
            f"Atomscale at {safe(settings.endpoint)}: {safe(error)}; `atomscale-bluesky doctor` checks the way there"
        ) from None
    finally:
        client.close()
