"""Starts a local server in a process of its own, and ends it.

It runs the command that a user would type, `python -m atomscale_bluesky serve`. The line that the command prints once
it listens gives the address. Its standard input is a pipe that we hold, so it ends when this process ends, however that
happens. A server to keep has no such pipe.
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
    """A local server that runs from entering the `with` block until leaving it.

    Args:
        port: The port on the loopback; 0 takes any free port.
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
        """Start the server, and return once it listens.

        Raises:
            SettingsError: It could not start. Includes its output.
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
                # Ctrl-C in the terminal is for this process. It ends the server after the last request.
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
        """End the server, unless it is to be kept."""
        if self.keep and self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
            self._process.returncode = 0  # this process does not wait for it any more
        else:
            self._end()

    def _first_line(self) -> str:
        """Return the line that gives its address, or an empty text if the process ends or does not print it in time."""
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
            process.stdin.close()  # it then stops cleanly on its own, on every system
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
