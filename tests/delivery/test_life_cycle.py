"""Beginnings and ends: exits of every kind, forks, threads, subscriptions that come and go."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bluesky import Msg, RunEngine
from bluesky.plan_stubs import close_run, create, monitor, mv, open_run, read, save, unmonitor
from bluesky.plans import count
from ophyd import Signal
from ophyd.sim import det1, motor
from runs import Recorder, growth, held

from atomscale_bluesky import ApiUnavailableError, AtomscaleCallback
from atomscale_bluesky.plans import wait_until_delivered
from atomscale_bluesky.server import Fault, LocalServer

MakeCallback = Callable[..., AtomscaleCallback]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")


def run_script(
    script: str | Path, server: LocalServer, spool_dir: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """A script of a user's in a process of its own, with the settings in its environment."""
    what = [str(script)] if isinstance(script, Path) else ["-c", textwrap.dedent(script)]
    search = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-W", "error", *what],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(search),
            "ATOMSCALE_API_ENDPOINT": server.url,
            "ATOMSCALE_API_KEY": server.api_key,
            "ATOMSCALE_BLUESKY_SPOOL_DIR": str(spool_dir),
            "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0",
        }
        | more,
    )


GROW = """
    from runs import growth
    from atomscale_bluesky import AtomscaleCallback
    callback = AtomscaleCallback(points_per_chunk=10)
    for name, doc in growth(points=25):
        callback(name, doc)
"""


def test_a_script_that_simply_ends_has_delivered_everything(server: LocalServer, spool_dir: Path) -> None:
    done = run_script(GROW, server, spool_dir)

    assert (done.returncode, done.stderr) == (0, "")
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def test_exit_waits_no_longer_than_the_setting_says_and_keeps_the_rest(
    server: LocalServer, spool_dir: Path, make_callback: MakeCallback
) -> None:
    server.misbehave(Fault(call="initialize", hang=True))
    begin = time.monotonic()
    done = run_script(GROW, server, spool_dir, ATOMSCALE_BLUESKY_EXIT_TIMEOUT_S="1")
    took = time.monotonic() - begin
    server.behave()

    assert done.returncode == 0
    assert took < 10
    assert make_callback().drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def test_a_script_that_ends_by_sys_exit_has_delivered_everything(server: LocalServer, spool_dir: Path) -> None:
    # Not from inside a plan: there it hangs the RunEngine of bluesky 1.15 itself, whoever is subscribed.
    done = run_script(textwrap.dedent(GROW) + "\nraise SystemExit(3)", server, spool_dir)

    assert (done.returncode, done.stderr) == (3, "")
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


def test_a_run_that_is_paused_when_the_interpreter_exits_is_completed(server: LocalServer, spool_dir: Path) -> None:
    done = run_script(
        """
        from bluesky import RunEngine
        from bluesky.plan_stubs import checkpoint, create, open_run, pause, read, save
        from bluesky.utils import RunEngineInterrupted
        from ophyd.sim import det1
        from atomscale_bluesky import AtomscaleCallback
        def plan():
            yield from open_run()
            for n in range(15):
                yield from checkpoint()
                yield from create()
                yield from read(det1)
                yield from save()
            yield from pause()
        RE = RunEngine(context_managers=[])
        RE.subscribe(AtomscaleCallback(points_per_chunk=10, synth_source_id=42))
        try:
            RE(plan())
        except RunEngineInterrupted:
            pass
        """,
        server,
        spool_dir,
    )

    assert done.returncode == 0, done.stderr
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 15)]


@posix
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_of_multiprocessing_that_ends_has_delivered_everything(
    method: str, server: LocalServer, spool_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            from runs import growth
            def work():
                from atomscale_bluesky import AtomscaleCallback
                callback = AtomscaleCallback(points_per_chunk=10)
                for name, doc in growth(points=25):
                    callback(name, doc)
            if __name__ == "__main__":
                worker = multiprocessing.get_context({method!r}).Process(target=work)
                worker.start()
                worker.join()
                raise SystemExit(worker.exitcode)
            """
        )
    )
    done = run_script(script, server, spool_dir)

    assert done.returncode == 0, done.stderr
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 50)]


@posix
def test_a_forked_child_neither_uploads_nor_takes_the_parents_locks_with_it(
    server: LocalServer, spool_dir: Path
) -> None:
    done = run_script(
        """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(points_per_chunk=10)
        documents = list(growth(points=25))
        for name, doc in documents[:14]:
            callback(name, doc)
        child = os.fork()
        if child == 0:
            ours = [t.name for t in threading.enumerate() if t.name.startswith("atomscale")]
            for name, doc in growth(points=12, start_metadata={"stream_name": "child"}):
                callback(name, doc)
            os._exit(len(ours))
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        for name, doc in documents[14:]:
            callback(name, doc)
        assert callback.drain(20)
        """,
        server,
        spool_dir,
    )

    assert (done.returncode, done.stderr) == (0, "")
    streams = {stream.label.split()[0]: (stream.status, stream.points) for stream in server.streams()}
    assert streams["grow"] == ("success", 50)
    assert streams.get("child", ("success", 24)) == ("success", 24)


@posix
@pytest.mark.parametrize("held_up", ["history.jsonl", "spool"])
def test_a_forked_child_takes_a_run_when_a_thread_of_its_parent_was_reading(
    server: LocalServer, spool_dir: Path, held_up: str
) -> None:
    done = run_script(
        f"""
        import os, shutil, signal, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback(points_per_chunk=10)
        for name, doc in growth(points=5):
            callback(name, doc)
        assert callback.drain(20)
        reading, go_on = threading.Event(), threading.Event()

        def slow(real):
            def call(path, *arguments, **more):
                if threading.current_thread() is monitor and str(path).endswith({held_up!r}):
                    reading.set()
                    go_on.wait()
                return real(path, *arguments, **more)
            return call

        os.open, shutil.disk_usage = slow(os.open), slow(shutil.disk_usage)
        monitor = threading.Thread(target=callback.streams, args=("u" * 40,))
        monitor.start()
        assert reading.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            for name, doc in growth(points=12, start_metadata={{"stream_name": "child"}}):
                callback(name, doc)
            os._exit(0 if len(callback.status()) == 1 else 1)
        _, status = os.waitpid(child, 0)
        go_on.set()
        monitor.join()
        assert status == 0, status
        """,
        server,
        spool_dir,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "more", [{}, {"KEEP": "verified", "CLOCK": "reference", "MAX_LATENCY_S": "1", "ANNOUNCE": "on"}]
)
def test_no_thread_imports_a_module_since_a_child_forked_meanwhile_would_wait_for_it_for_ever(
    server: LocalServer, spool_dir: Path, more: dict[str, str]
) -> None:
    done = run_script(
        """
        import sys, threading
        imported = []

        def note(event, arguments):
            if event == "import" and threading.current_thread().name.startswith("atomscale"):
                if arguments[0] not in sys.modules:
                    imported.append((arguments[0], threading.current_thread().name))

        from runs import growth
        from atomscale_bluesky import AtomscaleCallback
        sys.addaudithook(note)
        for points in (55, 25):
            documents = list(growth(points=points, start_metadata={"physical_sample": "W1", "tags": ["a"]}))
            before = AtomscaleCallback(points_per_chunk=10)
            for name, doc in documents[:20]:
                before(name, doc)
            before.close(0)
            after = AtomscaleCallback(points_per_chunk=10)  # the run goes on, and its earlier events are read
            for name, doc in documents:
                after(name, doc)
            assert after.drain(20)
            after.close()
        print(imported)
        """,
        server,
        spool_dir,
        **{f"ATOMSCALE_BLUESKY_{name}": value for name, value in more.items()},
    )

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert sum(stream.points for stream in server.streams()) == 2 * (55 + 25)


def test_a_warning_is_written_although_logging_was_interrupted_in_another_thread(
    server: LocalServer, spool_dir: Path
) -> None:
    # As an exception from a signal handler leaves it, if it comes within `logging.getLogger`.
    done = run_script(
        """
        import logging, threading
        from atomscale_bluesky import AtomscaleCallback
        callback = AtomscaleCallback()
        callback("one kind", {})  # logging itself takes its lock once for each level of a logger
        logging._lock.acquire()
        feeding = threading.Thread(target=callback, args=("another kind", {}), daemon=True)
        feeding.start()
        feeding.join(10)
        print(feeding.is_alive())
        """,
        server,
        spool_dir,
    )

    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "'another kind'" in done.stderr


def test_a_hundred_subscriptions_start_no_threads(callback: AtomscaleCallback, server: LocalServer) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    before = set(threading.enumerate())
    for n in range(100):
        token = engine.subscribe(callback)
        if n % 25 == 0:
            engine(count([det1], num=1))
        engine.unsubscribe(token)
    assert callback.drain(timeout_s=30)

    assert [stream.points for stream in server.streams()] == [1] * 4
    more = {thread.name for thread in set(threading.enumerate()) - before}
    assert len(more) <= callback.settings.max_connections


def test_a_hundred_callbacks_one_after_the_other_leave_no_threads_behind(make_callback: MakeCallback) -> None:
    engine = RunEngine(context_managers=[])
    before = threading.active_count()
    for _ in range(100):
        with make_callback() as callback:
            token = engine.subscribe(callback)
            engine.unsubscribe(token)

    assert threading.active_count() == before


def test_a_callback_without_references_ends_its_threads(server: LocalServer, spool_dir: Path) -> None:
    from atomscale_bluesky import Settings

    before = set(threading.enumerate())
    settings = Settings.load(environ={}, endpoint=server.url, api_key="a key", spool_dir=str(spool_dir))
    callback = AtomscaleCallback(settings=settings)
    threads = set(threading.enumerate()) - before
    del callback
    gc.collect()

    for thread in threads:
        thread.join(10)
    assert threads
    assert not any(thread.is_alive() for thread in threads)


def test_the_callback_is_hashable_and_equal_to_itself_alone(make_callback: MakeCallback) -> None:
    one, other = make_callback(offline=True), make_callback(offline=True)

    assert len({one, other}) == 2
    assert one != other


def test_the_engine_holds_the_callback_strongly(make_callback: MakeCallback, server: LocalServer) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(make_callback())
    gc.collect()
    engine(count([det1], num=3))

    from waiting import wait_until

    wait_until(lambda: [stream.status for stream in server.streams()] == ["success"])


def test_subscribed_for_good_and_for_the_call_it_takes_each_event_once(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)

    engine(count([det1], num=12), callback)

    assert callback.drain(timeout_s=30)
    assert len(held(server)["det1"]) == 12


def test_subscribed_within_a_run_it_takes_the_next_one(callback: AtomscaleCallback, server: LocalServer) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])

    def plan():
        for _ in range(2):
            yield from open_run()
            for n in range(15):
                yield from create()
                yield from read(det1)
                yield from save()
                if n == 5:
                    yield Msg("subscribe", None, callback, "all")
            yield from close_run()

    engine(plan())

    assert callback.drain(timeout_s=30)
    assert [(stream.status, stream.points) for stream in server.streams()] == [("success", 15)]
    assert callback.ignored == {"event": 9, "stop": 1}


@pytest.mark.parametrize(
    ("broken_on", "before_us", "after_us"),
    [("start", None, 0), ("descriptor", 0, 0), ("event", 0, 1), ("stop", 12, 12)],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_neighbour_that_raises_costs_what_it_costs_the_engine_and_nothing_more(
    make_callback: MakeCallback,
    server: LocalServer,
    broken_on: str,
    before_us: int | None,
    after_us: int,
    first: bool,
) -> None:
    def neighbour(name: str, doc: dict) -> None:
        if name == broken_on:
            raise RuntimeError("not ours")

    callback = make_callback()
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    for subscriber in (neighbour, callback) if first else (callback, neighbour):
        engine.subscribe(subscriber)
    with pytest.raises(RuntimeError, match="not ours"):
        engine(count([det1], num=12))

    assert callback.close(timeout_s=10)
    points = before_us if first else after_us
    expected = [] if points is None else [("success", points)]  # before us it kept the start document from us
    assert [(stream.status, stream.points) for stream in server.streams()] == expected


def test_a_neighbour_that_raises_on_a_monitors_readings_costs_none_that_came_to_us_before(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    signal = Signal(name="pressure", value=0.0)
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)

    def neighbour(name: str, doc: dict) -> None:
        if name == "event" and doc["data"]["pressure"]:
            raise RuntimeError("not ours")

    def plan():
        yield from open_run()
        yield from monitor(signal, name="pressure_monitor")
        for n in range(1, 26):
            yield from mv(signal, float(n))
        yield from unmonitor(signal)
        yield from close_run()

    engine(plan(), neighbour)

    assert callback.drain(timeout_s=30)
    assert held(server)["pressure"] == [float(n) for n in range(1, 26)]


def test_two_device_threads_hammering_monitored_signals_lose_nothing(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    signals = [Signal(name=f"s{i}", value=0.0) for i in range(2)]
    recorder = Recorder()
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    engine.subscribe(recorder)

    def hammer(signal: Signal) -> None:
        for n in range(1, 501):
            signal.put(float(n))

    def plan():
        yield from open_run()
        for signal in signals:
            yield from monitor(signal, name=f"{signal.name}_monitor")
        threads = [threading.Thread(target=hammer, args=(signal,)) for signal in signals]
        for thread in threads:
            thread.start()
        for n in range(20):
            yield from create()
            yield from read(det1)
            yield from save()
            yield from mv(motor, n)
        for thread in threads:
            thread.join()
        for signal in signals:
            yield from unmonitor(signal)
        yield from close_run()

    engine(plan())

    assert callback.drain(timeout_s=20)
    values = held(server)
    for signal in signals:
        assert sorted(values[signal.name]) == sorted(
            value for _, value in recorder.points(f"{signal.name}_monitor")[signal.name]
        )
        assert len(values[signal.name]) == 500


def test_the_engines_loop_beats_on_while_the_server_hangs(callback: AtomscaleCallback, server: LocalServer) -> None:
    server.misbehave(Fault(hang=True))
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    beats: list[float] = []
    stop = threading.Event()

    async def beat() -> None:
        while not stop.is_set():
            beats.append(time.monotonic())
            await asyncio.sleep(0.005)

    future = asyncio.run_coroutine_threadsafe(beat(), engine.loop)
    engine(count([det1], num=200))
    stop.set()
    future.result(5)
    server.behave()

    # A loop that waited for the request would wait for its whole limit.
    longest_s = max(after - before for before, after in zip(beats, beats[1:], strict=False))
    assert longest_s < callback.settings.request_timeout_s / 4
    callback.close(timeout_s=0)


def test_a_plan_can_wait_until_everything_is_delivered(callback: AtomscaleCallback, server: LocalServer) -> None:
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    answers: list[bool] = []

    def plan():
        yield from count([det1], num=12)
        answers.append((yield from wait_until_delivered(callback, timeout_s=20)))

    engine(plan())

    assert answers == [True]
    assert [stream.status for stream in server.streams()] == ["success"]


def test_a_plan_that_waits_in_vain_goes_on_unless_it_wants_to_fail(
    callback: AtomscaleCallback, server: LocalServer
) -> None:
    server.unreachable()
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    answers: list[bool] = []
    ask, questions = callback.ask_whether_drained, []
    callback.ask_whether_drained = lambda: questions.append(ask()) or questions[-1]

    def plan(fail: bool):
        yield from count([det1], num=2)
        answers.append((yield from wait_until_delivered(callback, timeout_s=0.5, fail=fail)))

    engine(plan(fail=False))
    with pytest.raises(ApiUnavailableError, match=r"not everything .* within 0.5 s; .*atomscale-bluesky status"):
        engine(plan(fail=True))

    assert answers == [False]
    assert callback.status().points.waiting == 4
    assert [question.given_up for question in questions] == [True, True]  # otherwise they would be asked on and on


def test_waiting_in_a_plan_ends_at_once_when_nothing_can_move(make_callback: MakeCallback) -> None:
    callback = make_callback(api_key=None)
    engine = RunEngine({"synth_source_id": 42}, context_managers=[])
    engine.subscribe(callback)
    begin = time.monotonic()

    def plan():
        yield from count([det1], num=2)
        yield from wait_until_delivered(callback, timeout_s=60, fail=True)

    with pytest.raises(ApiUnavailableError, match="what is left waits for an API key or for the operator"):
        engine(plan())
    assert time.monotonic() - begin < 30


def test_every_call_of_close_returns_whether_anything_is_left(make_callback: MakeCallback, tmp_path: Path) -> None:
    for n, (settings, answer) in enumerate([({}, True), ({"api_key": None}, False), ({"offline": True}, False)]):
        callback = make_callback(**settings, spool_dir=str(tmp_path / f"spool-{n}"))
        for name, doc in growth(points=5):
            callback(name, doc)
        assert (callback.close(), callback.close()) == (answer, answer), settings
    unused = make_callback(offline=True, spool_dir=str(tmp_path / "unused"))
    assert unused.close()


@posix
@pytest.mark.parametrize("settings", [{"offline": True}, {}], ids=["offline", "with a thread"])
def test_closing_does_not_raise_where_the_spool_was_removed(
    make_callback: MakeCallback, spool_dir: Path, settings: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback(**settings)
    for name, doc in list(growth(points=5))[:4]:
        callback(name, doc)
    while spool_dir.exists():  # a file may be made in it meanwhile
        shutil.rmtree(spool_dir, ignore_errors=True)
    time.sleep(1.5)  # the uploader looks into the journal meanwhile

    callback.close(timeout_s=1)

    assert "Traceback" not in caplog.text
