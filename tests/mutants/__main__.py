"""`python -m tests.mutants --folder journal --sample 30 --seed 1`: which small mistakes the tests do not notice."""

# ruff: noqa: T201 - it is a program that speaks to a person

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from difflib import unified_diff
from itertools import islice
from pathlib import Path

from .mistakes import Mistake, mistakes
from .trial import PACKAGE, run

ROOT = Path(__file__).parents[2]
LIMIT_S = 240  # of one mistake's tests; what takes longer hangs
FOLDERS = {
    "documents": (
        "documents/accepted",
        "documents/channels",
        "documents/conversion",
        "documents/early_events",
        "documents/event_page",
        "documents/event_stream",
        "documents/event_taker",
        "documents/known_runs",
        "documents/layout_chooser",
        "documents/metadata",
        "documents/missing_events",
        "documents/open_run",
        "documents/open_runs",
        "documents/recognition",
        "documents/recorder",
        "documents/remembered_runs",
        "documents/row_times",
        "documents/run_files",
        "documents/run_lookup",
        "documents/run_taker",
        "documents/time_base",
    ),
    "journal": (
        "spool/segments",
        "spool/line_bounds",
        "spool/journal_writer",
        "spool/journal_reader",
        "spool/line_file",
        "spool/lines",
        "spool/journal_format",
        "spool/row_record",
        "spool/run_writer",
        "spool/run_reader",
    ),
    "chunking": (
        "chunking/chunker",
        "chunking/cut_stream",
        "chunking/run_chunker",
        "chunking/cut_results",
        "chunking/rows_ahead",
        "chunking/stream_openings",
        "chunking/recut",
    ),
    "spool": (
        "spool/spool",
        "spool/run_writers",
        "spool/runs_not_kept",
        "spool/leftovers",
        "spool/run_claim",
        "spool/history",
        "spool/journal_events",
        "spool/kept_events",
        "spool/disk_space",
        "spool/reserve",
        "spool/locks",
        "spool/session_lock",
        "spool/file_lock",
        "spool/stored_events",
        "spool/spool_folder",
        "spool/own_files",
    ),
    "ledger": ("spool/ledger", "spool/ledger_state", "spool/stream_state"),
    "delivery": (
        "delivery/uploader",
        "delivery/delivery_loop",
        "delivery/worker_pool",
        "delivery/task_runner",
        "delivery/retry_policy",
        "delivery/active_runs",
        "delivery/run_claiming",
        "delivery/ledger_growth",
        "delivery/run_scheduler",
        "delivery/turns",
        "delivery/waiting_runs",
        "delivery/run_delivery",
        "delivery/run_orders",
        "delivery/run_end",
        "delivery/task_order",
        "delivery/claimed_run",
        "delivery/unfinished_tasks",
        "delivery/refusals",
        "delivery/stream_end_rules",
        "delivery/tasks/chunk_requests",
        "delivery/tasks/finalize",
        "delivery/tasks/initialize",
        "delivery/tasks/make_links",
        "delivery/tasks/measure_clock",
        "delivery/tasks/preview",
        "delivery/tasks/push",
        "delivery/tasks/read_back",
        "delivery/tasks/resolve",
        "delivery/tasks/verify",
        "delivery/tasks/work",
        "delivery/backoff",
        "delivery/connection_limit",
        "delivery/pending_links",
        "delivery/previews",
    ),
    "api": (
        "api/answers",
        "api/answer_reader",
        "api/client",
        "api/clock",
        "api/connection",
        "api/json_parts",
        "api/lists",
        "api/stream_content",
        "api/wire",
    ),
}


def main() -> int:
    """Note which test runs which line, or try mistakes and print those that no test notices."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Which mistakes the tests notice.")
    parser.add_argument("--folder", action="append", choices=FOLDERS, help="whose code; may be repeated")
    parser.add_argument("--sample", type=int, default=30, help="how many mistakes of each folder, at random")
    parser.add_argument("--seed", type=int, default=1, help="which sample")
    parser.add_argument("--seconds", type=float, default=60, help="how much of the tests each one gets, fastest first")
    parser.add_argument("--only", type=int, action="append", help="of the sample, the one of this number")
    parser.add_argument(
        "--notes", type=Path, default=ROOT / ".coverage.mutants.json", help="which test runs which line"
    )
    parser.add_argument(
        "--note", nargs="+", metavar="TESTS", help="add what these test files run to the notes, and end"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as copy:
        tree = _copy(Path(copy))
        if given.note:
            _, code = run(tree, given.note, notes=given.notes)
            print((tree / "pytest.log").read_text()[-2000:])
            return code or 0
        notes = json.loads(given.notes.read_text())
        alive = 0
        for folder in given.folder or FOLDERS:
            every = [m for name in FOLDERS[folder] for m in mistakes(f"{name}.py", _source(ROOT, f"{name}.py"))]
            random.Random(given.seed).shuffle(every)
            sample = list(islice(filter(_compiles, every), given.sample))
            print(f"{folder}: {len(sample)} of {len(every)}, seed {given.seed}", flush=True)
            tried = [number for number in range(len(sample)) if not given.only or number in given.only]
            living = sum(_lives(tree, n, sample[n], _tests(notes, sample[n], given.seconds)) for n in tried)
            print(f"{folder}: {len(tried) - living} of {len(tried)} are noticed", flush=True)
            alive += living
    return 1 if alive else 0


def _copy(folder: Path) -> Path:
    """The tree without what is not part of it; the mistakes are made here."""
    unneeded = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "build", "_build")
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=unneeded))


def _source(tree: Path, module: str) -> str:
    return (tree / PACKAGE / module).read_text()


def _compiles(mistake: Mistake) -> bool:
    try:
        compile(mistake.made_in(_source(ROOT, mistake.module)), mistake.module, "exec")
    except (SyntaxError, AttributeError):  # the latter from cosmic-ray, for an exception with a dot in its name
        return False
    return True


def _tests(notes: dict, mistake: Mistake, seconds: float) -> list[str]:
    """The tests that run the line, fastest first.

    For a line that runs at import these are the tests that run any line of its module, or none of the package.
    """
    by_line = notes["lines"][mistake.module]
    names = {name for name in by_line.get(str(mistake.line), []) if name}
    if not names or mistake.at_import:
        elsewhere = {name for lines in notes["lines"].values() for found in lines.values() for name in found}
        names = {name for found in by_line.values() for name in found if name} | (notes["seconds"].keys() - elsewhere)
    chosen: list[str] = []
    for name in sorted(names & notes["seconds"].keys(), key=notes["seconds"].__getitem__):
        seconds -= notes["seconds"][name]
        if seconds >= 0 and len(name) < 300:  # a longer name holds data, which the mistake may change
            chosen.append(name)
    return chosen


def _lives(tree: Path, number: int, mistake: Mistake, tests: list[str]) -> bool:
    """Make one mistake and run tests; whether none of them notices."""
    path = tree / PACKAGE / mistake.module
    right = path.read_text()
    wrong = mistake.made_in(right)
    path.write_text(wrong)
    began = time.monotonic()
    failed, code = run(tree, tests, limit_s=LIMIT_S) if tests else ("", 0)
    path.write_text(right)
    log = (tree / "pytest.log").read_text() if tests else ""
    if "ERROR: not found" in log and "ERROR collecting" not in log:
        raise SystemExit(f"the notes name tests that are not there any more; write them anew\n{log[-500:]}")
    lives = code == 0
    came = f"LIVES through {len(tests)} tests" if lives else f"is noticed by {failed or 'an error at import'}"
    came = "is noticed, it hangs" if code is None else came
    print(f"{number:3d} {mistake.module}:{mistake.line} {came} ({time.monotonic() - began:.0f} s)", flush=True)
    if lives:
        difference = unified_diff(right.splitlines(True), wrong.splitlines(True), n=0)
        print("".join(line for line in difference if line[:3] not in {"---", "+++"}), flush=True)
    return lives


if __name__ == "__main__":
    sys.exit(main())
