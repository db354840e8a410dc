"""A local server in a process of its own, and its end.

It is the same command that a person types, `python -m atomscale_bluesky serve`. The line it prints once it listens
says where; its standard input is a pipe that we hold, so that it ends with us, whatever ends us. A server to keep has
no such pipe.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any, Self

from ..errors import SettingsError

START_TIMEOUT_S = 60.0


class ServerProcess:
    """A local server, running from entering the `with` block until leaving it.

    Args:
        port: Where to listen on the loopback; 0 takes any free port.
        keep: Let it run on after the block, and after this process.
    """

    def __init__(self, *, port: int = 0, keep: bool = False) -> None:
        self.keep = keep
        self.url = ""
        self.control_url = ""
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process's id, 0 before it was started."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> Self:
        """Start it, and return once it listens.

        Raises:
            SettingsError: It could not start; says what it said.
        """
        command = [sys.executable, "-m", "atomscale_bluesky", "serve", "--port", str(self._port), "--control", "--json"]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            self._process = subprocess.Popen(
                command if self.keep else [*command, "--until-eof"],
                stdin=subprocess.DEVNULL if self.keep else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                # Ctrl-C in the terminal is for us; we end the server after the last request.
                **_OWN_GROUP,
            )
            try:
                ready = json.loads(self._first_line() or "null")
                self.url, self.control_url = ready["url"], ready["control_url"]
            except (TypeError, KeyError, ValueError):
                self._end()
                errors.seek(0)
                said = errors.read().strip().splitlines() or ["it said nothing"]
                raise SettingsError(f"the local server did not start: {said[-1]}") from None
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it, unless it is to be kept."""
        if self.keep and self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
            self._process.returncode = 0  # not ours to wait for any more
        else:
            self._end()

    def _first_line(self) -> str:
        """The line that says where it listens; empty if it ends, or does not come to it in time."""
        process = self._process
        if process is None or process.stdout is None:
            return ""
        found: list[str] = []
        reader = threading.Thread(target=_read_line, args=(process.stdout, found), daemon=True)
        reader.start()
        reader.join(START_TIMEOUT_S)
        return found[0] if found else ""

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # it stops by itself, in order, on every system
        else:
            process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5.0)
        if process.stdout is not None:
            process.stdout.close()


_OWN_GROUP: dict[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


def _read_line(stream: IO[str], found: list[str]) -> None:
    found.append(stream.readline())
