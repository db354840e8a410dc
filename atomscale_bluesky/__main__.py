"""`atomscale-bluesky` and `python -m atomscale_bluesky`: the command line, or one line that says why it cannot run.

Only the standard library is needed to say which extra is missing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

# Which extra installs a module that a command may be missing.
_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "fastapi": "server",
    "starlette": "server",
    "uvicorn": "server",
    "bluesky": "demo",
    "matplotlib": "demo",
    "plotille": "plot",
    "pyarrow": "parquet",
    "ophyd": "demo",
    "zmq": "zmq",
    "nats": "nats",
    "confluent_kafka": "kafka",
    "prometheus_client": "metrics",
    "tiled": "tiled",
    "httpx": "tiled",
}

# The same where it depends on the command.
_EXTRAS_OF_COMMANDS = {
    ("plot", "matplotlib"): "plot",
    ("metrics", "fastapi"): "metrics",
    ("metrics", "starlette"): "metrics",
    ("metrics", "uvicorn"): "metrics",
}

FAILED, NOT_BEGUN, INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: Used instead of the process's arguments.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")  # a terminal without our characters is no reason to end
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        given = sys.argv[1:] if arguments is None else arguments
        extra = next((_EXTRAS_OF_COMMANDS.get((one, missing)) for one in given[:1]), None) or _EXTRAS[missing]
        return _say(
            f"this command needs {missing}, which is not installed; python -m pip install 'atomscale-bluesky[{extra}]'",
            NOT_BEGUN,
        )


def _open_closed_streams() -> None:
    """Let nothing be printed where standard output or standard error is closed, as daemons and `>&-` close them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def _run(arguments: list[str] | None) -> int:
    import click

    from .cli import commands
    from .cli.formatting import safe
    from .errors import ApiKeyError, AtomscaleBlueskyError, SettingsError

    try:
        # Not standalone, because click would then turn Ctrl-C into exit code 1.
        code = commands.main(arguments, prog_name="atomscale-bluesky", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _show(error)
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED)
    except SettingsError as error:
        return _say(safe(error, limit=2000), NOT_BEGUN)
    except ApiKeyError as error:
        from .settings import FIELDS, place_of_key

        place = safe(place_of_key(FIELDS, os.environ))
        return _say(f"{safe(error, limit=2000)}; check the key in {place}", FAILED)
    except AtomscaleBlueskyError as error:
        return _say(safe(error, limit=2000), FAILED)
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return FAILED
    except OSError as error:  # a file or a folder; the error names it
        return _say(safe(error, limit=2000), FAILED)
    return code if isinstance(code, int) else 0


def _show(error: click.ClickException) -> int:
    """Print an error of click, and the command's usage if it was used wrongly, as all other errors are printed."""
    shown, message = io.StringIO(), error.format_message()
    error.show(shown)
    usage, ends_so, _ = shown.getvalue().rpartition(f"Error: {message}\n")
    if not ends_so:  # in another language
        print(shown.getvalue(), end="", file=sys.stderr)
        return error.exit_code
    print(usage, end="", file=sys.stderr)
    return _say(message, error.exit_code)


def _say(text: str, code: int) -> int:
    print(f"atomscale-bluesky: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
