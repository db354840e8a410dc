"""The form in which an endpoint of the API is kept and compared. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit


def normalized_endpoint(text: str) -> str:
    """Return an endpoint with scheme and host in lower case, and without a slash at its end. The path keeps its case.

    Text that is no address is returned as it is.
    """
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return text
    if not parts.scheme or not parts.netloc:
        return text
    host, percent, zone = parts.netloc.partition("%")  # the zone of an IPv6 address keeps its case
    return f"{parts.scheme}://{host.lower()}{percent}{zone}{parts.path}".rstrip("/")
