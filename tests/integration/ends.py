"""Waiting for a process to end, and its threads' stacks where it does not."""

from __future__ import annotations

import signal
import subprocess


def exit_code(process: subprocess.Popen[str], timeout_s: float = 60.0) -> int:
    """How a process ended; one that does not end in time is made to write where its threads are, and fails the test."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's faulthandler answers it
        return process.wait(10)
