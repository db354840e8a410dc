"""`atomscale-bluesky` and `python -m atomscale_bluesky`: the command line, and one line for what keeps it from working.

Nothing but the standard library is needed to say which extra is missing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

# Which extra brings what a command may miss.
_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "fastapi": "server",
    "starlette": "server",
    "uvicorn": "server",
    "bluesky": "demo",
    "matplotlib": "demo",
    "ophyd": "demo",
}

FAILED, NOT_BEGUN, INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; gives the exit code.

    Args:
        arguments: Instead of the process's.
    """
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
        return _say(
            f"this command needs {missing}, which is not installed; "
            f"python -m pip install 'atomscale-bluesky[{_EXTRAS[missing]}]'",
            NOT_BEGUN,
        )


def _run(arguments: list[str] | None) -> int:
    import click

    from .cli import commands
    from .cli.formatting import plain
    from .errors import ApiKeyError, AtomscaleBlueskyError, SettingsError

    try:
        # Not standalone: there click would turn Ctrl-C into exit code 1.
        code = commands.main(arguments, prog_name="atomscale-bluesky", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED)
    except SettingsError as error:
        return _say(plain(error, limit=2000), NOT_BEGUN)
    except ApiKeyError as error:
        return _say(f"{plain(error, limit=2000)}; check the key in ATOMSCALE_API_KEY", FAILED)
    except AtomscaleBlueskyError as error:
        return _say(plain(error, limit=2000), FAILED)
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return FAILED
    return code if isinstance(code, int) else 0


def _say(text: str, code: int) -> int:
    print(f"atomscale-bluesky: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
