"""Documents that come from somewhere else than a RunEngine: each is acknowledged when it is safe.

    python examples/record_documents.py documents.jsonl
    export ATOMSCALE_API_KEY=...
    atomscale-bluesky upload

A line of the file is one document: `{"name": "start", "doc": {...}}`, as Bluesky's JSONLinesWriter writes it, or
`["start", {...}]`. A message bus looks the same: `recorder.take` in the place where a message arrives, and its
acknowledgement behind `recorder.sync`.
"""

import json
import sys
from pathlib import Path

from atomscale_bluesky import DocumentError, DocumentRecorder

if len(sys.argv) != 2:
    raise SystemExit("usage: python record_documents.py FILE")
path = Path(sys.argv[1])
done = path.with_suffix(".done")  # how many lines of the file are safe: what a bus calls an acknowledgement
first = int(done.read_text()) if done.exists() else 0
rows = 0

with DocumentRecorder() as recorder:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        found = json.loads(line)
        name, doc = (found["name"], found["doc"]) if isinstance(found, dict) else found
        if number <= first and name not in {"start", "descriptor"}:
            continue  # a run goes on where it was: its start document and descriptors are told again
        try:
            accepted = recorder.take(name, doc)
        except DocumentError as error:
            print(f"line {number} is left out: {error}")
            continue
        rows += accepted.rows
        if accepted.try_again:
            raise SystemExit(
                f"line {number} finds no room: {dict(accepted.left_out)}; free some space, and start again"
            )
        recorder.sync()  # now a power cut cannot take it; once for many documents is faster
        done.write_text(str(number))

print(f"{rows} rows are in the spool; `atomscale-bluesky upload` delivers them.")
