"""Names in, ids out; and the links of a stream that exists, made one after the other.

Atomscale promises nothing about the order or completeness of its lists, and another run may create the same name at
the same moment. So a list is only the cheap way to find a name: what is not in it is created, and a refusal because
the name is taken tells that it is there. Everything here may be done again and changes nothing then.
Where a list or the catalogue is refused, it has told nothing: the refusal that counts is that of the request itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import msgspec

from ..api.client import Client
from ..api.wire import Entry, Item
from ..errors import ApiKeyError, ApiRefusedError
from ..model.identifiers import folded, is_uuid
from ..model.links import Links
from .tasks import Link, Task

_logger = logging.getLogger(__name__)

# A run that stopped longer ago says nothing any more about what a project's growth monitoring should follow now.
TRACKED_LATE_S = 600.0


def resolve(client: Client, links: Links) -> Links:
    """The same links with an id for each name; physical sample and tags are created where they do not exist.

    Raises:
        ApiRefusedError: One of them does not exist and cannot be created; the text says which.
    """
    if links.project_id is not None:
        _find_project(client, links.project_id)
    sample = links.physical_sample_id
    if links.physical_sample is not None:
        sample = _sample(client, links.physical_sample)
    elif sample is not None:
        _find_sample(client, sample)
    return msgspec.structs.replace(
        links, physical_sample=None, physical_sample_id=sample, tags=_tags(client, links.tags)
    )


def make(client: Client, task: Task, made: list[Link], refused: dict[Link, ApiRefusedError]) -> None:
    """Make a stream's links; what came of each is in `made` and `refused`, whatever happens to a later one."""
    for link in task.to_link:
        try:
            _LINKERS[link.kind](client, task, link.to)
        except ApiRefusedError as error:
            refused[link] = error
        else:
            made.append(link)


def _find_project(client: Client, project_id: str) -> None:
    if any(item.id.lower() == project_id for item in client.projects()):
        return
    try:
        client.project_samples(project_id)  # the list may be one page of several
    except (ApiKeyError, ApiRefusedError) as error:
        if error.status == 401:
            raise
        # A key that may list the projects and not look into this one is in another organisation.
        raise ApiRefusedError(
            f"there is no project {project_id} that this key can see ({error}); correct it with `edit --project-id`, "
            f"or leave it out with `edit --no-project`"
        ) from error


def _find_sample(client: Client, sample: str) -> None:
    why = ""
    try:
        if any(item.id.lower() == sample for item in client.samples(sample)):
            return
    except ApiRefusedError as error:
        why = f" ({error})"
    raise ApiRefusedError(
        f"there is no physical sample {sample} that this key can see{why}; correct it with `edit "
        f"--physical-sample-id`, name it by `edit --physical-sample`, or leave it out with `edit --no-sample`"
    )


def _sample(client: Client, name: str) -> str:
    found = _named(client.samples(), name)
    if found is None:
        try:
            found = client.create_sample(name)
        except ApiRefusedError as error:
            # The name may be taken by now, and the answer of some deployments does not say by which sample.
            found = _named(_listed(client.samples), name) if error.status == 409 else None
            if found is None:
                raise ApiRefusedError(
                    f"physical sample {name!r} is not in Atomscale and cannot be created ({error}); create it there, "
                    f"or correct it with `edit --physical-sample`, or leave it out with `edit --no-sample`",
                    status=error.status,
                ) from error
        else:
            _logger.info("physical sample %r was created: %s", name, found)
    return found


def _tags(client: Client, tags: Iterable[str]) -> tuple[str, ...]:
    known: list[Item] | None = None
    ids: list[str] = []
    for tag in tags:
        if is_uuid(tag):
            found = tag
        else:
            if known is None:
                known = client.tags()
            found = _named(known, tag) or _new_tag(client, tag)
        if found not in ids:
            ids.append(found)
    return tuple(ids)


def _new_tag(client: Client, name: str) -> str:
    try:
        created = client.create_tag(name)
    except ApiRefusedError as error:
        found = _named(_listed(client.tags), name)  # somebody else has just created it
        if found is None:
            raise ApiRefusedError(
                f"tag {name!r} is not in Atomscale and cannot be created ({error}); create it there, or correct it "
                f"with `edit --tag`, or leave tags out with `edit --no-tags`",
                status=error.status,
            ) from error
        return found
    _logger.info("tag %r was created: %s", name, created)
    return created


def _listed(list_items: Callable[[], list[Item]]) -> list[Item]:
    """Return what a second look at a list shows, nothing where it is refused."""
    try:
        return list_items()
    except (ApiKeyError, ApiRefusedError):
        return []


def _entry(client: Client, data_id: str) -> Entry | None:
    """Return a stream's entry in the catalogue, None where there is none or the catalogue does not tell."""
    try:
        return client.entry(data_id)
    except (ApiKeyError, ApiRefusedError) as error:
        _logger.info("the catalogue does not tell what stream %s is linked to: %s", data_id, error)
        return None


def _named(items: list[Item], name: str) -> str | None:
    """The id of the item with this name: as it is written if there is one, else ignoring case."""
    exact = next((item.id for item in items if item.name == name), None)
    return exact or next((item.id for item in items if folded(item.name) == folded(name)), None)


def _link_sample(client: Client, task: Task, sample: str) -> None:
    entry = _entry(client, task.data_id)
    if entry is None or (entry.physical_sample_id or "").lower() != sample.lower():
        client.link_sample(task.data_id, sample)


def _look_for_project(client: Client, task: Task, project: str) -> None:
    """Nobody says that naming a project puts a stream into it, and no call is known that would."""
    entry = _entry(client, task.data_id)
    if entry is not None and project not in {one.lower() for one in entry.project_ids}:
        _logger.warning(
            "%r was initialized for project %s, and the catalogue does not show it there (yet)", task.label, project
        )


def _track(client: Client, task: Task, to: str) -> None:
    """The sample of a run that is long over is tracked, and the one that grows meanwhile stays the active one."""
    project, sample = to.split()
    active = task.stopped_at is None or time.time() - task.stopped_at < TRACKED_LATE_S
    if not active:
        _logger.warning("%r stopped long ago: project %s tracks its sample, not as the active one", task.label, project)
    client.track_sample(project, sample, active=active)


def _attach(client: Client, task: Task, tags: str) -> None:
    client.attach_tags(task.data_id, tags.split())


def _attach_ending(client: Client, task: Task, tag: str) -> None:
    client.attach_tags(task.data_id, _tags(client, [tag]))


def _tell_reason(client: Client, task: Task, label: str) -> None:
    """A label is for people: a stream that keeps the one it had is none the worse."""
    try:
        client.rename(task.data_id, label)
    except ApiRefusedError as error:
        _logger.warning("%r keeps its label, which was to tell why its run failed: %s", task.label, error)


_LINKERS: dict[str, Callable[[Client, Task, str], None]] = {
    "sample": _link_sample,
    "project": _look_for_project,
    "tracking": _track,
    "tags": _attach,
    "ending": _attach_ending,
    "label": _tell_reason,
}
