"""Finds or creates the sample, project and tags that a run names, once, before its first stream is made.

Atomscale promises nothing about the order or completeness of its lists, and another run may create the same name at
the same moment. So a list is only the cheap way to find a name. A name that is not in it is created, and a refusal
because the name is taken tells that it exists. Repeating anything here changes nothing. A refused list has told
nothing: only the refusal of the request itself counts. A 401 is about the key, and counts in any case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ...api.answers import Item
from ...api.client import Client
from ...errors import ApiKeyError, ApiRefusedError, ApiTooLargeError
from ...model.identifiers import comparable, is_uuid
from ...model.links import Links
from ...model.uids import shown_uid
from ...spool.ledger_format import Resolved, Unresolved
from ...status.commands import with_option
from ..refusals import LOOK_UP_REFUSED
from .work import RUN, Kind, Work, WorkerContext

if TYPE_CHECKING:
    from ..claimed_run import ClaimedRun

_logger = logging.getLogger(__name__)

# The command in a refusal's text, which names the run once the run is parked for it.
_EDIT = "atomscale-bluesky edit RUN"


class Resolve(Work[Links], frozen=True, eq=False):
    """Find an id for each name among a run's links."""

    kind: ClassVar[Kind] = Kind.RESOLVE

    links: Links
    order: int  # the number of the edit that gave them, 0 for none

    def perform(self, client: Client, context: WorkerContext) -> Links:
        """Return the same links with ids. A physical sample or tag that does not exist is created.

        Raises:
            ApiRefusedError: One of them does not exist and cannot be created. The text says which.
        """
        links = self.links
        if links.project_id is not None:
            _find_project(client, links.project_id)
        sample = links.physical_sample_id
        if links.physical_sample is not None:
            sample = _sample(client, links.physical_sample)
        elif sample is not None:
            _find_sample(client, sample)
        return msgspec.structs.replace(
            links, physical_sample=None, physical_sample_id=sample, tags=tag_ids(client, links.tags)
        )

    def apply_result(self, run: ClaimedRun, result: Links) -> None:
        """Note the ids. Streams are made with them."""
        if self.order != run.pending_links.edit_number:
            return  # another edit has come meanwhile
        if run.state.unresolved is not None:
            run.request_reload("rows that were only counted while the links were not found are to be sent")
        run.ledger.note(Resolved(result, self.order))

    def park(self, run: ClaimedRun, reason: str) -> None:
        """Park the run. Its links are looked up again now and then."""
        reason = reason.replace(_EDIT, _EDIT.replace("RUN", shown_uid(run.header.run_uid)))
        if self.order != run.pending_links.edit_number or run.state.unresolved == reason:
            return
        run.ledger.note(Unresolved(reason))
        _logger.error(
            "run %s is parked, its readings are kept: %s; this is checked again now and then",
            run.header.run_uid, with_option(reason, run.server_facts.spool_option),
        )  # fmt: skip


def next_work(run: ClaimedRun, now: float) -> Resolve | None:
    """Return the look-up if it is still to be made. One that found nothing comes again, by a monotonic clock."""
    if not run.pending_links.must_resolve or run.unfinished_tasks.holds(Kind.RESOLVE, RUN):
        return None
    if run.needs_operator_because or run.state.discarded:
        return None
    if run.state.unresolved and not run.patience.may_ask_again(RUN, now):
        return None
    edited = run.state.edited
    label = (edited and edited.label) or run.header.label
    return Resolve(RUN, label, run.pending_links.named_links, run.pending_links.edit_number)


def _find_project(client: Client, project_id: str) -> None:
    projects = _listed(client.projects)
    if projects and any(item.id.lower() == project_id for item in projects):
        return
    try:
        client.project_samples(project_id)  # the list may be one page of several
    except (ApiKeyError, ApiRefusedError) as error:
        if error.status == 401 or (error.status == 403 and projects is None):  # the key may lack every right
            raise
        # A key that can list the projects but not see this one belongs to another organisation.
        raise ApiRefusedError(
            f"there is no project {project_id} that this key can see ({error}); correct it with `{_EDIT} --project-id "
            f"UUID`, or leave it out with `{_EDIT} --no-project`"
        ) from error


def _find_sample(client: Client, sample: str) -> None:
    why = ""
    try:
        if any(item.id.lower() == sample for item in client.samples(sample)):
            return
    except ApiRefusedError as error:
        why = f" ({error})"
    raise ApiRefusedError(
        f"there is no physical sample {sample} that this key can see{why}; correct it with `{_EDIT} "
        f"--physical-sample-id UUID`, name it by `{_EDIT} --physical-sample NAME`, or leave it out with `{_EDIT} "
        f"--no-sample`"
    )


def _sample(client: Client, name: str) -> str:
    found = _named(_listed(client.samples), name)
    if found is None:
        try:
            found = client.create_sample(name)
        except ApiRefusedError as error:
            # The name may have been taken meanwhile. Some servers do not answer by which sample.
            found = _named(_listed(client.samples), name) if error.status == 409 else None
            if found is None:
                raise ApiRefusedError(
                    f"physical sample {name!r} is not in Atomscale and cannot be created ({error}); create it there, "
                    f"or correct it with `{_EDIT} --physical-sample NAME`, or leave it out with `{_EDIT} --no-sample`",
                    status=error.status,
                ) from error
        else:
            _logger.info("physical sample %r was created: %s", name, found)
    return found


def tag_ids(client: Client, tags: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of tags that are given by name or id. A name that does not exist is created."""
    tags = list(tags)
    known = None if all(map(is_uuid, tags)) else _listed(client.tags)
    ids: list[str] = []
    for tag in tags:
        found = tag if is_uuid(tag) else _named(known, tag) or _new_tag(client, tag)
        if found not in ids:
            ids.append(found)
    return tuple(ids)


def _new_tag(client: Client, name: str) -> str:
    try:
        created = client.create_tag(name)
    except ApiRefusedError as error:
        found = _named(_listed(client.tags), name)  # another process may just have created it
        if found is None:
            raise ApiRefusedError(
                f"tag {name!r} is not in Atomscale and cannot be created ({error}); create it there, or correct it "
                f"with `{_EDIT} --tag TAG`, or leave tags out with `{_EDIT} --no-tags`",
                status=error.status,
            ) from error
        return found
    _logger.info("tag %r was created: %s", name, created)
    return created


def _listed(list_items: Callable[[], list[Item]]) -> list[Item] | None:
    """Return a list, or None if it is refused.

    Raises:
        ApiKeyError: It is refused with 401: another request would be as well.
        ApiTooLargeError: It is larger than is read.
    """
    try:
        return list_items()
    except ApiTooLargeError:
        raise
    except LOOK_UP_REFUSED as error:
        if error.status == 401:
            raise
        _logger.info("a list was refused, so the next request decides: %s", error)
        return None


def _named(items: list[Item] | None, name: str) -> str | None:
    """Return the id of the item with exactly this name, or else with this name in any case."""
    items = items or []
    exact = next((item.id for item in items if item.name == name), None)
    return exact or next((item.id for item in items if comparable(item.name) == comparable(name)), None)
