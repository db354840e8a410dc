"""Which runs `status` shows, at most as many as asked for: the newest, and those that need the operator. Pure.

Several runs that are parked for one and the same problem are shown as one, with the commands that mend all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.uids import shown_uid
from ..status.remedies import remedies
from ..status.run_status import RunStatus

# So many runs with the same problem are shown as one.
ALIKE_MIN = 3
# How many uids a command names at most. Once these runs are mended, `status` has the command for the next ones.
MAX_UIDS = 20
# Commands for one run alone, and those that nobody should give for many runs without having looked at each of them.
_NOT_FOR_ALL = frozenset({"verify", "discard"})


@dataclass(frozen=True, slots=True)
class ShownRuns:
    """What is shown as one: a run, or runs that are parked for the same problem, oldest first."""

    runs: tuple[RunStatus, ...]
    all_parked: bool = False  # `--all-parked` means just these runs

    @property
    def newest(self) -> RunStatus:
        """The newest of them."""
        return self.runs[-1]

    @property
    def names(self) -> str:
        """How a command names them."""
        uids = dict.fromkeys(map(_short, self.runs))  # a run in several parts is named once
        return "--all-parked" if self.all_parked else " ".join([*uids][:MAX_UIDS])

    @property
    def problem(self) -> str:
        """The problem that all of them have, with the commands in it for any of them."""
        problem = self.newest.problem or ""
        return problem.replace(_short(self.newest), "--all-parked" if self.all_parked else "RUN")

    def remedies(self, option: str, endpoint: str) -> tuple[str, ...]:
        """Return the commands that mend all of them, the most likely one first. The arguments are as for `remedies`."""
        if len(self.runs) == 1:
            return remedies(self.newest, option, endpoint)
        found = [one.partition(f" {_short(self.newest)}") for one in remedies(self.newest, option, endpoint)]
        return tuple(
            f"{command} {self.names}{rest}" if uid else command  # one that names no run is for all of them
            for command, uid, rest in found
            if command.rpartition(" ")[2] not in _NOT_FOR_ALL
        )


def shown_runs(runs: Sequence[RunStatus], last: int) -> list[ShownRuns]:
    """Return what is to be shown of these runs: at most `last` times one, oldest first.

    The newest one is always shown. Of the others, those that need the operator come first.

    Args:
        runs: All runs of the spool, oldest first.
        last: How many to show.
    """
    together = _together(runs)
    if len(together) <= last:
        return together
    *others, newest = together
    ranked = sorted(enumerate(others), key=lambda one: (one[1].newest.needs_operator, one[0]), reverse=True)
    kept = sorted(index for index, _ in ranked[: last - 1])
    return [*(others[index] for index in kept), newest]


def not_shown(runs: Sequence[RunStatus], shown: Sequence[ShownRuns]) -> list[RunStatus]:
    """Return the runs that are not among those shown, oldest first."""
    folders = {run.folder for one in shown for run in one.runs}
    return [run for run in runs if run.folder not in folders]


def _together(runs: Sequence[RunStatus]) -> list[ShownRuns]:
    """Return the runs by the newest of each group, oldest first."""
    alike: dict[tuple[object, ...], list[RunStatus]] = {}
    for run in runs:
        if run.state == "parked":
            alike.setdefault(_problem_of(run), []).append(run)
    parked = sum(run.state == "parked" or run.points.refused > 0 for run in runs)
    found: list[ShownRuns] = []
    for run in runs:
        group = alike[_problem_of(run)] if run.state == "parked" else [run]
        if len(group) < ALIKE_MIN:
            found.append(ShownRuns((run,)))
        elif run is group[-1]:
            found.append(ShownRuns(tuple(group), all_parked=len(group) == parked))
    return found


def _problem_of(run: RunStatus) -> tuple[object, ...]:
    """Return what is equal for runs that the same command mends."""
    commands = tuple(command.replace(_short(run), "RUN") for command in remedies(run))
    return (run.problem or "").replace(_short(run), "RUN"), run.endpoint, run.ordered, commands


def _short(run: RunStatus) -> str:
    return shown_uid(run.run_uid)
