"""Tables that the package itself tells: `settings-table`, `rules-table`, `loss-table`, `lines-table`, `fields-table`,
`metrics-table`.

What a field means is written in the source, as the comment behind or above it, or in `settings` as its description. So
what a reader finds here cannot differ from what the code says.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing

import msgspec
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atomscale_bluesky import settings
from atomscale_bluesky.cli import exposition
from atomscale_bluesky.model.loss import Loss
from atomscale_bluesky.server import Rule
from atomscale_bluesky.spool import journal_format, ledger_format, orders

# Which file has the union of all lines of a kind of file.
_UNIONS = {"JournalLine": journal_format, "LedgerLine": ledger_format, "OrderLine": orders}


def settings_table() -> str:
    """The settings, in the order of the source."""
    hints = typing.get_type_hints(settings.Settings, include_extras=True)
    fields = msgspec.structs.fields(settings.Settings)
    # So that the search finds each setting: an entry with an exclamation mark comes first among its results.
    rows = [line for field in fields for line in (f"```{{index}} ! single: {field.name}", "```", "")]
    rows += ["| setting | default | what it chooses |", "|---|---|---|"]
    for field in fields:
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
        rows.append(f"| `{field.name}` | {_shown(default)} | {_cell(text)} |")
    return "\n".join(rows)


def rules_table() -> str:
    """The rules of the local server, in the order of the source."""
    rows = ["| rule | status | what it demands |", "|---|---|---|"]
    rows += [f"| `{rule.value}` | {rule.status} | {_cell(rule.doc)} |" for rule in Rule]
    return "\n".join(rows)


def loss_table() -> str:
    """The reasons why a reading does not become a point, in the order of the source."""
    rows = ["| reason | when |", "|---|---|"]
    rows += [f"| `{loss.value}` | {_cell(loss.explanation)} |" for loss in Loss]
    return "\n".join(rows)


def metrics_table(kind: str) -> str:
    """The metrics that are `gauges` or `counters`, in the order of the source."""
    rows = ["| metric | labels beside `spool` | what it is |", "|---|---|---|"]
    end = "_total" if kind == "counters" else ""
    for name, (text, labels) in {"gauges": exposition.GAUGES, "counters": exposition.COUNTERS}[kind].items():
        rows.append(f"| `{name}{end}` | {', '.join(f'`{label}`' for label in labels) or '–'} | {_cell(text)} |")
    return "\n".join(rows)


def lines_table(union: str) -> str:
    """The kinds of line that a file of the spool may hold, for `JournalLine`, `LedgerLine` or `OrderLine`."""
    rows = ["| `kind` | what it says | members |", "|---|---|---|"]
    for kind in typing.get_args(getattr(_UNIONS[union], union)):
        members = "; ".join(
            f"`{name}`" + (f": {_cell(comment)}" if comment else "") for name, _, comment in _fields(kind)
        )
        said = (inspect.getdoc(kind) or "").partition("\n")[0]
        rows.append(f"| `{kind.__struct_config__.tag}` | {_cell(said)} | {members or '–'} |")
    if union == "LedgerLine":
        reasons = ", ".join(f'"{reason}"' for reason in typing.get_args(ledger_format.OpeningReason))
        rows += ["", f"`why` is one of {reasons}."]
    return "\n".join(rows)


def fields_table(path: str) -> str:
    """One class: what it is, and its fields with the comment of each."""
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    said = (inspect.getdoc(cls) or "").partition("\n")[0]
    rows = [f"```{{py:class}} {path}", said, "```", "", "| field | type | what it is |", "|---|---|---|"]
    for field, kind, comment in _fields(cls):
        rows.append(f"| `{field}` | `{_cell(kind)}` | {_cell(comment) or '–'} |")
    return "\n".join(rows)


def _fields(cls: type) -> list[tuple[str, str, str]]:
    """Return name, type and comment of each field, as the source has them.

    The comment stands behind the field or above it, or is a text below it.
    """
    source = inspect.getsource(cls)
    texts = source.splitlines()
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    ours = [base for base in cls.__bases__ if base.__module__ == cls.__module__]
    found: list[tuple[str, str, str]] = [one for base in ours for one in _fields(base)]
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.annotation).startswith("ClassVar"):
            continue
        comment = re.search(r"#\s(.*)$", texts[node.end_lineno - 1])
        text = comment[1] if comment else _comment_above(texts, node.lineno - 1)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        found.append((typing.cast(ast.Name, node.target).id, ast.unparse(node.annotation), text))
    return found


def _comment_above(texts: list[str], field: int) -> str:
    """Return the lines of comment directly above a line of the source, as one text; empty if there are none."""
    begin = field
    while begin and texts[begin - 1].lstrip().startswith("# "):
        begin -= 1
    return " ".join(text.strip().removeprefix("# ") for text in texts[begin:field])


def _cell(text: str) -> str:
    return text.replace("|", chr(92) + "|").replace("\n", " ")


def _shown(default: object) -> str:
    if default in (None, {}, ()):
        return "–"
    if isinstance(default, tuple):
        return ", ".join(f"`{part}`" for part in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


class _Table(SphinxDirective):
    """Puts a table where it stands, parsed as the page around it is."""

    optional_arguments = 1
    table: typing.ClassVar[typing.Callable[..., str]]

    def run(self) -> list[nodes.Node]:
        for told in (settings.Settings, Loss, Rule):
            self.env.note_dependency(inspect.getfile(told))
        for module in (*_UNIONS.values(), exposition):
            self.env.note_dependency(module.__file__)
        return self.parse_text_to_nodes(type(self).table(*self.arguments))


def _fences(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """A fence of Markdown in a docstring becomes what autodoc understands."""
    out: list[str] = []
    inside = False
    for line in lines:
        if line.strip().startswith("```"):
            inside = not inside
            out += ["", f".. code-block:: {line.strip().strip('`') or 'text'}", ""] if inside else [""]
        else:
            out.append(f"    {line}" if inside else line)
    lines[:] = out


def _signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, arguments: str | None, returned: str | None
) -> tuple[str, None] | None:
    """Return the arguments of a class's `__init__` where a `__new__` beside it takes anything."""
    if not isinstance(obj, type) or "__new__" not in vars(obj) or "__init__" not in vars(obj):
        return None
    parameters = list(inspect.signature(vars(obj)["__init__"]).parameters.values())[1:]
    return str(inspect.Signature(parameters)).replace("'", ""), None


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives."""
    for table in (settings_table, rules_table, loss_table, lines_table, fields_table, metrics_table):
        name = table.__name__.replace("_", "-")
        app.add_directive(name, type(name, (_Table,), {"table": staticmethod(table)}))
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _fences)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
