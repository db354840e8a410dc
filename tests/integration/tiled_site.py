"""A site with a Tiled server: run by the interpreter of an environment of its own, which has Tiled and Bluesky.

tiled_site.py serve FOLDER PORT             the server, with the exporter that sites with Bluesky configure
tiled_site.py serve FOLDER PORT bare        the same without that exporter
tiled_site.py serve FOLDER PORT databroker  a catalogue of databroker with the runs of the folder's files
tiled_site.py write ADDRESS FOLDER          runs of a RunEngine with TiledWriter, and what was emitted as a file
tiled_site.py copy ADDRESS FILE             the documents of a file, through TiledWriter
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

CATALOGUE = "mbe"


def serve(folder: Path, port: int, *, exports: bool = True) -> None:
    import uvicorn
    from bluesky_tiled_plugins.exporters import json_seq_exporter
    from tiled.catalog import from_uri as catalogue_from_uri
    from tiled.config import Authentication
    from tiled.media_type_registration import default_serialization_registry
    from tiled.server.app import build_app

    (folder / "data").mkdir(parents=True, exist_ok=True)
    if exports:
        default_serialization_registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    catalogue = catalogue_from_uri(
        folder / "catalogue.db",
        writable_storage=[folder / "data", f"duckdb:///{folder / 'storage.duckdb'}"],
        init_if_not_exists=True,
    )
    app = build_app(catalogue, authentication=Authentication(single_user_api_key="secret"))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def serve_databroker(folder: Path, port: int) -> None:
    """Serve runs as sites have them that kept documents in MongoDB, which has a stand-in in memory here."""
    import uvicorn
    from databroker.mongo_normalized import MongoAdapter
    from tiled.config import Authentication
    from tiled.server.app import build_app

    catalogue = MongoAdapter.from_mongomock()
    insert = catalogue.get_serializer()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            insert(*json.loads(line))
    app = build_app(catalogue, authentication=Authentication(single_user_api_key="secret"))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def catalogue_at(address: str) -> Any:
    root = from_uri(address)
    return root[CATALOGUE] if CATALOGUE in root else root.create_container(CATALOGUE)


def write(address: str, folder: Path) -> None:
    """Write a run of several event streams with arrays, a run whose array will be gone, and five short ones."""
    from bluesky import RunEngine
    from bluesky.plan_stubs import abs_set, monitor, unmonitor
    from bluesky.plans import count, scan
    from bluesky.preprocessors import SupplementalData, run_wrapper
    from bluesky.utils import Msg
    from ophyd import Signal
    from ophyd.sim import SynAxis, SynSignal, det, motor

    class Gauge(Signal):
        def describe(self) -> dict[str, Any]:
            described = super().describe()
            described[self.name]["units"] = "mbar"
            return described

    pressure = Gauge(name="pressure", value=1e-9)
    stage = SynAxis(name="stage", value=12.5)
    steps = iter(range(1, 10**6))
    zones = SynSignal(name="zones", func=lambda: np.arange(3) * 0.5 + next(steps))
    spectrum = SynSignal(name="spectrum", func=lambda: np.linspace(0, 1, 40) * next(steps))

    engine = RunEngine({"synth_source_id": 42})
    files: dict[str, Path] = {}
    name = ""

    def keep(kind: str, doc: dict[str, Any]) -> None:
        with files[name].open("a") as file:
            file.write(json.dumps([kind, doc], default=plain) + "\n")

    engine.subscribe(keep)
    engine.subscribe(TiledWriter(catalogue_at(address)))

    def do(what: str, plan: Any, **metadata: Any) -> None:
        nonlocal name
        name = what
        files[name] = folder / f"{name}.jsonl"
        engine(plan, **metadata)

    def watched() -> Any:
        """A scan within a run that monitors the gauge, as a plan of a chamber does."""
        yield from monitor(pressure, name="pressure_monitor")
        for n in range(6):
            yield from abs_set(motor, n, wait=True)
            yield from abs_set(pressure, 1e-9 * (n + 2), wait=True)
            yield Msg("create", name="primary")
            for device in (det, motor, zones, pressure):
                yield Msg("read", device)
            yield Msg("save")
        yield from unmonitor(pressure)

    engine.preprocessors.append(SupplementalData(baseline=[stage]))
    do("growth", run_wrapper(watched()), label="the growth")
    engine.preprocessors.clear()
    do("spectrum", count([spectrum], 4))
    for n in range(5):
        do(f"short{n}", scan([det], motor, 0, 1, 3 + n))


def copy(address: str, path: Path) -> None:
    """Write a file's documents. A run without a stop document is what a writer leaves that was killed."""
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    ends = documents[-1][0] == "stop"
    writer = TiledWriter(catalogue_at(address), batch_size=10_000 if ends else 1)
    for name, doc in documents:
        writer(name, doc)


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", folder, port]:
            serve(Path(folder), int(port))
        case ["serve", folder, port, "bare"]:
            serve(Path(folder), int(port), exports=False)
        case ["serve", folder, port, "databroker"]:
            serve_databroker(Path(folder), int(port))
        case ["write", address, folder]:
            write(address, Path(folder))
        case ["copy", address, file]:
            copy(address, Path(file))
        case _:
            raise SystemExit(__doc__)
