"""The steps of the demo, in order.

    server starts → growth streams, the server is unreachable for a while → drain → read back → compare

The RunEngine has the main thread, as in a user's session. The `watcher` has a second one.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted

from ..api.client import Client
from ..callback import AtomscaleCallback
from ..checks.comparison import Series, join_streams
from ..errors import ApiError, ApiRefusedError, SettingsError
from ..model.identifiers import FAMILIES
from ..server import DEFAULT_API_KEY, Control
from ..settings import Settings
from ..sim import QUANTUM_WELL, QUICK, SimulatedChamber, grow
from ..spool.spool import Spool
from .display import Display, Moment
from .emitted import Comparison, Emitted, compare
from .server_process import ServerProcess
from .watcher import Watcher

# The local server has this growth instrument.
INSTRUMENT = 42
# Small, so that arriving chunks can be seen. The default is 100.
POINTS_PER_CHUNK = 25
DRAIN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The choices of the demo's user."""

    endpoint: str | None = None
    """Stream to this server, with the key of the environment, instead of to a local one; without an outage."""
    synth_source_id: int | None = None
    """Growth instrument; None: the local server's, and none elsewhere."""
    quick: bool = False
    """A shorter growth and outage: some seconds in all."""
    port: int = 0
    """Of the local server; 0 takes any free one."""
    keep: bool = False
    """Leave the local server running."""


@dataclass(slots=True)
class Outcome:
    """The demo's result."""

    comparisons: list[Comparison]
    run_uid: str
    started: float
    data_ids: tuple[str, ...]
    endpoint: str
    drained: bool
    growth_s: float
    moments: list[Moment]
    outage: tuple[float, float] | None
    """From when to when the server was unreachable, in seconds since the run's start."""
    kept_server: ServerProcess | None
    problem: str | None = None
    """Why not everything was delivered."""
    longest_pause_s: float = 0.0
    """Between two readings."""
    longest_pause_in_outage_s: float = 0.0
    instrument: int | None = None

    @property
    def points(self) -> int:
        """How many points were emitted, over all channels."""
        return sum(len(comparison.emitted) for comparison in self.comparisons)

    @property
    def equal(self) -> bool:
        """Return True if something was measured, and all of it arrived unchanged."""
        return self.drained and self.points > 0 and all(comparison.equal for comparison in self.comparisons)


def run_demo(
    choices: Choices,
    display: Display,
    *,
    at_server: Callable[[str], object] = lambda url: None,
    at_end: Callable[[Outcome], object] = lambda outcome: None,
) -> Outcome:
    """Run the demo, which takes about 25 s. For the main thread, where Ctrl-C can stop it.

    Args:
        choices: The choices of the demo's user.
        display: Shows what happens.
        at_server: Called with the local server's address once it listens.
        at_end: Called with the result while the local server still runs.

    Raises:
        SettingsError: No server could be started, or the given one cannot be used.
        ApiError: The given server does not answer, or refuses the key.
        KeyboardInterrupt: Ctrl-C was pressed. The run was aborted and everything ended.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="atomscale-demo-", ignore_cleanup_errors=True))
        server = None
        if choices.endpoint is None:
            display.step("starting a local Atomscale server, in a process of its own")
            server = stack.enter_context(ServerProcess(port=choices.port, keep=choices.keep))
            connection = Settings(endpoint=server.url, api_key=DEFAULT_API_KEY)
            display.step(f"it listens on {server.url}")
            at_server(server.url)
        else:
            connection = Settings.load(endpoint=choices.endpoint)
            _check(connection)
            display.step(f"streaming to {connection.endpoint}")
        # Of a site's settings only those of the connection are used: its choice and names of channels do not fit the
        # demo.
        settings = Settings(
            endpoint=connection.endpoint,
            api_key=connection.api_key,
            api=connection.api,
            ca_bundle=connection.ca_bundle,
            allow_http=connection.allow_http,
            spool_dir=folder,
            spool_min_free_bytes=0,
            points_per_chunk=POINTS_PER_CHUNK,
            announce="off",  # the display shows more
        )
        outcome = _grow(choices, display, settings, server, stack)
        at_end(outcome)
        return outcome


def _check(settings: Settings) -> None:
    """Send a small request to a server that is not ours, before starting a growth that it would not take."""
    if settings.api_key is None:
        raise SettingsError("no API key: put the key of your Atomscale account into ATOMSCALE_API_KEY")
    client = Client(settings)
    try:
        client.find_entry("atomscale-bluesky demo")
    finally:
        client.close()


def _grow(
    choices: Choices, display: Display, settings: Settings, server: ServerProcess | None, stack: ExitStack
) -> Outcome:
    # A shorter growth runs three times as fast, so that it still has RHEED oscillations to show.
    recipe, speed, period_s, outage_s = (QUICK, 60.0, 0.01, 1.0) if choices.quick else (QUANTUM_WELL, 20.0, 0.015, 4.5)
    instrument = choices.synth_source_id
    if instrument is None and server is not None:
        instrument = INSTRUMENT

    # The same as in a user's session, except `context_managers`: Ctrl-C has to end the demo, not pause the plan.
    callback = AtomscaleCallback(settings=settings)
    stack.callback(callback.close, timeout_s=0.0)
    engine = RunEngine(
        {} if instrument is None else {"synth_source_id": instrument}, context_managers=[_pause_on_ctrl_c]
    )
    engine.subscribe(callback)
    emitted = Emitted()
    engine.subscribe(emitted)

    spool = Spool(settings.spool_path, read_only=True)  # to read the entries of finished runs
    watcher = Watcher(callback, spool, display, Control(server.control_url) if server else None, outage_s)
    stack.callback(watcher.stop)

    def on_step(text: str) -> None:
        display.step(text)
        if "layer 2 of" in text:
            watcher.take_server_away()

    chamber = stack.enter_context(SimulatedChamber(speed=speed))
    watcher.start()
    began = time.monotonic()
    try:
        engine(grow(chamber, recipe, period_s=period_s, on_step=on_step))
    except RunEngineInterrupted:
        display.step("Ctrl-C: the run is aborted, and everything that was started is ended")
        engine.abort(reason="Ctrl-C")
        raise KeyboardInterrupt from None
    growth_s = time.monotonic() - began

    display.step("the run has stopped; waiting until all of it has arrived")
    drained = callback.drain(DRAIN_TIMEOUT_S)
    left = next((run for run in callback.status() if run.run_uid == emitted.run_uid), None)
    data_ids = left.data_ids if left else _finished(spool, emitted.run_uid)
    watcher.finish()

    display.step("reading it back through the API, and comparing every point")
    arrived, problem = _read_back(settings, data_ids, {name: len(series) for name, series in emitted.channels.items()})
    if left is not None:
        problem = left.problem or f"{left.points.waiting} points still wait"
    outage = watcher.outage
    return Outcome(
        comparisons=compare(emitted.channels, arrived),
        run_uid=emitted.run_uid,
        started=emitted.started,
        data_ids=data_ids,
        endpoint=settings.endpoint,
        drained=drained and left is None,
        growth_s=growth_s,
        moments=watcher.moments(emitted.started),
        outage=None if outage is None else (outage[0] - emitted.started, outage[1] - emitted.started),
        kept_server=server if choices.keep else None,
        problem=problem,
        longest_pause_s=_longest_pause(emitted.times, outage, inside=False),
        longest_pause_in_outage_s=_longest_pause(emitted.times, outage, inside=True),
        instrument=instrument,
    )


def _finished(spool: Spool, run_uid: str) -> tuple[str, ...]:
    """Return the ids of the streams of a run that was completely delivered."""
    return next((tuple(entry["data_ids"]) for entry in spool.history.entries() if entry["run_uid"] == run_uid), ())


def _read_back(
    settings: Settings, data_ids: tuple[str, ...], due: Mapping[str, int]
) -> tuple[dict[str, Series], str | None]:
    """Return what the server holds of these channels in these streams, and why it could not be read."""
    client = Client(settings)
    try:
        return join_streams([_points(client, data_id, due) for data_id in data_ids]), None
    except ApiError as error:
        return {}, f"it could not be read back: {error}"
    finally:
        client.close()


def _points(client: Client, data_id: str, due: Mapping[str, int]) -> Any:
    for family in FAMILIES[:-1]:
        try:
            return client.points(family, data_id, due).points
        except ApiRefusedError:  # this server may have the stream only under the other path family
            continue
    return client.points(FAMILIES[-1], data_id, due).points


def _longest_pause(times: list[float], outage: tuple[float, float] | None, *, inside: bool) -> float:
    """Return the longest time between two readings, during the outage or outside of it."""
    begin, end = outage or (float("inf"), float("inf"))
    pauses = zip(times, times[1:], strict=False)
    return max((b - a for a, b in pauses if (begin <= b <= end) is inside), default=0.0)


@contextmanager
def _pause_on_ctrl_c(engine: RunEngine) -> Iterator[None]:
    """While a plan runs, let Ctrl-C pause it at once, without a message. The caller of the RunEngine then aborts it."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        # In a thread: the request waits for the RunEngine's thread, which is not allowed in a signal handler.
        threading.Thread(target=_ignoring_failures(engine.request_pause), daemon=True).start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ignoring_failures(request: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        try:
            request()
        except RuntimeError:  # bluesky's TransitionError: requested twice, or the plan has just ended
            return

    return call
