"""The gateway of the example `facility`: a real nginx with the files of the example, on ports of the test's own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import requests
from integration.needs import need_program
from waiting import wait_until

FACILITY = Path(__file__).parents[2] / "examples" / "facility"


class Gateway:
    """Runs nginx in the foreground, for the chambers that are named."""

    def __init__(
        self, folder: Path, *, upstream: str, key: str, chambers: Iterable[str], ports: tuple[int, int]
    ) -> None:
        self.tokens = {name: secrets.token_hex(32) for name in chambers}
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._nginx = need_program("nginx", "nginx-light")
        self._folder = folder
        self._known = dict(self.tokens)
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "atomscale").mkdir(parents=True)
        example = FACILITY / "nginx"
        main = (example / "atomscale-gateway.conf").read_text()
        assert main.count("127.0.0.1:9465") == 2
        (folder / "gateway.conf").write_text(main.replace("127.0.0.1:9465", f"127.0.0.1:{ports[1]}"))
        self._write("site.conf", f"listen 127.0.0.1:{ports[0]};\naccess_log {folder}/access.log atomscale;\n")
        self._write("upstream.conf", f"set $atomscale_api {upstream};\n")
        self.limit(site=20, chamber=4)
        self.use_key(key)
        self._write_chambers()
        (folder / "nginx.conf").write_text(
            f"daemon off;\n{'user root;' if os.geteuid() == 0 else ''}\nworker_processes 2;\npid {folder}/nginx.pid;\n"
            f"error_log {folder}/error.log;\nevents {{ worker_connections 4096; }}\nhttp {{\n"
            + temporary(folder)
            + "include gateway.conf;\n}\n"
        )

    def limit(self, *, site: int, chamber: int) -> None:
        """Set the rates, for the next start."""
        text = (FACILITY / "nginx" / "atomscale" / "limits.conf").read_text()
        assert "rate=20r/s" in text
        assert "rate=4r/s" in text
        self._write(
            "limits.conf", text.replace("rate=20r/s", f"rate={site}r/s").replace("rate=4r/s", f"rate={chamber}r/s")
        )

    def use_key(self, key: str) -> None:
        """Put the account's key into its file. A running gateway takes it."""
        self._write("key.map", f'default "{key}";\n')
        self._reload()

    def revoke(self, chamber: str) -> None:
        """Take a chamber's line out."""
        del self._known[chamber]
        self._write_chambers()
        self._reload()

    def permit(self, chamber: str) -> None:
        """Put a chamber's line back."""
        self._known[chamber] = self.tokens[chamber]
        self._write_chambers()
        self._reload()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [self._nginx, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        with (self._folder / "nginx.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, start_new_session=True)
        wait_until(self._answers)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it with all its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, how)  # its own session: nothing else is in it
            self._process.wait(20)
            self._process = None

    def log(self) -> str:
        """What it has logged of the requests."""
        return (self._folder / "access.log").read_text()

    def files(self) -> list[Path]:
        """All its files."""
        return [path for path in self._folder.rglob("*") if path.is_file()]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "nginx.log").read_text()
        try:
            return requests.get(self.url, timeout=2).status_code == 401
        except requests.ConnectionError:
            return False

    def _write(self, name: str, text: str) -> None:
        (self._folder / "atomscale" / name).write_text(text)

    def _write_chambers(self) -> None:
        self._write("chambers.map", "".join(f'"{token}" "{name}";\n' for name, token in self._known.items()))

    def _reload(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)


def temporary(folder: Path) -> str:
    """Lines that let nginx keep its temporary files in a folder."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)


def most_within(times: Iterable[float], seconds: float) -> int:
    """The most requests that came within any time of this length."""
    found, known, first = 0, sorted(times), 0
    for last, time in enumerate(known):
        while known[first] < time - seconds:
            first += 1
        found = max(found, last - first + 1)
    return found
