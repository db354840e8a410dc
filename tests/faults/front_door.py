"""The front door used at random: `python -m tests.faults.front_door --seeds 10000 --jobs 2`.

Documents, signals, threads, `close`, forks, clock steps and kills in any order; then what was left is delivered and
judged: each reading whose call returned is there exactly once.
"""

# ruff: noqa: T201 - it is a program that speaks to a person

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

# So many seeds share a server, whose lists grow with what it holds.
AT_ONCE = 20


def main() -> int:
    """Play the seeds and print what was wrong; 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.front_door", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--keep", type=Path, help="keep the folders of failed seeds in this folder")
    given = parser.parse_args()

    from .seeds import play_many  # here, since each process of a life imports this module again, and not the server

    begin, failed = time.monotonic(), 0
    end = given.first + given.seeds
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(play_many, first, min(AT_ONCE, end - first), given.keep)
            for first in range(given.first, end, AT_ONCE)
        ]
        for done, job in enumerate(as_completed(jobs), start=1):
            if done % 10 == 0:
                print(f"{done * AT_ONCE} seeds, {failed} with problems", flush=True)
            for seed, problems in job.result():
                failed += 1
                print(f"seed {seed}:", *problems, sep="\n    ", flush=True)
    print(f"{given.seeds} seeds, {failed} with problems, {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
