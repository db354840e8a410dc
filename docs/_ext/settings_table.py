"""The directive `settings-table`: every setting, its default and what it chooses, as the package itself says it."""

from __future__ import annotations

import typing

import msgspec
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atomscale_bluesky import settings


def table() -> str:
    """The settings as a table in Markdown, in the order of the source."""
    hints = typing.get_type_hints(settings.Settings, include_extras=True)
    lines = ["| setting | default | what it chooses |", "|---|---|---|"]
    for field in msgspec.structs.fields(settings.Settings):
        meta = next(part for part in hints[field.name].__metadata__ if isinstance(part, msgspec.Meta))
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        values = [value for value in typing.get_args(typing.get_args(hints[field.name])[0]) if isinstance(value, str)]
        text = meta.description or ""
        if values:
            text += " One of " + ", ".join(f"`{value}`" for value in values) + "."
        low, high = meta.ge if meta.ge is not None else meta.gt, meta.le
        if high is not None:
            text += f" {'Above' if meta.gt is not None else 'From'} {low} to {high}."
        elif low is not None:
            text += f" {low} or more."
        lines.append(f"| `{field.name}` | {_shown(default)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None or default == {}:
        return "–"
    if isinstance(default, tuple):
        return ", ".join(f"`{part}`" for part in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


class SettingsTable(SphinxDirective):
    """Puts the table where it stands."""

    def run(self) -> list[nodes.Node]:
        """The table, parsed as the page around it is."""
        self.env.note_dependency(settings.__file__)
        return self.parse_text_to_nodes(table())


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("settings-table", SettingsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
