"""Checks a setting's value, and turns it into the setting's type."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import FieldInfo

from ..errors import SettingsError
from ..model.endpoints import normalized_endpoint
from ..model.identifiers import tags_of, uuid_of
from ..model.metadata_keys import checked_keys
from ..model.text import encodable
from .sources import with_home

_PATHS = frozenset({"ca_bundle", "spool_dir"})

# Where one of a few words or an address is expected, a longer text may be a key.
MAX_SHOWN = 16
# In an endpoint: what shows that it is an address, and no key; the scheme, and all that may be user and password; and
# what follows the beginning of its query.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|[^/]*@", re.IGNORECASE)
_USER = re.compile(r"^([a-z]+://)?.*@", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"(?<=[?#]).+", re.DOTALL)

DEFAULT_ENDPOINT = "https://api.atomscale.ai"
# What msgspec's errors call the kinds of values.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list of texts",
    "object": "pairs such as a=b, c=d",
}


def value_of(field: FieldInfo, value: Any, source: str) -> Any:
    """Return a setting's value in its own type.

    Raises:
        SettingsError: The value cannot be used.
    """
    choices = _choices(field.type)
    shown = _shown(field.name, value, choices)
    if isinstance(value, bool) and not isinstance(field.default, bool):
        raise SettingsError(f"setting {field.name!r} ({source}) is {shown}, which is not a value for it")
    if isinstance(value, Path):
        value = str(value)
    if isinstance(field.default, tuple) and isinstance(value, str):
        value = _list_of(value)
    if not _can_be_kept(value, is_path=field.name in _PATHS):
        raise SettingsError(f"setting {field.name!r} ({source}) is {shown}, which is not text in UTF-8")
    try:
        found = msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        expected = _in_words(str(error))
        if choices:
            expected = f"expected one of {', '.join(map(repr, choices))}"
        if isinstance(value, str) and field.default_factory is not msgspec.NODEFAULT:
            expected = "expected pairs such as a=b, c=d, each name before a = once"
        raise SettingsError(f"setting {field.name!r} ({source}) is {shown}: {expected}") from None
    try:
        return _CHECKS[field.name](found) if field.name in _CHECKS else found
    except ValueError as error:
        raise SettingsError(f"setting {field.name!r} ({source}) is {shown}: {error}") from None


def _shown(name: str, value: Any, choices: tuple[Any, ...]) -> str:
    """Return a value as an error shows it, without the API key and what may be a password.

    The key is easily given to another setting by mistake: to `api`, to the endpoint, or to one of a few words.
    """
    if name in {"api_key", "api"}:
        return "<not shown>"
    if name == "endpoint":
        if not isinstance(value, str) or not (_ADDRESS.match(value) or len(value) <= MAX_SHOWN):
            return "<not shown>"
        value = _QUERY.sub("<not shown>", _USER.sub(r"\1<not shown>@", value))
    elif choices and len(str(value)) > MAX_SHOWN:
        return "<not shown>"
    return repr(value)


def _list_of(text: str) -> list[str]:
    """Return the items of a list that is written as one text, separated by commas.

    The same in every source, so that what works in a variable works in the file. An item with a comma needs a list.
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def _can_be_kept(value: Any, *, is_path: bool) -> bool:
    """Return False for text that no file can hold. A path may have bytes that are no text, as the system permits."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    texts = value if isinstance(value, list | tuple) else [value]
    return all(
        "\0" not in text and (is_path or text.isascii() or text == encodable(text))
        for text in texts
        if isinstance(text, str)
    )


def _in_words(error: str) -> str:
    """Return what a ValidationError expects, such as `Expected int | null, got str`, as a user would say it."""
    text = error.partition(" - at ")[0].partition(", got ")[0].replace("`", "").replace(" | null", "")
    word, kind, *bound = text.split(" ", 2)
    return " ".join(["expected", _KINDS[kind], *bound]) if word == "Expected" and kind in _KINDS else text


def is_loopback(endpoint: str) -> bool:
    """Return True if an endpoint is on this machine."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def path_in_endpoint(endpoint: str) -> str | None:
    """Return what may be wrong with an endpoint that has a path, or None if it has none.

    It is no error: a gateway of the site may serve the API below a path. Mostly the path belongs to some documentation,
    and each request is answered 404.
    """
    path = urlsplit(endpoint).path
    if not path:
        return None
    return (
        f"the endpoint {endpoint} has the path {path!r}, so the API is sought below it; leave it out unless a gateway "
        f"of your site serves the API there; `atomscale-bluesky doctor --endpoint {endpoint}` finds out"
    )


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return the allowed values of a setting, if it is one of a few words."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return get_args(plain) if get_origin(plain) is Literal else ()


def _ca_bundle(text: str | None) -> str | None:
    path = with_home(Path(text)) if text else None
    if text and (path is None or not path.exists()):
        raise ValueError("expected a file or folder that exists, of certificate authorities")
    return str(path) if path is not None else None


def _api_key(key: str | None) -> str | None:
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("expected printable ASCII characters, as the dashboard shows the key")
    return key or None


def _endpoint(text: str) -> str:
    plain = "expected an address without user, password, query or fragment"
    if "@" in text:  # before it is split, because the errors of `urlsplit` may show a password
        raise ValueError(plain)
    parts = urlsplit(text.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected an address such as {DEFAULT_ENDPOINT!r}")
    if parts.query or parts.fragment:
        raise ValueError(plain)
    _ = parts.port  # raises ValueError for an invalid port
    return normalized_endpoint(text)


def _label(text: str) -> str:
    try:
        text.format_map(_AnyKey())
    except (ValueError, IndexError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"expected text with names in braces, such as '{{plan_name}} {{scan_id}}' ({error})") from None
    return text


class _AnyKey(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        return _AnyValue()


class _AnyValue:
    """Stands for a start document's value, which may be a number, as `{scan_id:04d}` needs, or text."""

    def __format__(self, spec: str) -> str:
        return ""


def _spool_dir(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("expected the path of a folder; leave it out for the folder that is used by default")
    if text is not None and with_home(Path(text)) is None:
        raise ValueError("expected the whole path of a folder, because no home folder is known for it")
    return text


def _project_id(text: str | None) -> str | None:
    return uuid_of(text) if text and text.strip() else None


_CHECKS: dict[str, Any] = {
    "api_key": _api_key,
    "ca_bundle": _ca_bundle,
    "endpoint": _endpoint,
    "label": _label,
    "metadata_keys": checked_keys,
    "project_id": _project_id,
    "spool_dir": _spool_dir,
    "tags": tags_of,
}
