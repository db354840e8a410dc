"""Files of documents, as the tools of Bluesky's world write them: read whole, or refused by line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.callbacks.json_writer import JSONLinesWriter, JSONWriter
from bluesky.plans import count
from event_model import pack_event_page
from ophyd.sim import det1, det2
from runs import Document, Recorder, growth
from waiting import wait_until

from atomscale_bluesky import Settings
from atomscale_bluesky.checks.recordings import one_run
from atomscale_bluesky.sources.contents import Contents
from atomscale_bluesky.sources.incoming import UNREADABLE
from atomscale_bluesky.sources.recordings import CutOffError, RecordingError, Recordings, read_documents

DOCUMENTS: list[Document] = list(growth(points=5))


def texts(documents: list[Document]) -> list[str]:
    return [json.dumps([name, doc]) for name, doc in documents]


JSON: dict[str, Callable[[list[Document]], str]] = {
    "suitcase-jsonl": lambda docs: "".join(text + "\n" for text in texts(docs)),
    "lines of name and doc": lambda docs: "\n".join(json.dumps({"name": name, "doc": doc}) for name, doc in docs),
    "lines of type and document": lambda docs: "\n".join(json.dumps({"type": n, "document": d}) for n, d in docs),
    "lines with further members": lambda docs: "\n".join(
        json.dumps({"name": name, "doc": doc, "task_id": "t"}) for name, doc in docs
    ),
    "lines of one key each": lambda docs: "\n".join(json.dumps({name: doc}) for name, doc in docs),
    "array": lambda docs: json.dumps(docs),
    "indented array": lambda docs: json.dumps(docs, indent=2),
    "array of one key each": lambda docs: json.dumps([{name: doc} for name, doc in docs], indent=4),
    "array of runs": lambda docs: json.dumps([docs[:3], docs[3:]]),
    "json sequence": lambda docs: "".join(f"\x1e{text}\n" for text in texts(docs)),
    "without newlines": lambda docs: "".join(texts(docs)),
    "indented, one after the other": lambda docs: "\n".join(json.dumps([n, d], indent=1) for n, d in docs),
    "byte order mark": lambda docs: "\ufeff" + "\r\n".join(texts(docs)),
    "array in lines": lambda docs: "[\n" + ",\n".join(texts(docs)) + "\n]\n",
}
MSGPACK: dict[str, Callable[[list[Document]], bytes]] = {
    "msgpack": lambda docs: b"".join(msgpack.packb([name, doc]) for name, doc in docs),
    "msgpack of mappings": lambda docs: b"".join(msgpack.packb({"name": n, "doc": d}) for n, d in docs),
    "msgpack without bytes": lambda docs: b"".join(msgpack.packb([n, d], use_bin_type=False) for n, d in docs),
}
WRITTEN = {
    **{kind: lambda docs, write=write: write(docs).encode() for kind, write in JSON.items()},
    **MSGPACK,
    "gzip": lambda docs: gzip.compress(JSON["array"](docs).encode()),
    "gzip of msgpack": lambda docs: gzip.compress(MSGPACK["msgpack"](docs)),
    "bzip2": lambda docs: bz2.compress(JSON["suitcase-jsonl"](docs).encode()),
    "xz": lambda docs: lzma.compress(JSON["suitcase-jsonl"](docs).encode()),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_recording_is_read_by_its_content_whatever_its_name(tmp_path: Path, kind: str) -> None:
    recording = tmp_path / "recording.txt"
    recording.write_bytes(WRITTEN[kind](DOCUMENTS))

    assert list(read_documents(recording)) == DOCUMENTS


@pytest.mark.parametrize("writer", [JSONWriter, JSONLinesWriter])
def test_what_blueskys_own_writers_make_is_read(tmp_path: Path, writer: Any) -> None:
    recorder = Recorder()
    engine = RunEngine(context_managers=[])
    engine.subscribe(recorder)
    engine.subscribe(writer(str(tmp_path)))
    engine(count([det1, det2], num=3))
    (recording,) = tmp_path.iterdir()

    assert list(read_documents(recording)) == [(name, json.loads(json.dumps(doc))) for name, doc in recorder.documents]


def test_numpys_arrays_and_numbers_are_read_from_msgpack(tmp_path: Path) -> None:
    page = pack_event_page(*(doc for name, doc in DOCUMENTS if name == "event"))
    table = np.array([(1, 2.5)], dtype=[("n", "<i4"), ("x", "<f8", (2,))])
    data = {"k0": np.arange(5.0), "image": np.ones((2, 3), dtype=">i2"), "n": np.float32(1.5), "table": table}
    recording = tmp_path / "recording"
    recording.write_bytes(msgpack_numpy.packb(["event_page", {**page, "data": data}]))

    ((name, found),) = read_documents(recording)

    assert name == "event_page"
    assert {key: value for key, value in found.items() if key != "data"} == {
        k: v for k, v in page.items() if k != "data"
    }
    assert found["data"].keys() == data.keys()
    for key, value in data.items():
        assert found["data"][key].dtype == value.dtype
        assert np.array_equal(found["data"][key], value)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle of a recording was loaded",))


def test_a_pickle_within_a_recording_is_never_loaded(tmp_path: Path) -> None:
    objects = np.array([Bomb(), None], dtype=object)
    described = {b"nd": True, b"type": "|O", b"kind": b"", b"shape": (1,), b"data": b"12345678"}
    for number, value in enumerate((objects, described)):
        recording = tmp_path / f"{number}"
        recording.write_bytes(msgpack_numpy.packb(["event", {"data": {"a": value}}]))

    ((_, found),) = read_documents(tmp_path / "0")
    assert isinstance(found["data"]["a"], dict)
    with pytest.raises(RecordingError, match="document 1 is no MessagePack"):
        list(read_documents(tmp_path / "1"))


def test_numbers_that_are_not_finite_are_read_from_json(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text('["event", {"data": {"a": NaN, "b": [Infinity, -Infinity]}}]')

    ((_, doc),) = read_documents(recording)

    assert math.isnan(doc["data"]["a"])
    assert doc["data"]["b"] == [math.inf, -math.inf]


@pytest.mark.parametrize("kind", ["suitcase-jsonl", "array", "indented array", "msgpack"])
def test_what_a_killed_writer_left_is_read_up_to_the_document_that_is_cut_off(tmp_path: Path, kind: str) -> None:
    whole = WRITTEN[kind](DOCUMENTS)
    end = len(WRITTEN[kind](DOCUMENTS[:-1]))
    recording = tmp_path / "recording"
    for cut in (end + 15, end + 30, len(whole) - 8):
        recording.write_bytes(whole[:cut])
        found = []

        with pytest.raises(CutOffError, match="(line|document) [0-9]+ is cut off"):
            found.extend(read_documents(recording))  # keeps what came before the error

        assert found == DOCUMENTS[:-1]


@pytest.mark.parametrize(
    "left", ["[\n{},\n", "[\n{}\n", "[{}", "[{}, ", "[{},\n[", "[[{}]", "[[{}],", "[", "[[[[", "[["]
)
def test_an_array_that_is_cut_off_behind_a_document_is_named_behind_its_documents(tmp_path: Path, left: str) -> None:
    recording = tmp_path / "recording"
    recording.write_text(left.format(", ".join(texts(DOCUMENTS))))
    found = []

    with pytest.raises(CutOffError, match="recording is cut off: the file ends within an array of documents"):
        found.extend(read_documents(recording))

    assert found == (DOCUMENTS if "{}" in left else [])


def test_the_line_that_is_cut_off_is_named(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text("\n".join(texts(DOCUMENTS))[:-20])

    with pytest.raises(CutOffError, match=f"recording, line {len(DOCUMENTS)} is cut off"):
        list(read_documents(recording))


def test_packed_data_that_are_cut_off_give_what_came_before(tmp_path: Path) -> None:
    many = [*DOCUMENTS, *growth(points=3000)]
    packed = gzip.compress(JSON["suitcase-jsonl"](many).encode())
    recording = tmp_path / "recording"
    recording.write_bytes(packed[: len(packed) // 2])
    found = []

    with pytest.raises(CutOffError, match="ends within compressed data"):
        found.extend(read_documents(recording))

    assert found == many[: len(found)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"name": "start"}\n', "line 1 is no document but a dict"),
        (b'["start", {"uid": "a"}]\nnonsense\n', "line 2 is no JSON"),
        (b'["start", {"uid": "a"}]\n["event", {"uid": "b" "c": 1}]\n["stop", {}]', "line 2 is no JSON: Expecting ','"),
        (b'["start", 5]\n', "line 1 is no document but a list"),
        (b'["start", {}, 3]', "line 1 is no document but a list"),
        (b'\n\n"start"', "line 3 is no document but a str"),
        (b"42", "line 1 is no document but a int"),
        (b'{"start": {}, "stop": {}}', "line 1 is no document but a dict"),
        (b"<html>", "line 1 is no JSON"),
        (b"\xff\xd8\xff\xe0", "document 1 is no document but a int"),
        (b"\xc1\x00", "document 1 is no MessagePack"),
        (msgpack.packb(["start", {"uid": "a"}]) + msgpack.packb("x"), "document 2 is no document but a str"),
        (b'["start", ' + b'{"a":' * 100_000, "line 1 is nested too deep"),
        (b"\x1f\x8bnonsense", "cannot be read"),
        (b'["start", {"uid": "\xff"}]', "cannot be read"),
    ],
    ids=range(15),
)
def test_what_is_no_document_is_named_with_what_is_expected(tmp_path: Path, content: bytes, said: str) -> None:
    recording = tmp_path / "recording"
    recording.write_bytes(content)

    with pytest.raises(RecordingError) as caught:
        list(read_documents(recording))

    assert said in str(caught.value)
    assert "recording" in str(caught.value)


def test_a_file_that_is_not_there_is_an_error_and_an_empty_one_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be read"):
        list(read_documents(tmp_path / "nowhere"))
    for content in (b"", b"\n \n", b"[]", b"[\n]"):
        (tmp_path / "recording").write_bytes(content)
        assert list(read_documents(tmp_path / "recording")) == []


@pytest.mark.parametrize("kind", ["suitcase-jsonl", "array", "indented array", "without newlines", "msgpack"])
def test_a_file_of_any_size_is_read_one_document_at_a_time(tmp_path: Path, kind: str) -> None:
    event = next(doc for name, doc in DOCUMENTS if name == "event")
    many: list[Document] = [("event", {**event, "data": {f"k{n}": 1.5 for n in range(50)}})] * 20_000
    recording = tmp_path / "recording"
    recording.write_bytes(WRITTEN[kind](many))
    assert recording.stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents(recording)) == len(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8_000_000


def test_a_document_larger_than_what_is_read_at_a_time_is_read(tmp_path: Path) -> None:
    large: Document = ("event_page", {"descriptor": "d", "data": {"a": [0.5] * 1_000_000, "b": "x" * 3_000_000}})
    recording = tmp_path / "recording"
    recording.write_text(json.dumps([*DOCUMENTS, large, *DOCUMENTS]))

    assert list(read_documents(recording)) == [*DOCUMENTS, large, *DOCUMENTS]


# ---- one run of several ----------------------------------------------------------------------------------------------


def test_a_run_is_picked_out_of_the_others_with_its_documents_in_order() -> None:
    first, second = list(growth(points=5)), list(growth(points=3))
    mixed = [document for pair in zip(first, second, strict=False) for document in pair]
    mixed += first[len(second) :]

    uid, found = one_run(mixed, first[0][1]["uid"][:8])

    assert (uid, found) == (first[0][1]["uid"], first)
    assert one_run(mixed, second[0][1]["uid"])[1] == second


def test_a_descriptor_behind_its_events_comes_before_them() -> None:
    start, descriptor, *events, stop = growth(points=5)
    other = list(growth(points=2))

    _, found = one_run(
        [start, *events[:3], other[0], other[2], descriptor, stop, events[3], other[1], events[4]], start[1]["uid"]
    )

    assert found == [start, descriptor, *events, stop]


def test_the_events_of_a_bulk_are_those_of_their_runs() -> None:
    first, second = list(growth(points=2)), list(growth(points=2))
    uids = [run[1][1]["uid"] for run in (first, second)]
    events = {uid: [doc for _, doc in run[2:4]] for uid, run in zip(uids, (first, second), strict=True)}
    mixed = [*first[:2], *second[:2], ("bulk_events", events), first[-1], second[-1]]

    _, found = one_run(mixed, first[0][1]["uid"])

    assert found == [*first[:2], ("bulk_events", {uids[0]: events[uids[0]]}), first[-1]]


# ---- as a source -----------------------------------------------------------------------------------------------------


def test_several_files_follow_each_other_and_all_bytes_are_counted(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(JSON["suitcase-jsonl"](DOCUMENTS))
        paths.append(path)
    paths[1].write_bytes(gzip.compress(paths[1].read_bytes()))

    source = Recordings(paths)
    found = [(name, doc) for name, doc, _ in source]

    assert [name for name, _ in found] == [name for name, _ in DOCUMENTS] * 3
    assert source.read_bytes == source.total_bytes == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    "damage",
    [
        *('["event", {"a": ', '["event", {"a": 1}} ]', "\0\0\0\0", '["event"]', "garbage", "{}"),
        '["event", {"a": ' + "1" * 5000 + "}]",  # Python reads no integer of so many digits
    ],
    ids=lambda text: text[:16],
)
def test_a_damaged_line_costs_no_other_and_is_named(tmp_path: Path, damage: str) -> None:
    lines = texts(DOCUMENTS)
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join([*lines[:4], damage, *lines[4:]]) + "\n")

    found = list(Recordings([path]))

    assert [one.name for one in found if one.name != UNREADABLE] == [name for name, _ in DOCUMENTS]
    reasons = [one.doc["reason"] for one in found if one.name == UNREADABLE]
    assert all(f"{path}, line 5 " in reason for reason in reasons)
    assert len(reasons) == 1


@pytest.mark.parametrize("kind", ["suitcase-jsonl", "lines of name and doc", "lines of one key each", "json sequence"])
@pytest.mark.parametrize("damaged", [1, 2, 4])
def test_lines_that_are_cut_off_anywhere_before_the_last_cost_no_other(tmp_path: Path, kind: str, damaged: int) -> None:
    lines = JSON[kind](DOCUMENTS).splitlines(keepends=True)
    path = tmp_path / "run.jsonl"
    whole = [name for name, _ in DOCUMENTS[: -1 - damaged]] + ["stop"]
    for end in range(3, len(lines[-2].rstrip())):
        path.write_text("".join([*lines[: -1 - damaged], *[lines[-2][:end] + "\n"] * damaged, lines[-1]]))

        found = list(Recordings([path]))

        assert [one.name for one in found if one.name != UNREADABLE] == whole, end
        reasons = [one.doc["reason"] for one in found if one.name == UNREADABLE]
        assert f"{path}, line {len(lines) - damaged} " in reasons[0], end


def test_an_indented_document_that_is_cut_off_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(JSON["indented, one after the other"](DOCUMENTS)[:-20])

    *documents, last = Recordings([path])

    assert [one.name for one in documents] == [name for name, _ in DOCUMENTS[:-1]]
    assert "is cut off: the file ends within this document" in last.doc["reason"]


@pytest.mark.parametrize("events", [[1], ["text"], [None], None, 5])
def test_the_list_of_what_a_file_holds_counts_events_that_are_none(tmp_path: Path, events: Any) -> None:
    path = tmp_path / "run.jsonl"
    documents = [*DOCUMENTS[:3], ("bulk_events", {DOCUMENTS[1][1]["uid"]: events}), *DOCUMENTS[3:]]
    path.write_text("\n".join(texts(documents)))

    contents = Contents(Settings.load(environ={}))
    contents.read(Recordings([path]))

    (run,) = contents.runs.values()
    assert run.stopped
    assert run.events["primary"] - 5 + sum(contents.unusable.values()) == 1


@pytest.mark.parametrize(
    "damage",
    ['["event", {"uid": "a\nb", "time": 1}]', '["event",\n {"uid": "e"}}]', '"event", {"uid": "e"}]', ' "event": {]'],
)
def test_a_line_that_is_damaged_into_several_values_costs_no_other(tmp_path: Path, damage: str) -> None:
    lines = texts(DOCUMENTS)
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join([*lines[:4], damage, *lines[4:]]) + "\n")

    found = list(Recordings([path]))

    assert [one.name for one in found if one.name != UNREADABLE] == [name for name, _ in DOCUMENTS]
    reasons = [one.doc["reason"] for one in found if one.name == UNREADABLE]
    assert f"{path}, line 5 " in reasons[0]


@pytest.mark.parametrize("damage", [b'["event", {"uid": "\xff"}]', b'["event", {\xff"uid": "e"}]', b"\xff\xfe\xfd"])
def test_a_line_that_is_no_utf_8_costs_no_other(tmp_path: Path, damage: bytes) -> None:
    lines = [text.encode() for text in texts([*DOCUMENTS, ("start", {"uid": "\u00fc"})])]
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n".join([*lines[:4], damage, *lines[4:]]) + b"\n")

    found = list(Recordings([path]))

    assert [one.name for one in found if one.name != UNREADABLE] == [*(name for name, _ in DOCUMENTS), "start"]
    (reason,) = (one.doc["reason"] for one in found if one.name == UNREADABLE)
    assert f"{path}, line 5 " in reason


def test_a_cut_off_line_and_a_foreign_file_are_named_and_the_next_file_follows(tmp_path: Path) -> None:
    names = ("cut.jsonl", "picture.png", "missing", "whole.msgpack")
    cut, foreign, missing, whole = (tmp_path / name for name in names)
    cut.write_text("\n".join(texts(DOCUMENTS))[:-20])
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    whole.write_bytes(MSGPACK["msgpack"](DOCUMENTS))

    found = list(Recordings([cut, foreign, missing, whole]))

    assert sum(one.name == "start" for one in found) == 2
    reasons = [one.doc["reason"] for one in found if one.name == UNREADABLE]
    assert f"{cut}, line {len(DOCUMENTS)} is cut off" in reasons[0]
    assert str(foreign) in reasons[1]
    assert str(missing) in reasons[-1]
    assert found[-1].name == "stop"


def test_a_document_that_begins_in_one_block_and_ends_in_another_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    large = ("event", {"uid": "e", "data": {"k": list(range(400_000))}})
    documents = [*DOCUMENTS[:3], large, *DOCUMENTS[3:], large]
    for write in (JSON["suitcase-jsonl"], JSON["indented array"]):
        path.write_text(write(documents))
        assert [(name, doc) for name, doc, _ in Recordings([path])] == documents


@pytest.mark.parametrize("kind", ["suitcase-jsonl", "lines of name and doc", "json sequence", "array"])
def test_a_document_is_read_wherever_a_block_ends_near_its_beginning(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.jsonl"
    event = next(doc for name, doc in DOCUMENTS if name == "event")

    def written(padding: int) -> tuple[list[Document], str]:
        documents: list[Document] = [DOCUMENTS[0], ("event", {**event, "note": "x" * padding}), *DOCUMENTS[1:]]
        return documents, JSON[kind](documents)

    position = len(JSON[kind]([DOCUMENTS[0], ("event", {**event, "note": ""})]))  # of the document behind it
    for end in range(position - 4, position + 12):
        documents, text = written((1 << 20) + 6 - end)  # the first block has the bytes that show what the file is
        path.write_text(text)
        assert [(name, doc) for name, doc, _ in Recordings([path])] == documents


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input is a pipe; its other end."""
    reading, writing = os.pipe()
    with open(reading, closefd=False) as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        yield writing
    os.close(reading)


def test_a_line_in_a_pipe_is_read_when_it_has_come(pipe: int) -> None:
    found = iter(Recordings(["-"]))
    for name, doc in DOCUMENTS:
        os.write(pipe, (json.dumps([name, doc]) + "\n").encode())
        assert next(found)[:2] == (name, doc)  # the pipe is still open
    os.close(pipe)
    assert list(found) == []


@pytest.mark.parametrize("kind", ["msgpack", "gzip"])
def test_what_is_packed_is_read_from_a_pipe(pipe: int, kind: str) -> None:
    written = MSGPACK["msgpack"](DOCUMENTS) if kind == "msgpack" else gzip.compress(JSON["array"](DOCUMENTS).encode())
    os.write(pipe, written)
    os.close(pipe)
    assert [name for name, *_ in Recordings(["-"])] == [name for name, _ in DOCUMENTS]


def test_a_pipe_from_which_nothing_comes_can_be_left(pipe: int) -> None:
    ending = threading.Event()
    found = iter(Recordings(["-"], ending))
    os.write(pipe, (json.dumps(DOCUMENTS[0]) + '\n["event", {').encode())
    assert next(found).name == "start"
    threading.Timer(0.2, ending.set).start()
    assert list(found) == []
    os.close(pipe)


def test_a_file_that_is_no_recording_is_said_to_be_none_once(tmp_path: Path) -> None:
    table = tmp_path / "big.csv"
    table.write_text("time,T\n" + "".join(f"{n},{n / 2}\n" for n in range(3000)))

    (only,) = Recordings([table])

    assert only.name == UNREADABLE
    assert only.doc["reason"].startswith(f"{table} is no recorded run, because nothing in it is a document; ")
    assert f"{table}, line 1 is no JSON" in only.doc["reason"]


def test_many_damaged_lines_of_a_recording_are_counted_together(tmp_path: Path) -> None:
    file = tmp_path / "growth.jsonl"
    start, stop = '["start", {"uid": "a"}]\n', '["stop", {"run_start": "a"}]\n'
    file.write_text(start + "damaged\n" * 500 + stop + "damaged\n")

    found = list(Recordings([file]))

    assert [one.name for one in found if one.name != UNREADABLE] == ["start", "stop"]
    reasons = [one.doc["reason"] for one in found if one.name == UNREADABLE]
    assert len(reasons) == 21
    assert reasons[0].startswith(f"{file}, line 2 is no JSON")
    assert reasons[-1].startswith(
        f"{file} holds 481 more lines or values that are no documents; the last: {file}, line 503"
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux has a file whose first read fails")
def test_a_file_whose_first_read_fails_is_named() -> None:
    (found,) = Recordings(["/proc/self/mem"])

    assert found.name == UNREADABLE
    assert "/proc/self/mem cannot be read" in found.doc["reason"]
    with pytest.raises(RecordingError, match="/proc/self/mem cannot be read"):
        list(read_documents(Path("/proc/self/mem")))


@pytest.mark.parametrize("has_writer", [False, True])
def test_a_named_pipe_from_which_nothing_comes_can_be_left(tmp_path: Path, has_writer: bool) -> None:
    path = tmp_path / "documents"
    os.mkfifo(path)
    ending = threading.Event()
    found: list[str] = []
    reading = threading.Thread(target=lambda: found.extend(one.name for one in Recordings([path], ending)), daemon=True)
    reading.start()
    if has_writer:
        writing = os.open(path, os.O_WRONLY)
        os.write(writing, (json.dumps(DOCUMENTS[0]) + '\n["event", {').encode())
        wait_until(lambda: found == ["start"])
    ending.set()
    reading.join(10)
    left = not reading.is_alive()
    os.close(writing if has_writer else os.open(path, os.O_WRONLY))  # so that no thread waits any longer

    assert left
    assert found == ["start"] * has_writer
