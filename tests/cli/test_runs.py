"""`show`, `plot` and `export`: which run is meant, and that what they give are the readings."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from event_model import compose_run
from runs import growth
from waiting import wait_until

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import Fault, LocalServer
from atomscale_bluesky.spool.spool import Spool

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
NASTY = "\x1b[31mred\x1b[0m [bold]$x_1$[/bold] \u202edlrow\x07"


@pytest.fixture
def delivered(callback: AtomscaleCallback) -> str:
    """The uid of a run that was delivered and has left the spool."""
    uid = ""
    for name, doc in growth(25, start_metadata={"scan_id": 12}):
        uid = uid or doc["uid"]
        callback(name, doc)
    assert callback.drain(20)
    return uid


def columns_of(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        titles, *rows = csv.reader(file)
    return {title: [float(row[i]) for row in rows if row[i]] for i, title in enumerate(titles)}


def test_a_run_is_found_by_uid_beginning_scan_id_and_last(say: Say, spooled: Callable[..., str]) -> None:
    first = spooled(scan_id=7)
    second = spooled(scan_id=8)

    for text, uid in ((first, first), (first[:8], first), ("7", first), ("8", second), ("last", second)):
        code, said, _ = say("show", text)
        assert code == 0
        assert f"run {uid} " in said
    code, _, complaint = say("show", "no-such-run")
    assert code == 1
    assert "no run begins with 'no-such-run'" in complaint


@pytest.mark.parametrize("command", ["status", "show", "verify", "retry", "edit", "discard"])
@pytest.mark.parametrize(("text", "newest"), [("{uid}", False), ("{short}", False), ("7", False), ("last", True)])
def test_every_command_finds_a_run_in_the_same_ways(
    say: Say, spooled: Callable[..., str], command: str, text: str, newest: bool
) -> None:
    uid, other = spooled(scan_id=7), spooled(scan_id=8)
    run = text.format(uid=uid, short=uid[:8])
    options = {"edit": ["--tag", "night"], "discard": ["--dry-run"]}.get(command, [])
    _, said, complaint = say(command, run, *options)

    found, left = (other, uid) if newest else (uid, other)
    assert complaint == ""
    assert found[:8] in said
    assert left[:8] not in said


@pytest.mark.parametrize("command", ["status", "show", "verify", "retry"])
def test_a_scan_id_that_no_run_has_is_no_run(say: Say, spooled: Callable[..., str], command: str) -> None:
    spooled(scan_id=7)
    code, _, complaint = say(command, "9999999")

    assert code == 1
    assert "begins with '9999999'" in complaint


def test_a_short_number_is_a_scan_id_although_a_uid_begins_so(
    say: Say, spooled: Callable[..., str], make_callback: MakeCallback
) -> None:
    uid = spooled(scan_id=7)
    callback = make_callback(offline=True)
    other = ""
    for name, doc in growth(5, start_metadata={"scan_id": 9}):
        other = other or doc["uid"]
        callback(name, json.loads(json.dumps(doc).replace(other, "7" + other[1:])))
    callback.close()

    assert f"run {uid} " in say("show", "7")[1]
    assert f"run 7{other[1:]} " in say("show", "7" + other[1:8])[1]


def test_show_lists_channels_with_units_counts_and_ends_and_every_reason(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(offline=True)
    for name, doc in growth(25):
        if name == "event" and doc["seq_num"] == 4:
            doc = doc | {"data": doc["data"] | {"k1": float("nan")}}
        callback(name, doc)
    callback.close()

    _, said, _ = say("show", "last")
    assert "primary: 25 rows" in said
    assert "k0 K 25 0 24" in said
    assert "k1 K 24 0.1 24.1" in said
    assert "left out 1 not finite: k1 (1)" in said
    told = json.loads("".join(_json(say, "show", "last", "--json")))
    assert told["tables"][0]["channels"][0] == {"name": "k0", "unit": "K", "points": 25, "ends": [0.0, 24.0]}


def _json(say: Say, *arguments: str) -> str:
    return say(*arguments)[1]


def test_a_delivered_run_is_shown_by_name_and_data_id_and_read_from_the_api(
    say: Say, server: LocalServer, delivered: str
) -> None:
    (stream,) = server.streams()
    code, said, _ = say("show", delivered[:8])

    assert code == 0
    assert f"{stream.label} {stream.data_id} finalized" in said
    assert "k0 25 points K" in said
    _, said, _ = say("show", "12", "--from", "api")
    assert "k0 K 25 0 24" in said
    code, _, complaint = say("plot", "12")
    assert code == 1
    assert "add `--from api`" in complaint


@pytest.mark.parametrize("source", ["spool", "api"])
def test_exported_numbers_are_the_readings(
    say: Say, request: pytest.FixtureRequest, tmp_path: Path, source: str
) -> None:
    if source == "api":
        request.getfixturevalue("delivered")
    else:
        request.getfixturevalue("spooled")()
    file = tmp_path / "run.csv"
    code, said, _ = say("export", "last", "--csv", str(file), "--from", source)

    assert code == 0
    assert "25 rows of 2 channels" in said
    found = columns_of(file)
    assert list(found) == ["time", "k0 (K)", "k1 (K)"]
    assert found["k0 (K)"] == [float(n) for n in range(25)]
    assert found["k1 (K)"] == [n + 0.1 for n in range(25)]
    assert found["time"][24] - found["time"][0] == pytest.approx(0.24, abs=0.0011)
    before = file.read_bytes()
    code, _, complaint = say("export", "last", "--csv", str(file), "--from", source)
    assert code == 2
    assert "exists" in complaint
    assert file.read_bytes() == before


def test_parquet_has_units_and_missing_values(say: Say, make_callback: MakeCallback, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    callback = make_callback(offline=True)
    for name, doc in growth(25):
        if name == "event" and doc["seq_num"] == 4:
            doc = doc | {"data": doc["data"] | {"k1": float("nan")}}
        callback(name, doc)
    callback.close()
    assert say("export", "last", "k1", "--parquet", str(tmp_path / "run.parquet"))[0] == 0

    table = pq.read_table(tmp_path / "run.parquet")
    assert table.column_names == ["time", "k1"]
    assert table["k1"].null_count == 1
    assert table["k1"].to_pylist()[4] == 4.1
    assert table.schema.field("k1").metadata == {b"unit": b"K"}


def test_event_streams_with_other_times_get_a_file_each(say: Say, make_callback: MakeCallback, tmp_path: Path) -> None:
    callback = make_callback(offline=True)
    run = compose_run(metadata={"plan_name": "two"})
    callback("start", run.start_doc)
    for name in ("primary", "cam/../x"):
        described = {"value": {"source": "sim", "dtype": "number", "shape": []}}
        stream = run.compose_descriptor(name=name, data_keys=described)
        callback("descriptor", stream.descriptor_doc)
        callback("event", stream.compose_event(data={"value": 1.5}, timestamps={"value": 5.0}, time=5.0))
    callback("stop", run.compose_stop())
    callback.close()

    assert say("export", "last", "--csv", str(tmp_path / "run.csv"))[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["run-cam_.._x.csv", "run.csv"]


def test_a_plot_shows_a_line_for_each_channel_and_pictures_are_written(
    say: Say, spooled: Callable[..., str], tmp_path: Path
) -> None:
    spooled(scan_id=5)
    code, said, _ = say("plot", "5", "k1")

    assert code == 0
    assert "━ k1" in said
    assert "━ k0" not in said
    assert any("\u2800" < char <= "\u28ff" for char in said)
    for ending, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture = tmp_path / f"run.{ending}"
        assert say("plot", "5", "--out", str(picture))[0] == 0
        assert picture.read_bytes().startswith(begin)
    assert say("plot", "5", "no-such-channel")[0] == 1
    assert say("plot", "5", "--out", str(tmp_path / "run.nonsense"))[0] == 2


@pytest.mark.parametrize(
    "times", [[0.0], [0.0, 0.12], [0.0171, 0.0343], [3.0, 17.5], [0.0, 3600.0], [86_000.0, 86_000.3], [-0.5, 0.5]]
)
def test_the_time_axis_of_a_plot_has_round_numbers(say: Say, make_callback: MakeCallback, times: list[float]) -> None:
    callback = make_callback(offline=True)
    run = compose_run(metadata={"plan_name": "round"})
    begun = run.start_doc["time"]
    stream = run.compose_descriptor(name="primary", data_keys={"T": {"source": "s", "dtype": "number", "shape": []}})
    callback("start", run.start_doc)
    callback("descriptor", stream.descriptor_doc)
    for at in times:
        callback("event", stream.compose_event(data={"T": at}, timestamps={"T": begun + at}, time=begun + at))
    callback("stop", run.compose_stop())
    callback.close()

    said = say("plot", "last")[1]
    ticks = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", said.rpartition("|-")[2])]
    assert len(ticks) > 5
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"
    assert ticks == pytest.approx([step * round(at / step) for at in ticks], abs=step / 100)
    assert ticks[0] <= min(times) + step / 100
    assert max(times) <= ticks[-1] + step


def test_names_from_outside_are_shown_harmless_and_break_nothing(
    say: Say, make_callback: MakeCallback, tmp_path: Path
) -> None:
    callback = make_callback(offline=True, label="{plan_name}", rename={"k0": NASTY})
    for name, doc in growth(25, start_metadata={"plan_name": NASTY}):
        callback(name, doc)
    callback.close()

    for arguments in (
        ["show", "last"],
        ["plot", "last"],
        ["plot", "last", "--out", str(tmp_path / "run.svg")],
        ["export", "last", "--csv", str(tmp_path / "run.csv")],
    ):
        code, said, _ = say(*arguments)
        assert code == 0
        assert "\x1b" not in said
        assert "\u202e" not in said


def test_a_run_of_an_earlier_version_is_read_from_the_api_if_its_channels_are_named(
    say: Say, spool_dir: Path, delivered: str
) -> None:
    spool = Spool(spool_dir)
    (entry,) = spool.history.entries_of(delivered)
    for name in ("channels", "scan_id"):
        del entry[name]
    spool.history.add(entry | {"run_uid": "earlier-" + delivered, "started": entry["started"] + 1})

    code, _, complaint = say("show", "earlier-", "--from", "api")
    assert code == 1
    assert "name them" in complaint
    assert "━ k0" in say("plot", "earlier-", "k0", "--from", "api")[1]


def test_a_run_that_has_no_point_yet_is_not_taken_for_one_of_an_earlier_version(
    say: Say, server: LocalServer, callback: AtomscaleCallback
) -> None:
    documents = growth(1)
    callback(*next(documents))
    callback(*next(documents))
    wait_until(lambda: bool(server.streams()))
    wait_until(lambda: "no data_id yet" not in say("status", "--all")[1])

    code, _, complaint = say("show", "last", "--from", "api")
    assert code == 1
    assert "has no point in Atomscale yet" in complaint


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("plotille", ["plot", "last"], "plot"),
        ("matplotlib", ["plot", "last", "--out", "run.png"], "plot"),
        ("pyarrow", ["export", "last", "--parquet", "run.parquet"], "parquet"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    spooled: Callable[..., str], tmp_path: Path, missing: str, arguments: list[str], extra: str
) -> None:
    spooled()
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from atomscale_bluesky.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )

    assert ended.returncode == 2
    assert ended.stderr.endswith(f"python -m pip install 'atomscale-bluesky[{extra}]'\n")
    assert ended.stderr.count("\n") == 1


def test_the_shell_completes_runs(spooled: Callable[..., str], spool_dir: Path) -> None:
    import os

    uid = spooled(scan_id=3)
    environment = os.environ | {
        "_ATOMSCALE_BLUESKY_COMPLETE": "bash_complete",
        "COMP_WORDS": f"atomscale-bluesky show {uid[:3]}",
        "COMP_CWORD": "2",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "atomscale_bluesky"], env=environment, capture_output=True, text=True, timeout=60
    )

    assert f"plain,{uid[:8]}" in ended.stdout.splitlines()


def test_a_run_says_to_what_it_is_linked_in_the_spool_and_after_it_has_left(
    say: Say, make_callback: MakeCallback, server: LocalServer
) -> None:
    project = server.add_project("nitrides")
    server.misbehave(Fault(call=("chunk", "chunk_multi"), status=503))
    callback = make_callback()
    metadata = {"physical_sample": "W1", "project_id": project, "tags": ["night", "recipe 12"]}
    for name, doc in growth(25, start_metadata=metadata):
        callback(name, doc)
    wait_until(lambda: server.streams())
    (status,) = callback.status()
    assert status.linked_to is not None
    sample = status.linked_to.physical_sample_id
    line = f"linked to instrument 42, sample W1 ({sample}), project {project}, tags night, recipe 12"

    assert sample is not None
    assert line in say("show", "last")[1]
    assert line in say("status", "last")[1]
    found = json.loads(say("status", "last", "--json")[1])["runs"][0]["linked_to"]
    assert (found["synth_source_id"], found["physical_sample"], found["physical_sample_id"]) == (42, "W1", sample)
    assert (found["project_id"], found["tags"], len(found["tag_ids"])) == (project, ["night", "recipe 12"], 2)
    assert json.loads(say("show", "last", "--json")[1])["status"]["linked_to"] == found

    server.behave()
    assert callback.close(30)
    assert line in say("show", "last")[1]
    assert line in say("status", "last")[1]
    assert json.loads(say("show", "last", "--json")[1])["finished"]["linked_to"] == found


def test_an_edit_that_is_not_carried_out_is_shown_with_its_values_beside_what_the_run_has(
    say: Say, spooled: Callable[..., str]
) -> None:
    uid = spooled(physical_sample="W1")
    assert say("edit", uid[:8], "--physical-sample", "W2", "--stream-name", "growth 7")[0] == 0

    for command in ("show", "status"):
        said = say(command, uid[:8])[1]
        assert "linked to instrument 42, sample W1, no project, no tags" in said
        assert "ordered edit (instrument 42, sample W2, no project, no tags, named growth 7); the process" in said
    (run,) = json.loads(say("status", uid[:8], "--json")[1])["runs"]
    assert run["ordered_edit"]["linked_to"]["physical_sample"] == "W2"
    assert run["linked_to"] | {"resolved": None} == run["ordered_edit"]["linked_to"] | {
        "physical_sample": "W1", "resolved": None,
    }  # fmt: skip
    assert run["linked_to"]["resolved"] is False

    assert say("upload")[0] == 0
    assert re.search(r"linked to instrument 42, sample W2 \([0-9a-f-]{36}\), no project", say("show", uid[:8])[1])


def test_points_of_channels_that_the_history_does_not_name_are_missed_aloud(
    callback: AtomscaleCallback, say: Say, tmp_path: Path
) -> None:
    for name, doc in growth(5, keys=250):
        callback(name, doc)
    assert callback.drain(20)

    code, said, complaint = say("export", "last", "--csv", str(tmp_path / "some.csv"), "--from", "api")
    assert (code, "5 rows of 200 channels" in said) == (1, True)
    assert "250 points of run" in complaint
    assert "name these channels" in complaint
    assert "and further channels, with 250 points" in say("show", "last")[1]
    code, said, complaint = say("export", "last", "k249", "--csv", str(tmp_path / "named.csv"), "--from", "api")
    assert (code, "5 rows of 1 channel" in said, complaint) == (0, True, "")
