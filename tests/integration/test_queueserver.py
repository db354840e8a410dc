"""bluesky-queueserver: a real RE Manager with Redis behind it; the startup script of its worker has the callback."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.expected import assert_held, emitted, held
from integration.needs import need_module, need_program
from integration.recording import recorded
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer

pytestmark = pytest.mark.integration

StartProcess = Callable[..., "subprocess.Popen[str]"]
MakeCallback = Callable[..., AtomscaleCallback]

STARTUP = """
    from bluesky import RunEngine
    from bluesky.plan_stubs import checkpoint, close_run, create, mv, open_run, read, save
    from bluesky.plans import count, scan
    from integration.recording import FileRecorder
    from ophyd import Signal
    from ophyd.sim import det1, det2, motor
    from atomscale_bluesky import AtomscaleCallback

    RE = RunEngine({})
    RE.subscribe(AtomscaleCallback())
    RE.subscribe(FileRecorder())
    step = Signal(name="step", value=0)

    def grow():
        yield from open_run()
        for n in range(1_000_000):
            yield from mv(step, n)
            yield from checkpoint()
            yield from create()
            yield from read(step)
            yield from read(det1)
            yield from save()
        yield from close_run()
"""

PERMISSIONS = """
    user_groups:
      root:
        allowed_plans: [null]
        allowed_devices: [null]
        allowed_functions: [null]
      primary:
        allowed_plans: [":.*"]
        allowed_devices: [":?.*:depth=5"]
        allowed_functions: [":.*"]
"""


class Manager:
    """A running RE Manager, asked over its control socket."""

    def __init__(self, address: str, process: subprocess.Popen[str], output: Callable[[], str]) -> None:
        self._address, self._process, self._output = address, process, output

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a request, which must have succeeded."""
        answer = self.try_ask(method, **parameters)
        assert answer is not None, self._output()
        assert answer.get("success", True), answer
        return answer

    def try_ask(self, method: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer, or None when there is none in time."""
        import zmq

        assert self._process.poll() is None, self._output()
        # Plainly: the request function of bluesky-queueserver leaves its 0MQ context open.
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(self._address)
            socket.send_json({"method": method, "params": parameters})
            return socket.recv_json() if socket.poll(20_000) else None

    def wait_for(self, timeout_s: float = 40.0, **state: Any) -> dict[str, Any]:
        """The manager's status once it has these values."""

        def reached() -> dict[str, Any] | None:
            status = self.try_ask("status")
            return status if status and all(status[name] == value for name, value in state.items()) else None

        return wait_until(reached, timeout_s)

    def open_environment(self) -> None:
        """Start a worker, which runs the startup script."""
        self.ask("environment_open")
        self.wait_for(worker_environment_exists=True, manager_state="idle")
        # The manager gets the worker's list of plans a moment after that.
        wait_until(lambda: (self.try_ask("plans_allowed", user_group="primary") or {}).get("plans_allowed"))

    def enqueue(self, plan: str, *args: Any, meta: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Put a plan into the queue."""
        item: dict[str, Any] = {"item_type": "plan", "name": plan, "args": list(args), "kwargs": kwargs}
        if meta is not None:
            item["meta"] = meta
        self.ask("queue_item_add", item=item, user="operator", user_group="primary")

    def run_queue(self) -> None:
        """Run what is in the queue, to its end."""
        self.ask("queue_start")
        self.wait_for(items_in_queue=0, manager_state="idle")

    def close_environment(self) -> None:
        """End the worker as its users do."""
        self.ask("environment_close")
        self.wait_for(worker_environment_exists=False, manager_state="idle")


@pytest.fixture
def redis(start_process: StartProcess, free_port: Callable[[], int], tmp_path: Path) -> str:
    """A Redis of the test's own, with nothing on disk."""
    program, port = need_program("redis-server", "redis-server"), free_port()
    need_module("redis", "bluesky-queueserver")
    process = start_process(
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(tmp_path)
    )
    from redis import Redis
    from redis.exceptions import ConnectionError as NotYet

    def answers() -> bool:
        assert process.poll() is None
        try:
            with Redis(port=port) as client:
                return bool(client.ping())
        except NotYet:
            return False

    wait_until(answers)
    return f"127.0.0.1:{port}"


@pytest.fixture
def worker_options(request: pytest.FixtureRequest) -> list[str]:
    """Command-line options that choose another worker than the usual one."""
    return getattr(request, "param", [])


@pytest.fixture
def manager(
    redis: str,
    start_process: StartProcess,
    free_port: Callable[[], int],
    worker_options: list[str],
    tmp_path: Path,
    output: Callable[[], str],
) -> Iterator[Manager]:
    need_module("bluesky_queueserver", "bluesky-queueserver")
    startup = tmp_path / "profile_beamline" / "startup"  # laid out as IPython has it, which one kind of worker asks for
    startup.mkdir(parents=True)
    (startup / "00-engine.py").write_text(textwrap.dedent(STARTUP))
    (startup / "user_group_permissions.yaml").write_text(textwrap.dedent(PERMISSIONS))
    address = f"tcp://127.0.0.1:{free_port()}"
    process = start_process(
        sys.executable,
        "-c",
        "from bluesky_queueserver.manager.start_manager import start_manager; start_manager()",
        f"--startup-dir={startup}",
        f"--redis-addr={redis}",
        f"--zmq-control-addr={address}",
        f"--zmq-info-addr=tcp://127.0.0.1:{free_port()}",
        "--zmq-publish-console=OFF",
        *worker_options,
        ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="30",
    )
    manager = Manager(address, process, output)
    manager.wait_for(manager_state="idle")
    yield manager
    if process.poll() is None and manager.try_ask("manager_stop", option="safe_off"):
        process.wait(20)


@pytest.mark.parametrize(
    "worker_options", [[], ["--use-ipython-kernel=ON"]], ids=["plain worker", "IPython worker"], indirect=True
)
def test_queued_plans_are_delivered_by_the_end_of_the_worker_with_the_metadata_of_their_items(
    manager: Manager, server: LocalServer, documents_file: Path
) -> None:
    server.misbehave(Fault(call="initialize", status=503))
    manager.open_environment()
    manager.enqueue("count", ["det1", "det2"], num=25, meta={"synth_source_id": 42})
    manager.enqueue("scan", ["det1"], "motor", -1, 1, 13, meta=[{"atomscale": {"synth_source_id": 7}}, {"sample": "A"}])
    manager.run_queue()
    assert server.streams() == []
    manager.ask("environment_close")
    server.behave()
    server.misbehave(Fault(call=("chunk", "chunk_multi"), delay_s=1.0))  # so the worker's end has something to wait for
    # The manager waits half a second for the process to end, counts it as closed then and lets it be.
    manager.wait_for(worker_environment_exists=False, manager_state="idle")
    wait_until(lambda: [stream.status for stream in server.streams()] == ["success"] * 2, timeout_s=30)

    documents = recorded(documents_file)
    assert sum(name == "stop" for name, _ in documents) == 2
    assert_held(server, documents)
    assert {stream.synth_source_id: stream.points for stream in server.streams()} == {42: 50, 7: 39}


def test_an_environment_opened_while_the_one_before_still_delivers_disturbs_nothing(
    manager: Manager, server: LocalServer, documents_file: Path
) -> None:
    server.misbehave(Fault(call=("chunk", "chunk_multi"), label="(count)", delay_s=2.0))
    manager.open_environment()
    manager.enqueue("count", ["det1", "det2"], num=25, meta={"synth_source_id": 42, "stream_name": "(count)"})
    manager.run_queue()
    manager.close_environment()
    manager.open_environment()
    manager.enqueue("scan", ["det1"], "motor", -1, 1, 13, meta={"synth_source_id": 7})
    manager.run_queue()
    manager.close_environment()

    wait_until(lambda: [stream.status for stream in server.streams()] == ["success"] * 2, timeout_s=30)
    assert_held(server, recorded(documents_file))


def test_a_run_of_a_destroyed_environment_is_completed_by_the_callback_of_the_next(
    manager: Manager, server: LocalServer, documents_file: Path, make_callback: MakeCallback
) -> None:
    manager.open_environment()
    manager.enqueue("grow", meta={"synth_source_id": 42})
    manager.ask("queue_start")
    wait_until(lambda: [stream for stream in server.streams() if stream.points > 100], timeout_s=30)
    manager.ask("environment_destroy")
    manager.wait_for(worker_environment_exists=False, manager_state="idle")

    (run,) = make_callback(offline=True).status()
    assert run.state == "interrupted"
    manager.open_environment()
    wait_until(lambda: [stream.status for stream in server.streams()] == ["success"], timeout_s=30)

    (channels,), (expected,) = held(server).values(), emitted(recorded(documents_file)).values()
    for channel, points in expected.items():
        assert channels[channel][: len(points)] == points
        assert len(channels[channel]) <= len(points) + 1  # the recording of the last may have been prevented
    assert [point.value for point in channels["step"]] == list(range(len(channels["step"])))
    assert [(stream.synth_source_id, stream.changed) for stream in server.streams()] == [(42, 0)]


def test_a_queue_goes_on_while_the_server_is_away_and_the_next_worker_delivers(
    manager: Manager, server: LocalServer, documents_file: Path, environment: dict[str, str]
) -> None:
    server.unreachable()
    manager.open_environment()
    manager.enqueue("count", ["det1"], num=25, meta={"synth_source_id": 42})
    manager.run_queue()
    manager.ask("environment_destroy")
    manager.wait_for(worker_environment_exists=False, manager_state="idle")
    server.reachable()
    manager.open_environment()
    manager.enqueue("count", ["det2"], num=12, meta={"synth_source_id": 7})
    manager.run_queue()
    manager.close_environment()

    assert_held(server, recorded(documents_file))
    assert sorted(stream.synth_source_id or 0 for stream in server.streams()) == [7, 42]


def test_a_queue_is_paused_resumed_and_stopped_by_its_operator(
    manager: Manager, server: LocalServer, documents_file: Path
) -> None:
    manager.open_environment()
    manager.enqueue("grow", meta={"synth_source_id": 42})
    manager.ask("queue_start")
    for points in (50, 150):
        wait_until(lambda: [stream for stream in server.streams() if stream.points > points], timeout_s=30)  # noqa: B023
        manager.wait_for(manager_state="executing_queue", re_state="running")
        manager.ask("re_pause", option="deferred" if points == 50 else "immediate")
        manager.wait_for(manager_state="paused")
        manager.ask("re_resume" if points == 50 else "re_stop")
    manager.wait_for(manager_state="idle")
    manager.close_environment()

    assert_held(server, recorded(documents_file))
