"""Options that may be given only once."""

from __future__ import annotations

from typing import Any

import click


class Once(click.Option):
    """An option with one value. A second value is refused, and does not silently take the place of the first one."""

    def __init__(self, *names: Any, **attributes: Any) -> None:
        super().__init__(*names, multiple=True, **attributes)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value, or None if none is given.

        Raises:
            click.UsageError: There are several, or it is empty, as from a variable of the shell that is not set.
        """
        given = value if isinstance(value, list | tuple) else ()  # click has a sentinel for an option that is not given
        if any(isinstance(text, str) and not text.strip() for text in given):
            raise click.UsageError(f"{self.opts[0]} is given without a value; give one, or leave it out", ctx)
        values = super().process_value(ctx, value)
        if len(values) > 1:
            raise click.UsageError(f"{self.opts[0]} is given {len(values)} times; run the command once for each", ctx)
        return values[0] if values else None
