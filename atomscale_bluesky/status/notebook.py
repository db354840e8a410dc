"""Writes tables for notebooks as HTML. Pure.

Every text is escaped, so a name from a document is never taken for markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..model.text import safe


def escaped(text: str) -> str:
    """Return a text as HTML that shows it."""
    from html import escape  # reads a table of all entities, which only a notebook needs

    return escape(text)


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a line above it. Numbers are aligned to the right, and None is an empty cell."""
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<div>{escaped(safe(title))}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"<td style='text-align: right'>{value:,}</td>".replace(",", "&nbsp;")
    return f"<td>{'' if value is None else escaped(safe(str(value)))}</td>"
