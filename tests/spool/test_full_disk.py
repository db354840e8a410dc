"""A disk without a byte left: what was kept leaves, orders are obeyed, and new readings wait outside, counted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from refusing import refuse
from runs import Document, growth, held
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback, DocumentRecorder, Settings, SpoolError
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.spool.runs_not_kept import NotKept
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]

RESERVE = "reserve.bin"


class Disk:
    """A small disk with a spool on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = root / "spool"
        self.filler = root / "filler"

    def fill(self) -> None:
        """Take every byte that is free."""
        try:
            with self.filler.open("ab", buffering=0) as file:
                while True:
                    file.write(b"x" * 512)
        except OSError:
            pass

    def free_all(self) -> None:
        """Give it back."""
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes Linux and root")
    yield Disk(root)
    subprocess.run(["umount", "-l", str(root)], capture_output=True, check=False)


def with_reserve(make_callback: MakeCallback, disk: Disk, *, runs: int = 3) -> AtomscaleCallback:
    """A callback without a key that has kept some runs, and the reserve beside them."""
    callback = make_callback(offline=True, spool_dir=str(disk.spool))
    for _ in range(runs):
        for name, doc in growth(points=200, keys=4):
            callback(name, doc)
    wait_until(lambda: reserve_bytes(disk.spool) == 2**19)
    return callback


def reserve_bytes(spool: Path) -> int:
    path = spool / RESERVE
    return path.stat().st_size if path.exists() else 0


def command(disk: Disk, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command about the spool on the disk, in a process of its own."""
    program = [sys.executable, "-m", "atomscale_bluesky", *arguments]
    clean = {
        name: value for name, value in os.environ.items() if "ATOMSCALE" not in name and not name.startswith("AS_")
    }
    clean |= {"ATOMSCALE_BLUESKY_SPOOL_DIR": str(disk.spool), "ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES": "0"}
    return subprocess.run(program, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)


def test_what_was_kept_leaves_a_disk_without_a_byte(
    make_callback: MakeCallback, server: LocalServer, disk: Disk
) -> None:
    with_reserve(make_callback, disk).close()
    disk.fill()

    assert make_callback(spool_dir=str(disk.spool)).drain(timeout_s=30)

    assert sum(map(len, held(server).values())) == 3 * 200 * 4
    assert [entry["delivered"] for entry in Spool(disk.spool).history.entries()] == [800, 800, 800]
    assert Spool(disk.spool).run_folders() == []
    assert not (disk.spool / RESERVE).exists()


@pytest.mark.parametrize("number", sorted({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}))
def test_what_was_kept_leaves_a_disk_that_takes_no_new_name(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with make_callback(offline=True) as callback:
        for name, doc in growth(points=20):
            callback(name, doc)
        wait_until(lambda: reserve_bytes(spool_dir) > 0)
    real = os.open

    def full(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        new = flags & os.O_CREAT and os.fspath(path).startswith(str(spool_dir)) and not os.path.lexists(path)
        if new and (spool_dir / RESERVE).exists():
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", full)
    assert make_callback().drain(timeout_s=30)

    assert sum(map(len, held(server).values())) == 2 * 20
    assert Spool(spool_dir).run_folders() == []


def test_a_new_spool_needs_a_disk_that_takes_a_name(spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", spool_dir, errno.ENOSPC)
    with pytest.raises(SpoolError, match=f"cannot be written .{os.strerror(errno.ENOSPC)}"):
        Spool(spool_dir)


def test_a_run_that_was_interrupted_leaves_a_disk_without_a_byte(
    make_callback: MakeCallback, server: LocalServer, disk: Disk
) -> None:
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from runs import growth\n"
        "from atomscale_bluesky import AtomscaleCallback, Settings\n"
        "settings = Settings.load(environ={}, spool_dir=sys.argv[1], endpoint=sys.argv[3], offline=True, "
        "spool_min_free_bytes=0)\n"
        "callback = AtomscaleCallback(settings=settings)\n"
        "for name, doc in list(growth(points=200, keys=4))[:-1]: callback(name, doc)\n"
        "from waiting import wait_until; from pathlib import Path\n"
        "reserve = Path(sys.argv[1]) / 'reserve.bin'\n"
        "wait_until(lambda: reserve.exists() and reserve.stat().st_size == 2**19); os._exit(1)\n"
    )
    arguments = [sys.executable, "-c", program, str(disk.spool), str(Path(__file__).parents[1]), server.url]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == 1
    disk.fill()

    assert make_callback(spool_dir=str(disk.spool)).drain(timeout_s=30)

    assert sum(map(len, held(server).values())) == 800
    assert [entry["interrupted"] for entry in Spool(disk.spool).history.entries()] == [True]


INTERRUPTED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from waiting import wait_until
from atomscale_bluesky import DocumentRecorder, Settings

spool, rows = Path(sys.argv[1]), int(sys.argv[4])
recorder = DocumentRecorder(
    Settings.load(environ={}, spool_dir=str(spool), endpoint=sys.argv[2], spool_min_free_bytes=0), redelivers=True
)
recorder.take("start", {"uid": "run", "time": 1e9})
key = {"source": "sim", "dtype": "number", "shape": []}
recorder.take("descriptor", {"uid": "d", "run_start": "run", "name": "primary", "data_keys": {"x": key}})
for begin in range(0, rows, 1000):
    numbers = range(begin, begin + 1000)
    times = [1e9 + n for n in numbers]
    recorder.take("event_page", {
        "descriptor": "d", "uid": [f"e{n}" for n in numbers], "time": times, "seq_num": [n + 1 for n in numbers],
        "data": {"x": [float(n) for n in numbers]}, "timestamps": {"x": times}, "filled": {},
    })
recorder.sync()
wait_until(lambda: (spool / "reserve.bin").exists())
if sys.argv[5] == "closed":
    recorder.close()
os._exit(1)
"""


def interrupted(spool: Path, server: LocalServer, rows: int, how: str = "killed") -> None:
    """A run from a bus, of which some rows are kept when its process is killed, or its recorder closed."""
    tests = str(Path(__file__).parents[1])
    arguments = [sys.executable, "-c", INTERRUPTED, str(spool), server.url, tests, str(rows), how]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == 1


def rest(begin: int, end: int) -> list[Document]:
    """The rest of that run: its events from a number on, and its stop document."""
    events: list[Document] = [
        ("event", {"uid": f"e{n}", "descriptor": "d", "time": 1e9 + n, "seq_num": n + 1, "data": {"x": float(n)},
                   "timestamps": {"x": 1e9 + n}, "filled": {}})
        for n in range(begin, end)
    ]  # fmt: skip
    stop = {"uid": "s", "run_start": "run", "time": 2e9, "exit_status": "success", "num_events": {"primary": end}}
    return [*events, ("stop", stop)]


@pytest.mark.parametrize("rows", [2_000, 40_000], ids=["in the reserve", "once the journal is gone"])
def test_an_interrupted_run_that_left_a_full_disk_goes_on_with_each_reading_once(
    make_callback: MakeCallback, server: LocalServer, disk: Disk, rows: int
) -> None:
    interrupted(disk.spool, server, rows)
    disk.fill()
    assert make_callback(spool_dir=str(disk.spool)).drain(timeout_s=50)
    disk.free_all()

    settings = Settings.load(environ={}, spool_dir=str(disk.spool), endpoint=server.url, spool_min_free_bytes=0)
    with DocumentRecorder(settings, redelivers=True) as recorder:
        wait_until(lambda: recorder.has_room)
        answers = [recorder.take(name, doc) for name, doc in rest(rows - 10, rows + 20)]  # the bus repeats some

    assert [(one.rows, one.known) for one in answers] == [(0, 1)] * 10 + [(1, 0)] * 20 + [(0, 0)]
    assert make_callback(spool_dir=str(disk.spool)).drain(timeout_s=20)
    assert held(server)["x"] == [float(n) for n in range(rows + 20)]


def test_the_reserve_is_not_eaten_by_new_readings_and_comes_back_with_the_room(
    make_callback: MakeCallback, server: LocalServer, disk: Disk
) -> None:
    callback = with_reserve(make_callback, disk, runs=1)
    documents = list(growth(points=20_000, keys=8))
    for name, doc in documents[:3]:
        callback(name, doc)
    disk.fill()
    wait_until(lambda: not callback._spool.writers.has_room)
    for name, doc in documents[3:10_000]:
        callback(name, doc)
    status = callback.status()
    assert status.no_room.startswith("its disk is full")
    assert reserve_bytes(disk.spool) == 2**19

    other = make_callback(spool_dir=str(disk.spool), spool_max_bytes=10**9)
    wait_until(lambda: reserve_bytes(disk.spool) == 0)
    for name, doc in documents[10_000:-1]:  # as fast as they come, while the ledgers need the bytes
        callback(name, doc)
    wait_until(lambda: len(Spool(disk.spool).history.entries()) == 1)
    assert other.status().no_room.startswith("its disk is full")

    disk.free_all()
    wait_until(lambda: reserve_bytes(disk.spool) == 2**19 and callback._spool.writers.has_room)
    assert callback.status().no_room == ""
    callback(*documents[-1])
    (run,) = callback.status()
    assert run.points.seen == 8 * (len(documents) - 3)
    assert run.points.left_out["no room in the spool"] >= 8 * 9000
    assert other.drain(timeout_s=30)


def test_a_run_is_discarded_or_tried_again_where_no_byte_is_free(
    make_callback: MakeCallback, server: LocalServer, disk: Disk
) -> None:
    callback = with_reserve(make_callback, disk, runs=2)
    first, second = (run.run_uid for run in callback.status())
    callback.close()
    disk.fill()

    discarded = command(disk, "discard", first, "--yes")
    tried_again = command(disk, "retry", second)

    assert (discarded.returncode, tried_again.returncode) == (0, 0), discarded.stderr + tried_again.stderr
    assert make_callback(spool_dir=str(disk.spool)).drain(timeout_s=30)
    history = {
        entry["run_uid"]: (entry["delivered"], entry["discarded"]) for entry in Spool(disk.spool).history.entries()
    }
    assert history == {first: (0, 800), second: (800, 0)}


def test_an_order_that_finds_no_room_at_all_says_what_to_do(make_callback: MakeCallback, disk: Disk) -> None:
    callback = with_reserve(make_callback, disk, runs=1)
    (run,) = callback.status()
    callback.close()
    (disk.spool / RESERVE).unlink()
    disk.fill()

    told = command(disk, "discard", run.run_uid, "--yes")

    assert told.returncode == 1
    assert "No space left on device" in told.stderr
    assert "Traceback" not in told.stderr


def test_status_says_that_the_disk_is_full_and_what_to_do(make_callback: MakeCallback, disk: Disk) -> None:
    with_reserve(make_callback, disk).close()
    well = command(disk, "status")
    disk.fill()
    full, as_json = command(disk, "status"), command(disk, "status", "--json")

    assert well.returncode == 0
    assert "its disk is full" not in well.stdout
    assert full.returncode == as_json.returncode == 1
    assert "2 400 points waiting" in full.stdout
    assert "its disk is full: 0 kB free, and delivery needs 524 kB. Free some space; what is delivered" in full.stdout
    with_floor = command(disk, "status", ATOMSCALE_BLUESKY_SPOOL_MIN_FREE_BYTES="500000000")
    assert (
        "its disk is full: 0.0 MB free, and 500 MB are to stay free (spool_min_free_bytes). Free some space, or lower "
        "that setting; what is delivered makes room too."
    ) in with_floor.stdout
    assert json.loads(as_json.stdout)["no_room"].startswith("its disk is full")
    assert reserve_bytes(disk.spool) == 2**19  # looking costs nothing


def test_a_file_of_that_name_that_is_not_the_spools_is_left_alone(
    make_callback: MakeCallback, server: LocalServer, disk: Disk
) -> None:
    disk.spool.mkdir()
    (disk.spool / RESERVE).write_bytes(b"mine")
    callback = make_callback(spool_dir=str(disk.spool))
    for name, doc in growth(points=20):
        callback(name, doc)
    assert callback.drain(timeout_s=30)
    callback.close()
    disk.fill()
    make_callback(spool_dir=str(disk.spool)).status()

    assert (disk.spool / RESERVE).read_bytes() == b"mine"
    assert sum(map(len, held(server).values())) == 40


def test_a_run_that_found_a_full_disk_is_counted_now_and_after_its_session(
    make_callback: MakeCallback, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    callback = with_reserve(make_callback, disk, runs=1)
    disk.fill()
    wait_until(lambda: not callback._spool.writers.has_room)
    documents = list(growth(points=50, keys=4))
    for name, doc in documents:
        callback(name, doc)

    (run,) = callback.status().not_kept
    assert (run.run_uid, run.readings) == (documents[0][1]["uid"], 200)
    assert "its disk is full" in run.reason
    assert f"; `atomscale-bluesky status --spool-dir {disk.spool}` shows it" in caplog.text
    assert callback.ignored == {"run not kept": 1}
    callback.close()

    as_json, text = command(disk, "status", "--json"), command(disk, "status")
    (told,) = json.loads(as_json.stdout)["not_kept"]
    assert (told["run_uid"], told["readings"]) == (run.run_uid, 200)
    assert f"Run {run.run_uid[:8]}" in text.stdout
    assert "was not kept: 200 readings left out" in text.stdout


# ---- everywhere ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_written_once_room_was_made(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; giving up the reserve, for a larger limit."""
    program = """
        import json, resource, signal, sys
        from pathlib import Path
        from atomscale_bluesky.spool.line_file import LineFile; from atomscale_bluesky.spool.lines import checksummed

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        made = []

        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        def make_room():
            made.append(1)
            limit(10_000)

        file = LineFile(Path(sys.argv[1]) / "ledger.jsonl", make_room=make_room)
        limit(500)
        for n in range(30):
            file.append(checksummed(json.dumps([n, "x" * 60]).encode()))
        print(len(made))
    """
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, capture_output=True, text=True
    )

    assert done.stdout.split() == ["1"]
    assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 30


@pytest.mark.parametrize("from_the_beginning", [False, True])
def test_an_interrupted_run_goes_on_if_the_list_of_its_events_never_fits(
    server: LocalServer, spool_dir: Path, from_the_beginning: bool
) -> None:
    """A limit on the size of files stands for a disk that another program fills again at once."""
    pytest.importorskip("resource")
    interrupted(spool_dir, server, 10_000, "closed")
    program = (
        "import resource, sys; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))\n"
        "from atomscale_bluesky.__main__ import main; sys.exit(main())\n"
    )
    environment = {name: value for name, value in os.environ.items() if "ATOMSCALE" not in name}
    environment |= {"ATOMSCALE_API_KEY": server.api_key, "ATOMSCALE_API_ENDPOINT": server.url}
    arguments = [sys.executable, "-c", program, "upload", "--spool-dir", str(spool_dir), "--timeout", "50"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    settings = Settings.load(environ={}, spool_dir=str(spool_dir), endpoint=server.url, spool_min_free_bytes=0)
    documents = rest(10_000, 10_020)
    if from_the_beginning:
        key = {"source": "sim", "dtype": "number", "shape": []}
        described = {"uid": "d", "run_start": "run", "name": "primary", "data_keys": {"x": key}}
        documents = [("start", {"uid": "run", "time": 1e9}), ("descriptor", described), *rest(0, 10_020)]
    with DocumentRecorder(settings, redelivers=True) as recorder:
        assert sum(recorder.take(name, doc).rows for name, doc in documents) == 20
    told = " ".join(done.stdout.split())
    assert "the list of its events cannot be stored: if it comes again, some of its readings may arrive twice" in told


def test_a_run_that_found_no_room_is_counted_and_taken_when_it_is_replayed(
    make_callback: MakeCallback, server: LocalServer, spool_dir: Path
) -> None:
    full = make_callback(offline=True, spool_max_bytes=1_000_000)
    for name, doc in growth(points=1500, keys=100):
        full(name, doc)
    full.close()
    callback = make_callback(offline=True, spool_max_bytes=1_000_000)
    documents = list(growth(points=30, start_metadata={"plan_name": "late"}))
    for name, doc in documents:
        callback(name, doc)
    begun = list(growth(points=5))
    for name, doc in begun[:-1]:  # its stop never comes
        callback(name, doc)
    callback.close()

    later = make_callback(spool_max_bytes=10**9)
    runs = [(run.run_uid, run.label.split()[0], run.readings) for run in later.status().not_kept]
    assert runs == [(documents[0][1]["uid"], "late", 60), (begun[0][1]["uid"], "grow", 10)]
    assert all("spool_max_bytes" in run.reason for run in later.status().not_kept)

    assert later.drain(timeout_s=60)
    for name, doc in documents:
        later(name, doc)
    assert later.drain(timeout_s=30)
    assert later.ignored == {}
    late = next(stream for stream in server.streams() if stream.label.startswith("late"))
    assert (late.status, late.points) == ("success", 60)


def test_the_list_of_runs_that_found_no_room_is_bounded(make_callback: MakeCallback, spool_dir: Path) -> None:
    spool = Spool(spool_dir)
    spool.writers.stop_threads()
    for n in range(4000):
        spool.writers.note_not_kept(NotKept(f"run {n}", "x" * 200, 0.0, float(n), n, "the spool has no room"))

    kept = spool.not_kept.runs()
    assert kept[-1].run_uid == "run 3999"
    assert len(kept) >= 500
    assert sum(path.stat().st_size for path in spool_dir.glob("not-kept*.jsonl")) < 600_000


def test_the_reserve_is_real_space_for_its_owner_alone_and_made_when_a_run_begins(
    make_callback: MakeCallback, spool_dir: Path
) -> None:
    callback = make_callback(offline=True)
    callback.status()
    assert not (spool_dir / RESERVE).exists()
    for name, doc in growth(points=2):
        callback(name, doc)

    wait_until(lambda: reserve_bytes(spool_dir) == 2**20)
    found = (spool_dir / RESERVE).stat()
    if os.name != "nt":
        assert found.st_mode & 0o777 == 0o600
        assert found.st_blocks * 512 >= 2**20
    assert (spool_dir / RESERVE).read_bytes().startswith(b"Space that atomscale-bluesky gives up")
