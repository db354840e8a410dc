"""The items around the streams: catalogue, growth instruments, physical samples, projects, tags.

Takes bodies that passed `request_bodies`, and returns lists and objects in the API's spelling. Names of physical
samples and tags are compared after trimming, ignoring case. The catalogue's search covers what a streaming client
needs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from .options import Family, Options
from .request_bodies import AttachBody, EntryBody, InstrumentBody, LinkBody, SampleBody, TagBody, TrackBody, check_text
from .rules import Refusal, Rule, refused
from .store import Store

STATUSES = (
    *("all", "pending", "running", "success", "error", "quarantined"),
    *("stream_active", "stream_interrupted", "stream_finalizing", "stream_error"),
)
# The values that the catalogue's filter is known to take; `metrology` is the older servers' word for `tool_state`.
DATA_TYPES = (
    *("rheed", "rheed_image", "xps", "xrd", "photoluminescence", "pl", "raman", "recipe", "optical", "ellipsometry"),
)
INSTRUMENT_TYPES = ("mbe", "cvd", "pvd", "sputter", "ald", "pld")
OWNER = "local user"


class Catalogue:
    """The items in one store, under one set of options."""

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._options = options
        self.data_type = "tool_state" if Family.TOOL_STATE in options.families else "metrology"

    # catalogue

    def entries(
        self,
        *,
        keywords: Sequence[str] = (),
        status: str = "all",
        data_type: str | None = None,
        data_ids: Sequence[str] = (),
        physical_sample_ids: Sequence[str] = (),
        project_ids: Sequence[str] = (),
        uploaded: tuple[datetime | None, datetime | None] = (None, None),
        updated: tuple[datetime | None, datetime | None] = (None, None),
    ) -> list[dict[str, Any]]:
        """Return the streams that pass every filter and contain every keyword in some member, ignoring case.

        Raises:
            Refusal: A status or data type is unknown to the catalogue.
        """
        if status not in STATUSES:
            raise Refusal(422, f"status is {status!r}; known are {', '.join(STATUSES)}")
        if data_type not in (None, "all", self.data_type, *DATA_TYPES):
            raise Refusal(422, f"data_type is {data_type!r}; known are {', '.join((self.data_type, *DATA_TYPES))}")
        if data_type in DATA_TYPES:
            return []
        query, values = "SELECT * FROM streams WHERE 1", []
        for column, wanted in (
            ("data_id", data_ids),
            ("physical_sample_id", physical_sample_ids),
            ("project_id", project_ids),
            ("status", () if status == "all" else (status,)),
        ):
            if wanted:
                query += f" AND {column} IN ({', '.join('?' * len(wanted))})"
                values += wanted
        for column, (low, high) in (("created", uploaded), ("updated", updated)):
            query += f" AND {column} BETWEEN ? AND ?"
            values += [0.0 if low is None else _seconds(low), 1e18 if high is None else _seconds(high)]
        entries = [self._entry(row) for row in self._store.all(query + " ORDER BY id", *values)]
        return [entry for entry in entries if _contains(entry, keywords)]

    def _entry(self, row: sqlite3.Row) -> dict[str, Any]:
        sample = self._store.first("SELECT * FROM samples WHERE id = ?", row["physical_sample_id"])
        project = self._store.first("SELECT * FROM projects WHERE id = ?", row["project_id"])
        instrument = self._store.first("SELECT * FROM instruments WHERE id = ?", row["synth_source_id"])
        tags = self._store.all(
            "SELECT tags.id, tags.name FROM tags JOIN stream_tags ON stream_tags.tag = tags.id"
            " WHERE stream_tags.stream = ? ORDER BY tags.name",
            row["id"],
        )
        return {
            "data_id": row["data_id"],
            "raw_name": row["label"],
            "char_source_type": self.data_type,
            "pipeline_status": row["status"],
            "raw_file_type": None,
            "source_name": None if instrument is None else instrument["label"],
            "sample_name": None,
            "physical_sample_id": row["physical_sample_id"],
            "physical_sample_name": None if sample is None else sample["name"],
            "projects": [] if project is None else [{"id": project["id"], "name": project["name"]}],
            "growth_length": None,
            "upload_datetime": _iso(row["created"]),
            "last_updated": _iso(row["updated"]),
            "collected_datetime": _iso(row["created"]),
            "detail_note_content": None,
            "detail_note_last_updated": None,
            "file_metadata": {},
            "tags": [tag["name"] for tag in tags],
            "workspaces": [],
            "name": OWNER,
            "sha3_256": None,
            "has_instrument_logs": False,
            "user_id": 1,
            "synth_source_id": row["synth_source_id"],
            "sample_id": None,
            "processed_file_type": None,
            "bucket_file_name": None,
        }

    def change_entry(self, data_id: str, body: EntryBody) -> dict[str, Any]:
        """Give a stream another label and return its entry.

        Only the server itself changes an entry's type and status.
        """
        row = self._store.first("SELECT * FROM streams WHERE data_id = ?", data_id)
        if row is None:
            raise Refusal(404, f"there is no data item {data_id}")
        if body.char_source_type is not None or body.pipeline_status is not None:
            raise Refusal(422, "only raw_name can be changed here")
        if body.raw_name is not None:
            check_text("raw_name", body.raw_name, self._options)
            self._store.execute("UPDATE streams SET label = ? WHERE id = ?", body.raw_name, row["id"])
        return self.entries(data_ids=[data_id])[0]

    # growth instruments

    def instruments(self) -> list[dict[str, Any]]:
        """Return every growth instrument."""
        return [
            {
                "synth_source_id": row["id"],
                "source_name": row["label"],
                "synth_source_type": row["type"],
                "source_manufacturer": None,
                "source_model": row["name"],
            }
            for row in self._store.all("SELECT * FROM instruments ORDER BY id")
        ]

    def add_instrument(self, body: InstrumentBody) -> dict[str, Any]:
        """Create a growth instrument and return an object with its `synth_source_id`."""
        if body.type not in INSTRUMENT_TYPES:
            raise Refusal(422, f"type is {body.type!r}; known are {', '.join(INSTRUMENT_TYPES)}")
        identity = self._store.execute(
            "INSERT INTO instruments (label, name, type, serial_id) VALUES (?, ?, ?, ?)",
            *(body.label, body.name, body.type, body.serial_id),
        ).lastrowid
        return {"synth_source_id": identity}

    def remove_instruments(self, identities: Sequence[int]) -> str:
        """Delete growth instruments. Their streams keep the number."""
        for identity in identities:
            known = identity.bit_length() < 64 and self._store.first("SELECT 1 FROM instruments WHERE id = ?", identity)
            if not known:
                raise Refusal(404, f"there is no growth instrument {identity}")
        self._store.execute_many("DELETE FROM instruments WHERE id = ?", ((identity,) for identity in identities))
        return "OK"

    # physical samples

    def samples(self, *, sample_id: str | None = None, has_data_item: bool | None = None) -> list[dict[str, Any]]:
        """Return every physical sample that passes the filters."""
        found = [self._sample(row) for row in self._store.all("SELECT * FROM samples ORDER BY created")]
        if sample_id is not None:
            found = [sample for sample in found if sample["id"] == sample_id]
        if has_data_item is not None:
            found = [sample for sample in found if (sample["num_data_items"] > 0) is has_data_item]
        return found

    def _sample(self, row: sqlite3.Row) -> dict[str, Any]:
        items = self._store.one("SELECT count(*) FROM streams WHERE physical_sample_id = ?", row["id"])[0]
        projects = self._store.all(
            "SELECT projects.id, projects.name FROM projects JOIN project_samples"
            " ON project_samples.project = projects.id WHERE project_samples.sample = ? ORDER BY projects.name",
            row["id"],
        )
        instrument = self._store.first("SELECT label FROM instruments WHERE id = ?", row["instrument"])
        return {
            "id": row["id"],
            "name": row["name"],
            "created_datetime": _iso(row["created"]),
            "last_updated": _iso(row["updated"]),
            "owner_id": 1,
            "owner_name": OWNER,
            "num_data_items": items,
            "growth_instrument": None if instrument is None else instrument["label"],
            "target_material": None,
            "projects": [dict(project) for project in projects],
            "detail_notes": None,
        }

    def add_sample(self, body: SampleBody) -> dict[str, Any]:
        """Create a physical sample.

        Raises:
            Refusal: 409, with the id of the sample that already has the name.
        """
        name = body.name.strip()
        if not name:
            raise Refusal(422, "the physical sample's name is blank")
        check_text("the physical sample's name", name, self._options)
        if row := self._store.first("SELECT id FROM samples WHERE folded = ?", name.casefold()):
            message = f"a physical sample named {name!r} exists"
            raise Refusal(409, {"message": message, "physical_sample_id": row["id"]})
        if body.growth_instrument_id is not None:
            self._known("instruments", body.growth_instrument_id, Rule.UNKNOWN_INSTRUMENT, "growth instrument")
        identity, now = str(uuid4()), self._store.now()
        self._store.execute(
            "INSERT INTO samples (id, name, folded, instrument, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
            *(identity, name, name.casefold(), body.growth_instrument_id, now, now),
        )
        return self.samples(sample_id=identity)[0]

    def link_sample(self, body: LinkBody) -> str:
        """Link streams to a physical sample. A stream has at most one, the last one linked."""
        sample = str(body.physical_sample_id)
        self._known("samples", sample, Rule.UNKNOWN_SAMPLE, "physical sample")
        streams = self._stream_ids(body.data_ids)
        with self._store.transaction():
            self._store.execute_many(
                "UPDATE streams SET physical_sample_id = ? WHERE id = ?", ((sample, stream) for stream in streams)
            )
        return "OK"

    # projects

    def projects(self) -> list[dict[str, Any]]:
        """Return every project."""
        found = []
        for row in self._store.all("SELECT * FROM projects ORDER BY name"):
            tracked = self._store.all("SELECT sample FROM project_samples WHERE project = ?", row["id"])
            found.append(
                {
                    "id": row["id"],
                    "name": row["name"],
                    "owner_id": 1,
                    "owner_name": OWNER,
                    "physical_sample_count": len(tracked),
                    "last_updated": _iso(row["updated"]),
                    "detail_note": {"content": None, "last_updated": None},
                    "configuration": {
                        "tracking_physical_sample_id": row["active_sample"],
                        "tracking_physical_sample_ids": [sample["sample"] for sample in tracked],
                    },
                }
            )
        return found

    def project_samples(self, project: str) -> list[dict[str, Any]]:
        """Return the physical samples of a project."""
        self._project(project)
        rows = self._store.all(
            "SELECT samples.* FROM samples JOIN project_samples ON project_samples.sample = samples.id"
            " WHERE project_samples.project = ? ORDER BY samples.created",
            project,
        )
        return [self._sample(row) for row in rows]

    def track(self, project: str, body: TrackBody) -> str:
        """Add a physical sample to those that a project tracks, and make it the active one if the body asks for it."""
        self._project(project)
        sample = str(body.physical_sample_id)
        self._known("samples", sample, Rule.UNKNOWN_SAMPLE, "physical sample")
        with self._store.transaction():
            self._store.execute("INSERT OR IGNORE INTO project_samples VALUES (?, ?)", project, sample)
            if body.set_active:
                self._store.execute("UPDATE projects SET active_sample = ? WHERE id = ?", sample, project)
            self._store.execute("UPDATE projects SET updated = ? WHERE id = ?", self._store.now(), project)
        return "OK"

    # tags

    def tags(self) -> list[dict[str, Any]]:
        """Return every tag."""
        return [dict(row) for row in self._store.all("SELECT id, name FROM tags ORDER BY name")]

    def add_tag(self, body: TagBody) -> dict[str, Any]:
        """Create a tag.

        Raises:
            Refusal: 400 when the name exists.
        """
        name = body.name.strip()
        if not name:
            raise Refusal(422, "the tag's name is blank")
        check_text("the tag's name", name, self._options)
        if self._store.first("SELECT 1 FROM tags WHERE folded = ?", name.casefold()):
            raise Refusal(400, f"a tag named {name!r} exists")
        identity = str(uuid4())
        self._store.execute("INSERT INTO tags VALUES (?, ?, ?)", identity, name, name.casefold())
        return {"id": identity, "name": name}

    def attach(self, body: AttachBody) -> dict[str, Any]:
        """Attach each of the tags to each of the streams. Repeating it changes nothing."""
        streams, tags = self._stream_ids(body.data_ids), [str(tag) for tag in body.tag_ids]
        for tag in tags:
            if not self._store.first("SELECT 1 FROM tags WHERE id = ?", tag):
                raise Refusal(404, f"there is no tag {tag}")
        created = 0
        with self._store.transaction():
            for stream in streams:
                for tag in tags:
                    created += self._store.execute(
                        "INSERT OR IGNORE INTO stream_tags VALUES (?, ?)", stream, tag
                    ).rowcount
        return {"success": True, "associations_created": created}

    def _stream_ids(self, data_ids: Iterable[UUID]) -> list[int]:
        found = []
        for data_id in data_ids:
            row = self._store.first("SELECT id FROM streams WHERE data_id = ?", str(data_id))
            if row is None:
                raise Refusal(404, f"there is no data item {data_id}")
            found.append(row["id"])
        return found

    def _project(self, project: str) -> None:
        if not self._store.first("SELECT 1 FROM projects WHERE id = ?", project):
            raise Refusal(404, f"there is no project {project}")

    def _known(self, table: str, identity: object, rule: Rule, what: str) -> None:
        if not self._options.relaxed(rule) and not self._store.first(f"SELECT 1 FROM {table} WHERE id = ?", identity):
            raise refused(rule, f"there is no {what} {identity}")


def _contains(entry: dict[str, Any], keywords: Sequence[str]) -> bool:
    if not keywords:
        return True
    text = "\n".join(str(value) for value in entry.values() if value is not None).casefold()
    return all(keyword.casefold() in text for keyword in keywords)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
