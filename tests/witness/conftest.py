"""The vendor's client, each version in a virtual environment of its own that is made once and kept."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import environments
import pytest

from atomscale_bluesky.server import LocalServer

DRIVE = Path(__file__).with_name("drive.py")


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], Path]:
    """The interpreter of a version's environment; skips, or fails where everything is required, without one."""
    return lambda version: environments.python_with(f"atomscale-{version}", [f"atomscale=={version}"])


class Witness:
    """A process with one version of the vendor's client, which takes one order after the other."""

    def __init__(self, python: Path, **environment: str) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith("_PROXY") and not name.startswith(("AS_", "ATOMSCALE_", "PYTHON"))
        }
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [python, DRIVE],
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """What came of an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        account = self._process.stdout.readline()
        if not account:
            self._process.wait()
            self._said.seek(0)
            pytest.fail(self._said.read().decode(errors="replace"))
        return json.loads(account)

    def close(self) -> None:
        """End it, with whatever it has under way."""
        self._process.kill()
        self._process.communicate()
        self._said.close()


@pytest.fixture(scope="session")
def witness(python_with: Callable[[str], Path]) -> Iterator[Callable[[str], Witness]]:
    """The process of a version, shared by all tests: its client takes seconds to be imported."""
    known: dict[str, Witness] = {}

    def find(version: str) -> Witness:
        if version not in known:
            known[version] = Witness(python_with(version), ATOMSCALE_SKIP_CLOCK_SYNC="1")
        return known[version]

    yield find
    for one in known.values():
        one.close()


@pytest.fixture
def drive(witness: Callable[[str], Witness], python_with: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    """Have the vendor's client stream to a server; its account of what happened."""

    def run(
        version: str, server: LocalServer, chunks: list[dict[str, Any]], *, sync_clock: bool = False, **order: Any
    ) -> dict[str, Any]:
        family = "metrology" if version == "0.16.0" else "tool-state"
        order = {"points_per_chunk": 4} | order
        order |= {"url": server.url, "key": server.api_key, "family": family, "chunks": chunks}
        if not sync_clock:
            return witness(version).ask(order)
        alone = Witness(python_with(version))
        try:
            return alone.ask(order)
        finally:
            alone.close()

    return run


@pytest.fixture
def look(witness: Callable[[str], Witness]) -> Callable[..., dict[str, Any]]:
    """Have the vendor's client look at what is on a server; its account of what it shows."""

    def run(version: str, server: LocalServer, **order: Any) -> dict[str, Any]:
        return witness(version).ask(order | {"url": server.url, "key": server.api_key})

    return run


@pytest.fixture
def make_server() -> Any:
    """A server of both families, with control; closed after the test."""
    made: list[LocalServer] = []

    def make(**options: Any) -> LocalServer:
        made.append(LocalServer(control=True, **options))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        assert server.close()


@pytest.fixture
def server(make_server: Callable[..., LocalServer]) -> LocalServer:
    """A strict server."""
    return make_server()
