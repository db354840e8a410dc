"""`python -m tests.faults --seeds N [--scenario NAME] [--jobs 2]`: many seeds, and a table."""

# ruff: noqa: T201 - it is a program that speaks to a person

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from .bench import Result
from .scenarios import SCENARIOS, play_seed
from .table import quantiles, table


def main() -> int:
    """Play the seeds, print what came of them; 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Many seeds of the fault bench.")
    parser.add_argument(
        "--seeds",
        type=int,
        default=20,
        help="seeds of each scenario; kills get ten times, power cuts twenty times, damage five times as many",
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--scenario", action="append", help=f"one of {', '.join(SCENARIOS)}; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--keep", type=Path, help="keep spools and disks of failed seeds in this folder")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    given = parser.parse_args()
    if given.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name}: {scenario.promise}")
        return 0
    names = given.scenario or list(SCENARIOS)
    results: list[Result] = []
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(play_seed, name, seed, given.keep)
            for name in names
            for seed in range(given.first, given.first + given.seeds * SCENARIOS[name].weight)
        ]
        for job in as_completed(jobs):
            result = job.result()
            results.append(result)
            if result.problems:
                print(f"{result.scenario} seed {result.seed}:", *result.problems[:8], sep="\n    ", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(results)}/{len(jobs)}", end="", file=sys.stderr)
    print(table(results))
    print(quantiles("in a process of its own", [call for r in results for call in r.calls]))
    print(quantiles("beside the server", [call for r in results for call in r.calls_beside_server]))
    totals = sum((result.counts for result in results), Counter[str]())
    print("; ".join(f"{what}: {n}" for what, n in sorted(totals.items())))
    oldest = max((result.oldest_lost_s for result in results), default=0.0)
    print(f"oldest reading that a power cut took: {oldest * 1e3:.0f} ms")
    if given.json:
        rows = [{"scenario": r.scenario, "seed": r.seed, "problems": r.problems, "took_s": r.took_s} for r in results]
        given.json.write_text(json.dumps(rows, indent=1))
    return 1 if any(result.problems for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
