"""Documents of the runs in a Tiled catalogue, one run after the other, oldest first.

    for name, doc, ack in TiledRuns("http://tiled.lab:8000/mbe", since=1704067200.0):
        ...

A run's documents are fetched as a whole before the first of them is handed over: into memory, or into a temporary file
if they are many. So a connection that breaks in mid-run leaves nothing of that run behind, and the next time the run
comes whole. A run that has no stop document in the catalogue is still being written, or its writer has died. It is
left for another time, unless the unfinished ones are asked for.

A catalogue keeps no documents but what it made of them, and its server makes documents of that again. The uids of
events are then other ones, and of several events with the same `seq_num` only the last one comes. The recorder
recognises events by time and values, and reports at the stop document how many were not given.

Calls to the server are made in a thread, so that a signal ends the source at once, whatever the server does.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

import httpx
from tiled.client import from_context, from_profile
from tiled.client.auth import CannotRefreshAuthentication
from tiled.client.container import Container
from tiled.client.context import CannotPrompt, Context
from tiled.client.utils import handle_error
from tiled.queries import Comparison, Eq, Like, NoBool, Regex, SpecsQuery

from ..errors import SettingsError
from ..model.text import safe, without_user
from .incoming import Incoming, SourceError, idle, no_ack, unreadable
from .recordings import RecordingError, documents_in

_logger = logging.getLogger(__name__)

T = TypeVar("T")

JSON_SEQ = "application/json-seq"
# How many entries of the catalogue are asked for at a time: the size of a server's page.
PAGE = 100
# Documents of a run up to this size are in memory, larger ones in a temporary file.
IN_MEMORY = 8 << 20
# How much of the end of a run's documents is searched for the stop document.
_TAIL = 1 << 20
POLL_S = 0.4
# The server makes a run's documents before it sends the first byte, which takes long for a large run.
TIMEOUT = httpx.Timeout(30.0, read=300.0)
# After a failure on the way a run is asked for again, so often and after these pauses.
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_BUSY = {429, 502, 503, 504}
_UID = re.compile(r"[0-9A-Za-z-]{5,}")
_RUNS = SpecsQuery(include=["BlueskyRun"], exclude=[])
_EXPECTED = "expected the address of a catalogue, such as http://tiled.lab:8000/mbe, or the name of a profile"
_KEY = "put the key into TILED_API_KEY or a profile of Tiled, or log in with `tiled login`"
NO_DOCUMENTS = (
    "the server does not give runs as documents; add to its configuration, below `media_types`: "
    "`BlueskyRun: {application/json-seq: bluesky_tiled_plugins.exporters:json_seq_exporter}`"
)


class _RunError(Exception):
    """The documents of one run cannot be fetched."""


class TiledRuns:
    """The runs of a Tiled catalogue: a source that can be read again from the beginning.

    A run whose documents cannot be fetched is handed over as unreadable, with its uid. The next run follows.

    Args:
        catalogue: The address of a catalogue, such as `http://tiled.lab:8000/mbe`; the name of one of Tiled's profiles;
            or a Tiled client. The key comes from the profile, from TILED_API_KEY, or from an earlier `tiled login`.
        since: Take runs that began at this time or later, in Unix seconds.
        until: Take runs that began before this time.
        run_uids: Take only runs with these uids. The first five letters or more will do.
        scan_ids: Take only runs with these scan ids.
        limit: How many runs to take. Those that `known` knows do not count.
        unfinished: Take runs without a stop document too. A recorder counts them as interrupted, and takes the rest
            when they come again.
        known: Returns True for the uid of a run that need not come, such as `DocumentRecorder.has_whole`.
        documents: Fetch the documents. If False, the start and stop documents come alone, which the list of runs has;
            not for a recorder.
        ending: Ends the iteration.
    """

    def __init__(
        self,
        catalogue: str | Container,
        *,
        since: float | None = None,
        until: float | None = None,
        run_uids: Sequence[str] = (),
        scan_ids: Sequence[int] = (),
        limit: int | None = None,
        unfinished: bool = False,
        known: Callable[[str], bool] = lambda run_uid: False,
        documents: bool = True,
        ending: threading.Event | None = None,
    ) -> None:
        for uid in run_uids:
            if not _UID.fullmatch(uid):
                raise SettingsError(f"{uid!r} is not a uid; expected five or more of its letters, digits and dashes")
        self.runs = 0  # how many runs of the list were passed so far
        self.total_runs: int | None = None  # how many the list has; None until that is known
        self.known_runs = 0  # that `known` knew
        self.left_for_later: list[str] = []  # uids of runs without a stop document
        self._catalogue = catalogue
        self._since, self._until = since, until
        self._run_uids, self._scan_ids = list(run_uids), list(scan_ids)
        self._limit = limit
        self._unfinished = unfinished
        self._known = known
        self._documents = documents
        self._ending = ending or threading.Event()

    def __iter__(self) -> Iterator[Incoming]:
        """Yield the documents of one run after the other. While the server is waited for, `idle`.

        Raises:
            SettingsError: There is no such catalogue or profile, or the key is missing or refused.
            SourceError: The server does not answer, or gives no documents.
        """
        catalogue = yield from self._done(self._connected)
        if catalogue is None:
            return
        try:
            yield from self._runs_of(catalogue)
        finally:
            if catalogue is not self._catalogue:
                catalogue.context.http_client.close()

    def _runs_of(self, catalogue: Container) -> Iterator[Incoming]:
        searches = yield from self._done(lambda: self._searches(catalogue))
        taken = 0
        for search in searches or ():
            found = iter(search.items())
            while page := (yield from self._done(lambda found=found: list(islice(found, PAGE)))):
                for key, entry in page:
                    if self._ending.is_set() or taken == self._limit:
                        return
                    self.runs += 1
                    taken += yield from self._take(str(key), entry)

    def pause(self, timeout_s: float) -> None:
        """Wait."""
        self._ending.wait(timeout_s)

    def close(self) -> None:
        """Do nothing: a run's file is closed with the run."""

    def _connected(self) -> Container:
        if not isinstance(self._catalogue, str):
            return self._catalogue
        address, _, query = self._catalogue.partition("?")  # which may be a character of the password
        name = "what was given" if "@" in query else safe(without_user(address))
        try:
            if "://" in self._catalogue:
                catalogue = _at(_full_address(self._catalogue))
            else:
                catalogue = from_profile(self._catalogue, show_progress=False)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in {401, 403}:
                raise SettingsError(f"{name} refuses the key: {_said(error)}; {_KEY}") from error
            if status == 404:
                raise SettingsError(f"{name} is not there: {_said(error)}; {_EXPECTED}") from error
            raise SourceError(f"{name} cannot be read: {_said(error)}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            if "@" in self._catalogue:  # then the error may quote a part of the password
                raise SettingsError(f"{name} is no address; {_EXPECTED}") from None
            raise SettingsError(f"{name} is no address: {safe(str(error))}; {_EXPECTED}") from error
        except (RuntimeError, CannotPrompt, CannotRefreshAuthentication) as error:  # nobody is logged in
            raise SettingsError(f"{name} cannot be read without a key; {_KEY}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"{name} is neither a Tiled server nor one of its profiles; {_EXPECTED}") from error
        if not isinstance(catalogue, Container) or _has_spec(catalogue, "BlueskyRun"):
            raise SettingsError(f"{name} is no catalogue of runs; {_EXPECTED}")
        return catalogue

    def _searches(self, catalogue: Container) -> list[Container]:
        """Return the searches whose results together are the runs asked for, and count these."""
        documents_kept = _keeps_documents(catalogue, "CatalogOfBlueskyRuns")
        runs = catalogue if documents_kept else catalogue.search(_RUNS)  # the former has nothing else, and no specs
        if not len(runs) and (entries := list(islice(catalogue, 5))):
            names = ", ".join(map(safe, entries))
            raise SettingsError(f"there are no runs at this address; below it are {names}: add one of these to it")
        if self._since is not None:
            runs = runs.search(Comparison("ge", "start.time", self._since))
        if self._until is not None:
            runs = runs.search(Comparison("lt", "start.time", self._until))
        queries: dict[str, NoBool] = {uid: _uid_begins_with(uid, documents_kept) for uid in self._run_uids}
        queries |= {str(scan_id): Eq("start.scan_id", scan_id) for scan_id in self._scan_ids}
        searches = {what: runs.search(query) for what, query in queries.items()} or {"": runs}
        self.total_runs = 0
        for what, search in searches.items():
            count = len(search)
            if not count and what:
                raise SettingsError(f"the catalogue has no run {what} in the time that is asked for")
            self.total_runs += count
        return [search.sort(("time" if documents_kept else "start.time", 1)) for search in searches.values()]

    def _take(self, key: str, entry: Any) -> Iterator[Any]:
        """Yield the documents of an entry. Return 1 if it is a run that is taken, else 0."""
        metadata = entry.item["attributes"]["metadata"]
        start, stop = _mapping(metadata, "start"), _mapping(metadata, "stop")
        uid = start.get("uid")
        if not isinstance(uid, str):
            yield unreadable(f"entry {safe(key)} of the catalogue is no run: it has no start document")
            return 0
        if self._known(uid):
            self.known_runs += 1
            return 0
        if not stop and not self._unfinished:
            self.left_for_later.append(uid)
            return 0
        if self._documents:
            yield from self._documents_of(entry, uid)
        else:
            yield Incoming("start", start, no_ack)
            if stop:
                yield Incoming("stop", stop, no_ack)
        return 1

    def _documents_of(self, run: Any, uid: str) -> Iterator[Incoming]:
        try:
            file = yield from self._done(lambda: self._fetched(run))
            if file is None:
                return
            with file:
                for name, doc in documents_in(file, f"run {safe(uid)}"):
                    if name != "stop" or doc.get("run_start"):  # a run that goes on has an empty one
                        yield Incoming(name, doc, no_ack)
        except (_RunError, RecordingError, OSError) as error:
            yield unreadable(f"run {safe(uid)} cannot be read: {safe(str(error))}")

    def _fetched(self, run: Any) -> SpooledTemporaryFile[bytes] | None:
        """Return a file with a run's documents, or None if it was told to end. Asks again after failures on the way.

        Raises:
            _RunError: The server cannot give this run.
            SourceError: The server does not answer any more, refuses the key, or gives no runs as documents.
        """
        link, params = _where(run)
        # Documents that were kept are given as they are. Those that are made of tables end with a stop, be it empty.
        stop = _mapping(run.item["attributes"]["metadata"], "stop")
        ends_with_stop = bool(stop) or not _keeps_documents(run, "BlueskyRun")
        for pause_s in (*PAUSES_S, None):
            try:
                return self._fetched_once(run.context.http_client, link, params, ends_with_stop=ends_with_stop)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == 406:
                    raise SourceError(NO_DOCUMENTS) from error
                if status == 401:
                    raise SourceError(f"the catalogue refuses the key: {_said(error)}; {_KEY}") from error
                if status not in _BUSY:
                    raise _RunError(f"the server answered {_said(error)}") from error
                failure: Exception = error
            except (httpx.TransportError, EOFError) as error:
                failure = error
            except KeyError as error:  # as the client says that something is gone
                raise _RunError(str(error)) from error
            if pause_s is None:
                raise self._broken(run, failure) from failure
            _logger.debug("%s failed: %r", link, failure)
            if self._ending.wait(pause_s):
                return None
        return None

    def _fetched_once(
        self, client: httpx.Client, link: str, params: Mapping[str, Any], *, ends_with_stop: bool
    ) -> SpooledTemporaryFile[bytes] | None:
        file = SpooledTemporaryFile[bytes](IN_MEMORY, prefix="atomscale-bluesky-")
        try:
            headers = {"Accept": JSON_SEQ}
            with client.stream("GET", link, params=params, headers=headers, timeout=TIMEOUT) as response:
                if response.is_error:
                    response.read()
                    handle_error(response)
                for block in response.iter_bytes():
                    file.write(block)
                    if self._ending.is_set():
                        file.close()
                        return None
            if ends_with_stop and not _is_whole(file):
                raise EOFError("the answer ends before the run's stop document")
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _broken(self, run: Any, failure: Exception) -> Exception:
        """Return the error for a run that failed again and again: the run's own if the server gives anything else."""
        try:
            handle_error(run.context.http_client.get(run.item["links"]["self"]))
        except (httpx.HTTPError, KeyError):
            return SourceError(
                f"the catalogue does not answer any more: {_said(failure)}; begin again when it does, and only the "
                f"runs that are missing are fetched"
            )
        return _RunError(f"{_said(failure)}, {len(PAUSES_S) + 1} times")

    def _done(self, work: Callable[[], T]) -> Iterator[Any]:
        """Return what `work` returns, or None if it was told to end. Yields `idle` while that takes."""
        answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answer.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
                answer.put((None, error))

        # A daemon: if the server hangs, the process does not wait for it.
        threading.Thread(target=run, name="atomscale-tiled", daemon=True).start()
        while not self._ending.is_set():
            try:
                result, error = answer.get(timeout=POLL_S)
            except Empty:
                yield idle()
                continue
            if isinstance(error, httpx.HTTPError):
                raise SourceError(f"the catalogue cannot be read: {_said(error)}") from error
            if error is not None:
                raise error
            return result
        return None


def _at(address: str) -> Any:
    """Return Tiled's client for an address, as its `from_uri` does, which leaves connections open when it fails."""
    context, names = Context.from_any_uri(address, show_progress=False)
    try:
        return from_context(context, node_path_parts=names)
    except BaseException:
        context.http_client.close()
        raise


def _full_address(address: str) -> str:
    """Return an address that names the server's API and the entry, from one without the API's part."""
    url = httpx.URL(address)
    names = [name for name in url.path.removeprefix("/ui/browse").split("/") if name]
    if not names or "/api" in url.path:
        return address
    return str(url.copy_with(path="/api/v1/metadata/" + "/".join(names)))


def _where(run: Any) -> tuple[str, dict[str, str]]:
    """Return the address of a run's documents and the parameters of the request."""
    links = run.item["links"]
    if _keeps_documents(run, "BlueskyRun"):
        return links["self"].replace("/metadata", "/documents", 1), {"fill": "false"}
    return links["full"], {"format": JSON_SEQ}


def _keeps_documents(entry: Any, spec_name: str) -> bool:
    """Return True for a catalogue or a run of databroker in MongoDB, which keeps each document as it came.

    Tiled's own have version 3 of these specs, and tables instead of documents.
    """
    return any(spec["name"] == spec_name and not str(spec["version"]).startswith("3") for spec in _specs(entry))


def _uid_begins_with(beginning: str, documents_kept: bool) -> NoBool:
    """Return the query for runs whose uid begins so. Neither kind of catalogue knows the other's."""
    return Regex("start.uid", f"^{beginning}") if documents_kept else Like("start.uid", f"{beginning}%")


def _is_whole(file: SpooledTemporaryFile[bytes]) -> bool:
    """Return True if the last document is a stop document, be it an empty one: then the server has sent all it has."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    last = file.read().rstrip().rpartition(b"\n")[2].lstrip(b"\x1e")
    try:
        return json.loads(last).get("name") == "stop"
    except (ValueError, AttributeError):
        return False


def _has_spec(entry: Any, name: str) -> bool:
    return any(spec["name"] == name for spec in _specs(entry))


def _specs(entry: Any) -> Sequence[Mapping[str, Any]]:
    return entry.item["attributes"].get("specs") or ()


def _mapping(of: Any, key: str) -> Mapping[str, Any]:
    found = of.get(key) if isinstance(of, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _said(error: Exception) -> str:
    """Return what happened in short, without the address."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {safe(error.response.reason_phrase)}"
    return safe(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
