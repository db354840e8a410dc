"""`python -m benchmarks <name> [--short] [--json FILE] [--markdown FILE]`."""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path

PROGRAMS = {
    "event": "what one event costs on the RunEngine's thread",
    "plan": "how much longer a plan takes because our callback is subscribed",
    "drain": "how fast a backlog goes from the disk to the last confirmation",
    "parts": "what the time goes into: the parts of an event, and those of a chunk",
    "memory": "how far the process grows in a long run, and while a backlog is delivered",
    "outage": "what a hundred million points of an outage take in memory and on disk, and delivering them",
    "latency": "how long it takes from the last event of a chunk to the chunk's confirmation",
    "link": "how much of a slow link's connections is used, and how many there are",
    "connections": "how the number of connections settles, simulated against servers of several kinds",
    "startup": "what importing, constructing and a run of one event cost",
    "scale": "whether the cost stays flat: long runs, many runs, runs at once, a thousand keys for ten minutes",
    "idle": "what a session with nothing to do costs beside thousands of runs that wait",
    "recording": "what sending a recorded run of 200 MB takes, killed and resumed too",
    "consume": "what taking documents from Kafka or NATS costs, beside their own clients",
    "worst": "how long a call can take at worst, while a backlog is delivered",
    "scraped": "what a plan pays while the metrics of its spool are scraped every second",
}


def main() -> None:
    """Run one program and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True, metavar="NAME")
    for name, text in PROGRAMS.items():
        program = programs.add_parser(name, help=text, description=text)
        program.add_argument("--short", action="store_true", help="a few seconds only; its figures mean little")
        program.add_argument("--rounds", type=int, help="how often each contestant has its turn")
        program.add_argument("--without-peers", action="store_true", help="fetch nothing from PyPI")
        program.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        program.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    # Runs that wait, servers that are down: all of it is on purpose here.
    logging.getLogger("atomscale_bluesky").setLevel(logging.CRITICAL)

    module = importlib.import_module(f".{arguments.program}", __package__)
    report = module.measure(short=arguments.short, rounds=arguments.rounds, with_peers=not arguments.without_peers)
    print(report.text())
    if arguments.json:
        arguments.json.write_bytes(report.json())
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
