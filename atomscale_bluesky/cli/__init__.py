"""The command line `atomscale-bluesky`: arguments in, exit code out.

Each command is in the file of its name. Two files have several: `orders` has `retry`, `discard`, `edit`, `settle` and
`move`, `resources` has `instruments`, `samples` and `projects`. A command imports what it needs when it runs. So
`--help` is quick, and an extra that is not installed stops only the commands that need it.

    formatting   text from outside made harmless; numbers, times and the console
    options      options that may be given only once
    asking       what commands that only ask the API share
    runs         the argument RUN: which run is meant, and where its points come from
    sending      what `send` does wherever the runs come from; send_tiled, `send tiled`
    delivering   what `send` and `upload` share: the check before, the bar, the report after
    correction   what `edit` corrects
    ending       what a command does at Ctrl-C and SIGTERM
    shown_runs   which runs `status` shows, and which of them as one
    run_text     what `status` shows of one run; status_text, what else it shows
    monitoring   what `status --check` prints
    exposition   what `metrics` serves
    demo_display what `demo` shows while it runs

Exit codes: 0 all is well. 1 it is not, as the command says. 2 the command could not begin: a wrong argument or setting,
a port in use, an extra that is not installed. 130 Ctrl-C, 143 SIGTERM. `upload --follow` and `status --check` have
codes of their own, which their help lists.
"""

from __future__ import annotations

import click

from .board import board
from .config import config
from .consume import consume
from .demo import demo
from .doctor import doctor
from .export import export
from .metrics import metrics
from .orders import discard, edit, move, retry, settle
from .plot import plot
from .probe import probe
from .resources import instruments, projects, samples
from .send import send
from .serve import serve
from .show import show
from .status import status
from .upload import upload
from .verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="atomscale-bluesky", message="%(prog)s %(version)s")
def commands() -> None:
    """Stream Bluesky runs to Atomscale while the plan runs.

    In a Bluesky session no command is needed:

    
        from atomscale_bluesky import AtomscaleCallback
        RE.subscribe(AtomscaleCallback())

    These commands show what happens to your readings, and help when a run needs your decision. New here? Begin with
    `atomscale-bluesky demo`.

    The API key comes from the environment variable ATOMSCALE_API_KEY or AS_API_KEY, or from the settings file. It never
    comes from the command line.
    """


_LOOK = (demo, status, board, metrics, show, plot, export, upload, verify, doctor, config, probe)
_LIST = (instruments, samples, projects)
_LEND_A_HAND = (send, consume, retry, edit, discard, settle, move, serve)
for _command in (*_LOOK, *_LIST, *_LEND_A_HAND):
    commands.add_command(_command)

__all__ = ["commands"]
