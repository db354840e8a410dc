"""What the commands that only ask the API share: the key that they need, and what they say if no answer comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .formatting import safe

if TYPE_CHECKING:
    from ..api.client import Client
    from ..settings import Settings


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
        yield client
    except ApiUnavailableError as error:
        raise click.ClickException(
            f"Atomscale at {safe(settings.endpoint)}: {safe(error)}; `atomscale-bluesky doctor` checks the way there"
        ) from None
    finally:
        client.close()
