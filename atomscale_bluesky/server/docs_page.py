"""Renders the OpenAPI description as one HTML page that needs no script and no other host, so it works offline."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2330; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem; }
th, td { border-bottom: 1px solid #d5dae3; padding: .35rem .6rem; text-align: left; vertical-align: top; }
code { font: 13px ui-monospace, monospace; }
"""


def docs_page(schema: dict[str, Any]) -> str:
    """Return a page with a table of the calls, and one table per request body, from an OpenAPI `schema`."""
    title = escape(schema["info"]["title"])
    calls = "".join(
        _row(method.upper(), _code(path), escape(call.get("description", "")), _parameters(call), _link(call))
        for path, methods in schema["paths"].items()
        for method, call in methods.items()
    )
    components = schema.get("components", {}).get("schemas", {})
    bodies = "".join(_body(name, body) for name, body in components.items() if "properties" in body)
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>{escape(schema['info'].get('summary', ''))} Every call but the clock's needs the"
        " header <code>X-API-KEY</code>. The description itself is <a href='/openapi.json'>openapi.json</a>.</p>"
        f"<table><tr><th></th><th>path</th><th>what it does</th><th>parameters</th><th>body</th></tr>{calls}</table>"
        f"{bodies}</body></html>"
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _parameters(call: dict[str, Any]) -> str:
    return ", ".join(_code(parameter["name"]) for parameter in call.get("parameters", ()))


def _link(call: dict[str, Any]) -> str:
    body = call.get("requestBody")
    if body is None:
        return ""
    name = escape(body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])
    return f"<a href='#{name}'>{name}</a>"


def _body(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        _row(_code(member), _code(_kind(kind)), "required" if member in required else "")
        for member, kind in schema["properties"].items()
    )
    return f"<h2 id='{escape(name)}'>{escape(name)}</h2><table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """Return a member's type in a few words."""
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return str(schema.get("format", schema.get("type", "any")))
