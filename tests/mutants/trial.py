"""Runs tests in a process of its own, in a copy of the source tree, and tells which of them fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

# What every test imports anyway is imported once, in the process that the others are forked from.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["bluesky.run_engine", "ophyd.sim", "fastapi", "uvicorn", "hypothesis"])
PACKAGE = "atomscale_bluesky"


def run(
    tree: Path, tests: list[str], *, limit_s: float | None = None, notes: Path | None = None
) -> tuple[str, int | None]:
    """The first test that fails, or "", and pytest's exit code; None if it was still running after `limit_s`."""
    said = tree / "failed.txt"
    said.write_text("")
    process = _FORKS.Process(target=_run, args=(tree, tests, said, notes))
    process.start()
    process.join(limit_s)
    hangs = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
    process.join()
    return said.read_text(), None if hangs else process.exitcode


def _run(tree: Path, tests: list[str], said: Path, notes: Path | None) -> None:
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    with (tree / "pytest.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    plugins = [_Says(said)] if notes is None else [_Notes(notes)]
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", f"--basetemp={tree / 'tmp'}", "-o", "timeout=30"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # for what is imported already
    code = pytest.main([*options, *([] if notes else ["-x"]), *tests], plugins=plugins)
    sys.stdout.flush()
    os._exit(code)  # without waiting for threads that a mistake has left


class _Says:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._path.write_text(report.nodeid)


class _Notes:
    """Notes which test runs which lines of the package, and how long each takes."""

    def __init__(self, path: Path) -> None:
        import coverage

        self._path = path
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(data_file=str(path) + ".coverage", source=[PACKAGE])
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        files = [file for file in data.measured_files() if PACKAGE in Path(file).parts]
        notes = json.loads(self._path.read_text()) if self._path.exists() else {"seconds": {}, "lines": {}}
        notes["seconds"] |= {name: took for name, took in self._seconds.items() if name not in self._failed}
        for file in files:
            module = Path(file).as_posix().rpartition(f"/{PACKAGE}/")[2]
            lines = notes["lines"].setdefault(module, {})
            for number, tests in data.contexts_by_lineno(file).items():
                lines[str(number)] = sorted({*lines.get(str(number), ()), *tests})
        self._path.write_text(json.dumps(notes))
