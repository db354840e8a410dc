"""Runs a local server: `LocalServer` in a thread of this process, `serve` in the foreground.

Both take the same arguments:

    host, port     where to listen; loopback only unless `allow_remote`; port 0 takes any free one
    data           the database file, None for memory
    api_key        the key that clients must send
    relax          names of the rules not to enforce (`Rule`)
    families       which of the two path families exist
    multi          whether chunk/multi exists
    max_body_bytes a larger body is answered with 413
    derived        whether a stream reads back with series beside it, as Atomscale documents for its analyses
    silence_s      an active stream that gets no request for this long becomes `stream_error`; None: never
    instruments, projects   the content of a new database
    control, control_port   whether it can be inspected and made to misbehave, on a loopback port of its own
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Self

from ..errors import SettingsError
from .control_client import ChannelPoints, Control, StreamState
from .ending import ending_at_signals
from .faults import Fault, FaultState, FaultTable
from .instance import ServerInstance
from .listener import Listener, check_host
from .options import DEFAULT_INSTRUMENTS, DEFAULT_PROJECTS, MAX_BODY_BYTES, Family, Instrument, Options, options_from
from .request_log import RequestCounts, RequestLog, RequestRecord
from .rules import Rule
from .store import Store

DEFAULT_API_KEY = "local-key"
DEFAULT_PORT = 8042
BOTH = (Family.METROLOGY, Family.TOOL_STATE)


class LocalServer:
    """A local Atomscale in a thread of this process.

    ```python
    with LocalServer(control=True) as server:
        requests.get(f"{server.url}/data_entries/", headers={"X-API-KEY": server.api_key})
    ```

    `stop` and `start` restart it with the same port, faults and log, and the same data. Data in memory end with
    `close`, which is called on leaving the `with` block. Methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        data: str | PathLike[str] | None = None,
        api_key: str = DEFAULT_API_KEY,
        relax: Iterable[str | Rule] = (),
        families: Iterable[str | Family] = BOTH,
        multi: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
        silence_s: float | None = None,
        derived: bool = False,
        instruments: Iterable[Instrument] = DEFAULT_INSTRUMENTS,
        projects: Iterable[str] = DEFAULT_PROJECTS,
        control: bool = False,
        control_port: int = 0,
        allow_remote: bool = False,
    ) -> None:
        check_host(host, allow_remote=allow_remote)
        self.options: Options = options_from(
            api_key=api_key,
            relax=relax,
            families=families,
            multi=multi,
            max_body_bytes=max_body_bytes,
            silence_s=silence_s,
            derived=derived,
            instruments=instruments,
            projects=projects,
        )
        self._data = None if data is None else Path(data)
        self._listener = Listener(host, port)
        self._control_listener = Listener("127.0.0.1", control_port) if control else None
        self._store: Store | None = None
        self._faults = FaultTable()
        self._log = RequestLog()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """The base URL for clients, without a slash at its end. Known once the server has started."""
        return self._listener.url

    @property
    def api_key(self) -> str:
        """The key that clients must send."""
        return self.options.api_key

    @property
    def control(self) -> Control:
        """The client of the server's control.

        Raises:
            SettingsError: The server was made without `control=True`.
        """
        if self._control_listener is None:
            raise SettingsError("this local server has no control; make it with `control=True`")
        return Control(self._control_listener.url)

    @property
    def control_url(self) -> str | None:
        """The URL for `Control`, None without control. Known once the server has started."""
        return None if self._control_listener is None else self._control_listener.url

    def start(self) -> None:
        """Start, and return once the server listens. Does nothing if it runs already.

        Raises:
            SettingsError: A port is taken, or the data file cannot be used.
        """
        if self._thread is not None:
            return
        try:
            self._listener.bind()
            if self._control_listener is not None:
                self._control_listener.bind()
            if self._store is None:
                self._store = _open_store(self._data, self.options)
        except SettingsError:
            self._release()
            raise
        ready = threading.Event()
        self._failure = None
        self._thread = threading.Thread(
            target=self._run, args=(self._store, ready), name="atomscale-local-server", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            self._release()
            raise SettingsError(f"the local server could not start: {self._failure}") from self._failure

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Stop listening, end the thread and release the ports. Return True if that ended in time. Idempotent."""
        if self._thread is not None:
            if self._loop is not None and self._ending is not None:
                self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
            self._release()
        return True

    def close(self, timeout_s: float = 10.0) -> bool:
        """Stop, and discard data in memory. Return True if that ended in time. Idempotent."""
        ended = self.stop(timeout_s)
        if ended and self._store is not None:
            self._store.close()
            self._store = None
        return ended

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        self._listener.release()
        if self._control_listener is not None:
            self._control_listener.release()
        if self._data is not None and self._store is not None:
            self._store.close()
            self._store = None

    def _run(self, store: Store, ready: threading.Event) -> None:
        try:
            asyncio.run(self._main(store, ready))
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits for `ready`
            self._failure = error
        finally:
            ready.set()

    async def _main(self, store: Store, ready: threading.Event) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        instance = ServerInstance(self.options, store, self._listener, self._control_listener, self._faults, self._log)
        try:
            await instance.start()
            ready.set()
            await self._ending.wait()
        finally:
            await instance.stop()

    def streams(self) -> list[StreamState]:
        """Return every stream, in the order in which they were initialized. Like all below, it needs `control=True`."""
        return self.control.streams()

    def points(self, data_id: str) -> dict[str, ChannelPoints]:
        """Return the stored points of a stream, by channel."""
        return self.control.points(data_id)

    def requests(self, call: str | None = None, *, after: int = 0) -> list[RequestRecord]:
        """Return the newest requests, oldest first: those of one `call`, if given, with numbers above `after`."""
        return self.control.requests(call, after=after)

    def counts(self) -> RequestCounts:
        """Return how many requests there ever were."""
        return self.control.counts()

    def misbehave(self, *faults: Fault) -> list[int]:
        """Put faults in force, after those already in force, and return the number of each."""
        return self.control.misbehave(*faults)

    def faults(self) -> list[FaultState]:
        """Return the faults in force, and how often each has acted."""
        return self.control.faults()

    def behave(self) -> None:
        """Remove every fault."""
        self.control.behave()

    def unreachable(self, seconds: float | None = None) -> None:
        """Stop listening and reset every connection, for this many seconds or until `reachable`."""
        self.control.unreachable(seconds)

    def reachable(self) -> None:
        """Listen again, on the same port."""
        self.control.reachable()

    def add_project(self, name: str) -> str:
        """Create a project and return its id."""
        return self.control.add_project(name)


def serve(  # noqa: D417 - the arguments that both share are explained once, at the module's top
    *,
    ready: Callable[[str, str | None], None] | None = None,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    data: str | PathLike[str] | None = None,
    api_key: str = DEFAULT_API_KEY,
    relax: Iterable[str | Rule] = (),
    families: Iterable[str | Family] = BOTH,
    multi: bool = True,
    max_body_bytes: int = MAX_BODY_BYTES,
    silence_s: float | None = None,
    derived: bool = False,
    instruments: Iterable[Instrument] = DEFAULT_INSTRUMENTS,
    projects: Iterable[str] = DEFAULT_PROJECTS,
    control: bool = False,
    control_port: int = 0,
    allow_remote: bool = False,
) -> None:
    """Run a local server in the foreground until SIGINT or SIGTERM. Call it from the main thread.

    Args:
        ready: Called with the URL and the control's URL (None without control) once the server listens.

    Raises:
        SettingsError: An argument cannot be used, a port is taken, or the data file cannot be used.
    """
    server = LocalServer(
        host=host,
        port=port,
        data=data,
        api_key=api_key,
        relax=relax,
        families=families,
        multi=multi,
        max_body_bytes=max_body_bytes,
        silence_s=silence_s,
        derived=derived,
        instruments=instruments,
        projects=projects,
        control=control,
        control_port=control_port,
        allow_remote=allow_remote,
    )
    with ending_at_signals() as ending, server:
        if ready is not None:
            ready(server.url, server.control_url)
        while not ending.wait(0.2):
            pass


def _open_store(path: Path | None, options: Options) -> Store:
    return Store(path, instruments=options.instruments, projects=options.projects)
