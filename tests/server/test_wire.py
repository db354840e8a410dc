"""The server answers as the bodies in `tests/api/wire` say, which are written from the API's reference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from atomscale_bluesky.server import CallName

WIRE = Path(__file__).parents[1] / "api" / "wire"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


class Conversation:
    """Exchanges with one server; the identities it gives stand for those of the files from then on."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.given: dict[str, str] = {}
        self.done: set[str] = set()

    def hold(self, name: str) -> None:
        """The exchange `name`, and before it those that it comes after."""
        if name in self.done:
            return
        self.done.add(name)
        exchange = json.loads((WIRE / f"{name}.json").read_text())
        for earlier in exchange.get("after", ()):
            self.hold(earlier)
        answer = self.api.session.request(
            exchange["method"],
            self.api.server.url + self.ours(exchange["path"]),
            headers=exchange.get("headers"),
            data=None if exchange["request"] is None else self.ours(json.dumps(exchange["request"])),
            timeout=10,
        )
        assert answer.status_code == exchange["status"], answer.text
        assert self.api.server.requests()[-1].call != CallName.OTHER, "the call has no name that a fault could give"
        self.agree(exchange["response"], answer.json(), name)

    def ours(self, text: str) -> str:
        return UUID.sub(lambda found: self.given.get(found[0], found[0]), text)

    def agree(self, expected: Any, actual: Any, where: str) -> None:
        """Every member of the file is in the answer; identities, moments and clocks are only alike."""
        if isinstance(expected, dict):
            for key, value in expected.items():
                assert key in actual, where
                self.agree(value, actual[key], f"{where}.{key}")
        elif isinstance(expected, list):
            assert len(actual) == len(expected), where
            if expected and isinstance(expected[0], dict) and "channel_name" in expected[0]:
                actual = sorted(actual, key=lambda one: one["channel_name"])
            for index, (one, other) in enumerate(zip(expected, actual, strict=True)):
                self.agree(one, other, f"{where}[{index}]")
        elif isinstance(expected, str) and UUID.fullmatch(expected):
            assert UUID.fullmatch(actual), where
            assert self.given.setdefault(expected, actual) == actual, where
        elif isinstance(expected, str) and MOMENT.match(expected):
            assert MOMENT.match(actual), where
        elif where.endswith("AtUnixMs"):
            assert actual > 1.6e12, where
        else:
            assert actual == expected, where


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("*.json")))
def test_the_server_answers_as_the_reference_says(api, name):
    Conversation(api).hold(name)


def test_every_exchange_names_its_place_in_the_reference():
    for path in WIRE.glob("*.json"):
        exchange = json.loads(path.read_text())
        assert set(exchange) - {"headers", "after"} == {"source", "method", "path", "request", "status", "response"}
