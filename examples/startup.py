"""A start-up file, as IPython profiles and bluesky-queueserver load it: a RunEngine that streams every run.

    cp examples/startup.py ~/.ipython/profile_lab/startup/10-atomscale.py
    ipython --profile=lab

For queueserver, put it into the folder that `--startup-dir` names. The key belongs into the environment of the process
that runs plans: ATOMSCALE_API_KEY.
"""

from bluesky import RunEngine
from bluesky.plans import count, scan  # noqa: F401 - for the people, and the queue, that come after
from ophyd.sim import det, motor  # noqa: F401

from atomscale_bluesky import AtomscaleCallback, validate_metadata

RE = RunEngine({"synth_source_id": 42})

# Subscribed first, so that no other callback's failure keeps a document from it.
atomscale = AtomscaleCallback()
RE.subscribe(atomscale)

# Refuses a run whose metadata Atomscale could not use, before anything moves. Without it such a run is kept on disk.
RE.md_validator = validate_metadata
