"""The server's data: one SQLite database, in a file or in memory.

There is one connection. It is used by the one thread of the server's event loop and never held across an `await`. So
requests that arrive together are handled one after the other, and a request is applied whole or not at all. In a file,
data of an answered request survive a killed process (write-ahead log), but not necessarily a power cut
(`synchronous=OFF`). The file is locked while it is open, so that two servers cannot share it. The numbers of a chunk
are two blobs of 64-bit floats, eight bytes each. Nothing else is stored per point.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import SettingsError
from .options import Instrument

FORMAT = 1  # the schema's version, in the file's header; a file of another version is left alone

SCHEMA = """
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, data_id TEXT NOT NULL UNIQUE, processed_data_id TEXT NOT NULL, family TEXT NOT NULL,
    label TEXT, points_per_chunk INTEGER NOT NULL, synth_source_id INTEGER, physical_sample_id TEXT, project_id TEXT,
    status TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL, finalized REAL, finalize_calls INTEGER DEFAULT 0
);
CREATE TABLE channels (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL REFERENCES streams, name TEXT NOT NULL, units TEXT,
    points INTEGER NOT NULL DEFAULT 0, UNIQUE (stream, name)
);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL REFERENCES streams, chunk_index INTEGER NOT NULL,
    channel INTEGER NOT NULL REFERENCES channels, points INTEGER NOT NULL, times BLOB NOT NULL, data BLOB NOT NULL,
    doubled INTEGER NOT NULL DEFAULT 0, changed INTEGER NOT NULL DEFAULT 0, UNIQUE (stream, chunk_index, channel)
);
CREATE TABLE instruments (id INTEGER PRIMARY KEY, label TEXT, name TEXT, type TEXT, serial_id TEXT);
CREATE TABLE samples (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, instrument INTEGER,
    created REAL NOT NULL, updated REAL NOT NULL
);
CREATE TABLE projects (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, updated REAL NOT NULL, active_sample TEXT);
CREATE TABLE project_samples (
    project TEXT NOT NULL REFERENCES projects, sample TEXT NOT NULL REFERENCES samples, PRIMARY KEY (project, sample)
);
CREATE TABLE tags (id TEXT PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE);
CREATE TABLE stream_tags (
    stream INTEGER NOT NULL REFERENCES streams, tag TEXT NOT NULL REFERENCES tags, PRIMARY KEY (stream, tag)
);
"""


class Store:
    """The open database. Queries come from `streams` and `catalogue`, each about its own tables."""

    def __init__(
        self,
        path: Path | None,
        *,
        instruments: Iterable[Instrument] = (),
        projects: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open or create `path`. None keeps everything in memory. A new database starts with the given instruments.

        Raises:
            SettingsError: The file cannot be opened, belongs to a running server, or was not made by this package.
        """
        self.now = now
        if path is not None and path.exists():
            _check_that_it_is_ours(path)
        try:
            # The thread changes when a server is stopped and started again. There are never two at a time.
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, isolation_level=None, check_same_thread=False, timeout=0.5
            )
        except sqlite3.Error as error:
            raise SettingsError(f"the server's data file {str(path)!r} cannot be opened: {error}") from error
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare(instruments, projects)
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error

    def _prepare(self, instruments: Iterable[Instrument], projects: Iterable[str]) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        if self.one("SELECT count(*) FROM sqlite_master")[0] == 0:
            with self.transaction():
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={FORMAT}")
                for instrument in instruments:
                    self.add_instrument(instrument)
                for name in projects:
                    self.add_project(name)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everything that is executed inside, or nothing of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Execute one statement."""
        return self._db.execute(statement, values)

    def execute_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for each row."""
        self._db.executemany(statement, rows)

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return every row of the query."""
        return self._db.execute(query, values).fetchall()

    def first(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Return the query's first row, or None if there is none."""
        return self._db.execute(query, values).fetchone()

    def one(self, query: str, *values: Any) -> sqlite3.Row:
        """Return the row of a query that always has one."""
        return self._db.execute(query, values).fetchone()

    def add_instrument(self, instrument: Instrument) -> None:
        """Store an instrument under its own identity number."""
        self.execute(
            "INSERT INTO instruments (id, label, name, type, serial_id) VALUES (?, ?, ?, ?, ?)",
            instrument.synth_source_id,
            instrument.label,
            instrument.name,
            instrument.type,
            instrument.serial_id,
        )

    def add_project(self, name: str) -> str:
        """Store a project and return its id. If the name exists, return the existing project's id."""
        if row := self.first("SELECT id FROM projects WHERE name = ?", name):
            return row["id"]
        identity = str(uuid4())
        self.execute("INSERT INTO projects (id, name, updated) VALUES (?, ?, ?)", identity, name, self.now())
        return identity


def _check_that_it_is_ours(path: Path) -> None:
    """Refuse a file that another program or another version has made. Opens it to read only, so it stays as it is.

    Raises:
        SettingsError: It is such a file, or cannot be read.
    """
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.5)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        finally:
            db.close()
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    is_new = version == 0 and not tables
    if not is_new and (version != FORMAT or not tables >= {"streams", "channels", "chunks"}):
        raise SettingsError(
            f"{str(path)!r} is no data file of this server (format {version}, expected {FORMAT}); give another file"
        )


def _unusable(path: Path | None, error: sqlite3.Error) -> SettingsError:
    return SettingsError(
        f"the server's data file {str(path)!r} cannot be used: {error}. "
        "Another server may have it open; stop that one or give another file."
    )
