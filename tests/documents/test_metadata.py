"""What a start document says about its streams, and how these are named."""

from __future__ import annotations

import math
import re
import time
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from event_model import compose_run
from hypothesis import given
from hypothesis import strategies as st

from atomscale_bluesky import MetadataError, Settings, validate_metadata
from atomscale_bluesky.documents.metadata import RunMetadata, read_metadata, read_what_is_usable, run_label
from atomscale_bluesky.model.labels import MAX_LABEL, label_with_reason, stream_label
from atomscale_bluesky.model.links import Links
from atomscale_bluesky.model.metadata_keys import METADATA_KEYS

SAMPLE = "6f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"
# A value where a start document may have it: at the top level, or in the dict of our own.
LEVELS = pytest.mark.parametrize("at", [lambda md: md, lambda md: {"atomscale": md}], ids=["top", "atomscale"])


class Odd:
    """Something that no encoder takes, and that does not even have a text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __format__(self, spec: str) -> str:
        raise RuntimeError("no text")


def read(name: str, metadata: RunMetadata) -> Any:
    found = {"stream_name": metadata.label, "points_per_chunk": metadata.points_per_chunk}
    return found[name] if name in found else getattr(metadata.links, name)


@LEVELS
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("synth_source_id", 42, 42),
        ("synth_source_id", 0, 0),
        ("synth_source_id", " 42 ", 42),
        ("synth_source_id", np.int64(42), 42),
        ("synth_source_id", np.array(42), 42),
        ("synth_source_id", np.str_("42"), 42),
        ("synth_source_id", 42.0, 42),
        ("synth_source_id", np.float32(42), 42),
        ("synth_source_id", Decimal(42), 42),
        ("synth_source_id", "42.0", 42),
        ("synth_source_id", math.nan, None),
        ("synth_source_id", None, None),
        ("synth_source_id", "", None),
        ("synth_source_id", "  ", None),
        ("physical_sample_id", SAMPLE, SAMPLE),
        ("physical_sample_id", SAMPLE.upper().replace("-", ""), SAMPLE),
        ("physical_sample_id", f" {SAMPLE}\n", SAMPLE),
        ("physical_sample_id", uuid.UUID(SAMPLE), SAMPLE),
        ("physical_sample_id", "", None),
        ("project_id", SAMPLE, SAMPLE),
        ("physical_sample", " GaN-0417 ", "GaN-0417"),
        ("physical_sample", "Mu\u0308nchen", "M\u00fcnchen"),
        ("physical_sample", "x" * 255, "x" * 255),
        ("physical_sample", 417, "417"),
        ("physical_sample", 417.0, "417"),
        ("physical_sample", np.int64(417), "417"),
        ("physical_sample", 41.5, "41.5"),
        ("physical_sample", Decimal("41.5"), "41.5"),
        ("physical_sample", "417.0", "417.0"),
        ("physical_sample", math.nan, None),
        ("physical_sample", "  ", None),
        ("tags", "night shift", ("night shift",)),
        ("tags", [" night shift ", "", "Night Shift", "recipe 12"], ("night shift", "recipe 12")),
        ("tags", ("a", "b"), ("a", "b")),
        ("tags", {"b", "a"}, ("a", "b")),
        ("tags", [], ()),
        ("tags", None, ()),
        ("tags", SAMPLE.upper(), (SAMPLE,)),
        ("track_sample", False, False),
        ("track_sample", np.bool_(False), False),
        ("stream_name", "GaAs on Si, 3°", "GaAs on Si, 3°"),
        ("stream_name", " padded ", "padded"),
        ("stream_name", "x" * 500, "x" * 199 + "…"),
        ("stream_name", None, None),
        ("points_per_chunk", 1, 1),
        ("points_per_chunk", "100", 100),
        ("points_per_chunk", 100_000, 100_000),
        ("points_per_chunk", 1e2, 100),
    ],
)
def test_a_value_is_read_as_plans_write_it(at: Any, name: str, value: Any, expected: Any) -> None:
    metadata = at({name: value})

    validate_metadata(metadata)

    assert read(name, read_metadata(metadata)) == expected


WRONG = pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("synth_source_id", -1, "0 or more"),
        ("synth_source_id", 2**31, "0 or more"),
        ("synth_source_id", 10**5000, "0 or more"),
        ("synth_source_id", "9" * 5000, "a whole number such as 42"),
        ("synth_source_id", "MBE 2", "a whole number such as 42"),
        ("synth_source_id", 42.5, "a whole number such as 42"),
        ("synth_source_id", "42.5", "a whole number such as 42"),
        ("synth_source_id", math.inf, "a whole number such as 42"),
        ("synth_source_id", True, "a whole number such as 42"),
        ("synth_source_id", np.bool_(True), "a whole number such as 42"),
        ("synth_source_id", [42], "a whole number such as 42"),
        ("synth_source_id", np.array([42, 43]), "a whole number such as 42"),
        ("synth_source_id", Decimal("sNaN"), "a whole number such as 42"),
        ("synth_source_id", Odd(), "a whole number such as 42"),
        ("physical_sample_id", "wafer 17", "a UUID such as"),
        ("physical_sample_id", 17, "a UUID such as"),
        ("physical_sample_id", SAMPLE.encode(), "a UUID such as"),
        ("project_id", SAMPLE + "0", "a UUID such as"),
        ("project_id", {"id": SAMPLE}, "a UUID such as"),
        ("project_id", Odd(), "a UUID such as"),
        ("physical_sample", True, "printable text on one line"),
        ("physical_sample", math.inf, "printable text on one line"),
        ("physical_sample", Decimal("Infinity"), "printable text on one line"),
        ("physical_sample", 10**400, "printable text on one line"),
        ("physical_sample", "GaN\n0417", "printable text on one line"),
        ("physical_sample", {"name": "GaN-0417"}, "printable text on one line"),
        ("physical_sample", "x" * 300, "up to 255 characters, there are 300"),
        ("tags", "night\nshift", "printable text on one line"),
        ("tags", ["ok", "night\rshift"], "printable text on one line"),
        ("tags", ["x" * 256], "up to 255 characters, there are 256"),
        ("tags", [12], "12 is none"),
        ("tags", 12, "text or a list of texts"),
        ("tags", {"a": 1}, "text or a list of texts"),
        ("tags", [f"tag {n}" for n in range(51)], "up to 50 tags, there are 51"),
        ("track_sample", "yes", "True or False"),
        ("track_sample", 1, "True or False"),
        ("stream_name", 17, "printable text on one line"),
        ("stream_name", "two\nlines", "printable text on one line"),
        ("stream_name", "bell\a", "printable text on one line"),
        ("stream_name", "half \ud800 a character", "printable text on one line"),
        ("stream_name", b"bytes", "printable text on one line"),
        ("points_per_chunk", 0, "1 to 100000"),
        ("points_per_chunk", 100_001, "1 to 100000"),
        ("points_per_chunk", -(10**5000), "1 to 100000"),
        ("points_per_chunk", 12.5, "a whole number"),
    ],
    ids=lambda value: f"{type(value).__name__}" if not isinstance(value, str) or len(value) > 40 else None,
)


@WRONG
def test_a_value_in_the_dict_that_cannot_be_used_is_named_with_what_is_expected(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(MetadataError, match=f"metadata {name!r} is .*; expected .*{expected}") as caught:
        validate_metadata({"atomscale": {name: value}})

    text = str(caught.value)
    assert len(text) < 220
    assert text.isprintable()


@WRONG
def test_a_value_at_the_top_level_that_cannot_be_ours_is_named_and_parks_nothing(
    name: str, value: Any, expected: str
) -> None:
    if name == "synth_source_id" or value == SAMPLE + "0":  # nobody else's word, and a typing error
        with pytest.raises(MetadataError, match=f"metadata {name!r} is .*; expected .*{expected}"):
            validate_metadata({name: value})
        return
    site = Links(synth_source_id=7, project_id=SAMPLE, tags=("chamber 3",))

    validate_metadata({name: value})
    found = read_metadata({name: value}, site)

    assert (found.links, found.label, found.points_per_chunk) == (site, None, None)
    ((key, why),) = found.not_ours
    assert key == name
    assert why.isprintable()
    assert expected in why
    assert len(why) < 220


class Hostile:
    """An object of somebody else's that may not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __bool__(self) -> bool:
        raise RuntimeError("neither")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


def test_no_object_of_somebody_elses_at_the_top_level_parks_a_run() -> None:
    given = {name: Hostile() for name in METADATA_KEYS if name != "synth_source_id"}

    assert [key for key, _ in read_metadata(given).not_ours] == list(given)


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE[:-1],
        SAMPLE[1:],
        SAMPLE + "0",
        SAMPLE.replace("-", "")[:-1],
        SAMPLE.replace("6f", "6g"),
        SAMPLE.replace("0a1b", "Oalb"),
        "{" + SAMPLE[:-2] + "}",
        f"urn:uuid:{SAMPLE[:-1]}",
        f" {SAMPLE[:-1]} ",
    ],
)
@pytest.mark.parametrize("name", ["project_id", "physical_sample_id"])
def test_a_uuid_with_a_typing_error_parks_the_run_wherever_it_stands(name: str, text: str) -> None:
    for metadata in ({name: text}, {"atomscale": {name: text}}):
        with pytest.raises(MetadataError, match=f"metadata '{name}' is .* expected a UUID"):
            validate_metadata(metadata)


@pytest.mark.parametrize(
    "text",
    [
        "GUP-77123",
        "507f1f77bcf86cd799439011",  # an ObjectId
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",  # a SHA-1
        "2026-11-29-growth-of-GaN-on-sapphire",
        "https://data.example/projects/77123/x",
        "x" * 10**6,
        77123,
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("name", ["project_id", "physical_sample_id"])
def test_an_id_of_somebody_elses_is_not_taken_for_a_typing_error(name: str, text: Any) -> None:
    validate_metadata({name: text})

    assert read_metadata({name: text}).links == Links()


def test_none_in_the_dict_means_none_whatever_the_top_level_and_the_site_have() -> None:
    site = Links(synth_source_id=7, project_id=SAMPLE, tags=("chamber 3",))
    top = {"synth_source_id": 1, "project_id": SAMPLE, "tags": ["a"], "physical_sample": "b", "stream_name": "c"}
    top |= {"points_per_chunk": 50, "physical_sample_id": SAMPLE}

    for none in (None, " ", math.nan):
        own = dict.fromkeys([*top, "track_sample"], none)
        assert read_metadata(top | {"atomscale": own}, site) == RunMetadata(Links(), None, None)
    for sample in ("physical_sample", "physical_sample_id"):
        found = read_metadata(top | {"atomscale": {sample: None}}, site)
        assert (found.links.physical_sample, found.links.physical_sample_id) == (None, None)
        assert found.links.project_id == SAMPLE


def test_a_setting_names_the_keys_to_read() -> None:
    start = {"project_id": "GUP-77123", "atomscale_project": SAMPLE, "sample": {"name": "x"}, "wafer": 1234}
    keys = {"project_id": "atomscale_project", "physical_sample": "wafer"}

    found = read_metadata(start, keys=keys)

    assert found.links == Links(project_id=SAMPLE, physical_sample="1234")
    assert found.not_ours == ()


def test_what_the_setting_names_is_meant_for_us_and_cannot_be_anything_else() -> None:
    settings = Settings(metadata_keys={"project_id": "atomscale_project", "tags": "tags"})

    for wrong in ({"atomscale_project": "GUP-77123"}, {"tags": {"campaign": "A"}}):
        with pytest.raises(MetadataError, match=f"metadata '{next(iter(wrong))}' is "):
            validate_metadata(wrong, settings=settings)
    validate_metadata({"project_id": SAMPLE[:-1], "physical_sample": {}}, settings=settings)


def test_a_setting_can_leave_the_top_level_to_others() -> None:
    start = {"project_id": SAMPLE, "tags": ["a"], "synth_source_id": "x", "physical_sample": 5}
    start |= {"atomscale": {"project_id": SAMPLE.upper()}}
    keys = {"*": "atomscale"}

    assert read_metadata(start, keys=keys) == RunMetadata(Links(project_id=SAMPLE), None, None)
    one = read_metadata(start | {"synth_source_id": 5}, keys=keys | {"tags": "tags"})
    assert one.links == Links(project_id=SAMPLE, tags=("a",))


def test_the_validator_reads_the_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    validate_metadata({"wafer": "two\nlines"})
    monkeypatch.setenv("ATOMSCALE_BLUESKY_METADATA_KEYS", "physical_sample=wafer")

    with pytest.raises(MetadataError, match="metadata 'wafer' is"):
        validate_metadata({"wafer": "two\nlines"})


def test_the_dict_of_our_own_wins_over_the_top_level() -> None:
    start = {
        "synth_source_id": 1,
        "points_per_chunk": 50,
        "project_id": "not ours",
        "atomscale": {"synth_source_id": 2},
    }
    start["atomscale"]["project_id"] = SAMPLE

    metadata = read_metadata(start)

    assert (metadata.links.synth_source_id, metadata.links.project_id, metadata.points_per_chunk) == (2, SAMPLE, 50)


def test_what_the_dict_of_our_own_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(MetadataError, match="holds 'operator', which means nothing here; it may hold synth_source_id"):
        read_metadata({"atomscale": {"operator": "me"}})
    with pytest.raises(MetadataError, match="holds 'stream_nam', which means nothing here; was 'stream_name' meant"):
        read_metadata({"atomscale": {"stream_nam": "first"}})
    with pytest.raises(MetadataError, match="holds '7', which means nothing here"):
        read_metadata({"atomscale": {7: 42}})


KEPT = {"synth_source_id": 42, "physical_sample": "W9", "tags": ["a"], "stream_name": "first", "points_per_chunk": 50}


@pytest.mark.parametrize(
    ("start", "unusable"),
    [
        ({"synth_source_id": "the big one"}, ["synth_source_id"]),
        ({"synth_source_id": Hostile()}, ["synth_source_id"]),
        ({"project_id": SAMPLE[:-1]}, ["project_id"]),
        ({"atomscale": {"tags": 7, "stream_name": "two\nlines"}}, ["tags", "stream_name"]),
        ({"atomscale": {"physical_sample": "W9", "physical_sample_id": SAMPLE}}, ["physical_sample_id"]),
        ({"atomscale": {"operator": "me", "points_per_chunks": 7}}, ["atomscale", "points_per_chunk"]),
        ({"atomscale": {"stream_nam": "x"}}, ["stream_name"]),
        ({"atomscale": "GEN-II"}, ["atomscale"]),
    ],
)
def test_one_value_that_cannot_be_used_leaves_all_others_as_they_are(
    start: dict[str, Any], unusable: list[str]
) -> None:
    given = {key: value for key, value in KEPT.items() if key not in unusable or "atomscale" in start}

    found = read_what_is_usable(given | start, Links(synth_source_id=7, project_id=SAMPLE, tags=("site",)))

    assert [key for key, _ in found.unusable] == unusable
    # A value that could not be read is not the site's either. Beside a misspelt key, the right one is read.
    misspelt = {"stream_name", "points_per_chunk"} if "tags" not in unusable else set[str]()
    gone = {*unusable} - misspelt
    assert found.links.synth_source_id == (None if "synth_source_id" in gone else 42)
    assert found.links.physical_sample == (None if "physical_sample_id" in gone else "W9")
    assert found.links.project_id == (None if "project_id" in gone else SAMPLE)
    assert found.links.tags == (() if "tags" in gone else ("a",))
    assert found.label == (None if "stream_name" in gone else "first")
    assert found.points_per_chunk == 50


def test_a_wish_to_track_a_sample_is_kept_until_its_project_can_be_read() -> None:
    found = read_what_is_usable({"physical_sample": "W9", "track_sample": True, "project_id": SAMPLE[:-1]}, Links())

    assert [key for key, _ in found.unusable] == ["project_id"]
    assert found.links == Links(physical_sample="W9", track_sample=True)


@pytest.mark.parametrize("value", [42, "42", [("synth_source_id", 42)], Odd()])
def test_what_is_no_dict_under_our_own_name_is_refused(value: Any) -> None:
    with pytest.raises(MetadataError, match=r"metadata 'atomscale' is .*; expected a dict"):
        read_metadata({"atomscale": value})


def test_other_keys_of_a_start_document_are_nobodys_business() -> None:
    start = {"sample": Odd(), "project": object(), "synth_source": [1], "Synth_Source_Id": "x", "atomscale": {}}

    assert read_metadata(start) == read_metadata({})


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_the_template() -> None:
    start = compose_run(metadata={"plan_name": "grow", "scan_id": 17}).start_doc | {"time": 1_760_000_000.0}

    assert run_label(start, "{plan_name} {scan_id:04d} {date}").startswith("grow 0017 2025-10-")


def test_a_key_that_the_start_document_lacks_gives_none_in_its_name() -> None:
    assert run_label({"plan_name": "grow"}, "{plan_name} {scan_id} {date}") == "grow"


@pytest.mark.parametrize(
    ("start", "template", "label"),
    [
        ({}, "{scan_id}", "run"),
        ({"plan_name": "grow"}, "{scan_id:04d}", "grow"),
        ({"plan_name": "grow", "scan_id": Odd()}, "{scan_id}", "grow"),
        ({"plan_name": Odd()}, "{plan_name}", "run"),
        ({"plan_name": "grow", "time": math.nan}, "{plan_name} {date}", "grow"),
        ({"plan_name": "grow", "time": 1e300}, "{date}", "grow"),
        ({"plan_name": "grow", "time": "noon"}, "{plan_name} {date}", "grow"),
        ({"plan_name": "two\nlines\tand \a bell"}, "{plan_name}", "two lines and bell"),
        ({"plan_name": "half \ud800 a character"}, "{plan_name}", "half a character"),
        ({"plan_name": "x" * 5000}, "{plan_name}", "x" * 199 + "…"),
        ({"plan_name": "grow"}, "{plan_name.nothing}", "grow"),
        ({"plan_name": "grow"}, "{plan_name[9]}", "grow"),
        ({"plan_name": "grow"}, "{", "grow"),
    ],
)
def test_a_name_never_fails_and_is_short_and_on_one_line(start: dict[str, Any], template: str, label: str) -> None:
    assert run_label(start, template) == label


TEXTS = st.text(max_size=400)


@given(label=TEXTS, event_stream=st.none() | TEXTS, number=st.integers(1, 1000), run_uid=TEXTS)
def test_a_streams_name_is_short_and_ends_in_its_runs_uid_and_its_token(
    label: str, event_stream: str | None, number: int, run_uid: str
) -> None:
    label = run_label({"plan_name": label}, "{plan_name}")

    name = stream_label(label, event_stream=event_stream, number=number, run_uid=run_uid, token="0a1b2c3d")

    assert len(name) <= MAX_LABEL
    assert name.isprintable()
    assert name.endswith("-0a1b2c3d]")
    assert (f" ({number}) [" in name) == (number > 1) or "(" in f"{label}{event_stream}{run_uid}"


def test_the_streams_of_a_run_are_told_apart() -> None:
    def named(**members: Any) -> str:
        given = {"event_stream": None, "number": 1, "run_uid": "b7c2e9f1-4a55", "token": "0a1b2c3d"}
        return stream_label("grow 17", **(given | members))

    assert named() == "grow 17 [b7c2e9f1-0a1b2c3d]"
    assert named(number=2) == "grow 17 (2) [b7c2e9f1-0a1b2c3d]"
    assert named(event_stream="baseline") == "grow 17 · baseline [b7c2e9f1-0a1b2c3d]"
    assert named(event_stream="b" * 300, number=12).endswith("b… (12) [b7c2e9f1-0a1b2c3d]")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    )
)
def test_metadata_of_any_kind_are_read_or_refused(value: Any) -> None:
    for start in ({"atomscale": value}, {"stream_name": value}, {"synth_source_id": value}, {"project_id": value}):
        try:
            read_metadata(start)
        except MetadataError as error:
            assert "metadata '" in str(error)  # noqa: PT017 - either outcome is right, no other is


def test_a_sample_named_by_its_id_is_that_sample() -> None:
    assert read_metadata({"physical_sample": f" {SAMPLE.upper()}"}).links.physical_sample_id == SAMPLE


def test_two_ids_of_a_sample_have_to_be_equal() -> None:
    other = "7f0e2c1a-93c4-4b7e-8d55-0a1b2c3d4e5f"
    assert read_metadata({"atomscale": {"physical_sample": SAMPLE, "physical_sample_id": SAMPLE.upper()}}).links == (
        read_metadata({"physical_sample_id": SAMPLE}).links
    )
    with pytest.raises(MetadataError, match=f"'{other}' and 'physical_sample_id' is '{SAMPLE}'; name one"):
        read_metadata({"atomscale": {"physical_sample": other, "physical_sample_id": SAMPLE}})

    found = read_metadata({"physical_sample": other, "physical_sample_id": SAMPLE})

    assert (found.links.physical_sample_id, [key for key, _ in found.not_ours]) == (SAMPLE, ["physical_sample"])


def test_two_physical_samples_are_one_too_many() -> None:
    both = {"physical_sample": "GaN-0417", "physical_sample_id": SAMPLE}
    with pytest.raises(MetadataError, match="name one physical sample"):
        validate_metadata({"atomscale": both})

    found = read_metadata(both)

    assert found.links == Links(physical_sample_id=SAMPLE)  # an id cannot be mistaken
    assert [key for key, _ in found.not_ours] == ["physical_sample"]
    named = read_metadata({"wafer": "GaN-0417", "physical_sample_id": SAMPLE}, keys={"physical_sample": "wafer"})
    assert named.links == Links(physical_sample="GaN-0417")


def test_the_sample_of_our_own_dict_wins_over_that_of_the_top_level_however_each_is_named() -> None:
    named, given = {"physical_sample": "GaN-0417"}, {"physical_sample_id": SAMPLE}

    assert read_metadata(given | {"atomscale": named}).links.physical_sample == "GaN-0417"
    assert read_metadata(given | {"atomscale": named}).links.physical_sample_id is None
    assert read_metadata(named | {"atomscale": given}).links.physical_sample is None


def test_to_track_a_sample_takes_a_sample_and_a_project() -> None:
    both = {"physical_sample": "GaN-0417", "project_id": SAMPLE, "track_sample": True}
    assert read_metadata(both, Links()).links.track_sample
    assert read_metadata({"physical_sample": "x", "track_sample": True}, Links(project_id=SAMPLE)).links.track_sample

    no_project, no_sample = both | {"project_id": None}, both | {"physical_sample": None}
    with pytest.raises(MetadataError, match="no project is named"):
        read_metadata({"atomscale": no_project}, Links())
    with pytest.raises(MetadataError, match="no physical sample is named"):
        validate_metadata({"atomscale": no_sample})
    validate_metadata({"atomscale": {"physical_sample": "x", "track_sample": True}})  # the project may be the site's
    for others in (no_project, no_sample):
        found = read_metadata(others, Links())
        assert not found.links.track_sample
        assert [key for key, _ in found.not_ours] == ["track_sample"]


def test_what_a_run_says_of_its_links_wins_over_the_site() -> None:
    site = Links(synth_source_id=7, project_id=SAMPLE, tags=("chamber 3",))

    assert read_metadata({}, site).links == site
    assert read_metadata({"tags": [], "synth_source_id": 0}, site).links == Links(0, None, SAMPLE)


@pytest.mark.parametrize("reason", ["", "heater tripped", "x" * 500, "two\nlines\x1b[31m"])
@pytest.mark.parametrize("name", ["grow", "x" * 300])
def test_a_reason_in_a_label_leaves_what_makes_it_unique_whole(name: str, reason: str) -> None:
    label = stream_label(name, event_stream=None, number=1, run_uid="abbf00f1-22", token="1234abcd")

    told = label_with_reason(label, reason)

    assert told.endswith(" [abbf00f1-1234abcd]")
    assert len(told) <= MAX_LABEL
    assert told.isprintable()


@pytest.mark.parametrize("name", ["tags", "project_id", "synth_source_id", "stream_name"])
def test_metadata_of_any_size_are_refused_in_a_moment(name: str) -> None:
    begin = time.thread_time()
    with pytest.raises(MetadataError) as caught:
        validate_metadata({"atomscale": {name: ["x"] * 10**6}})
    took_s = time.thread_time() - begin

    assert took_s < 0.05
    assert len(str(caught.value)) < 300
    begin = time.thread_time()
    read_metadata({name: ["x"] * 10**6}, keys={"synth_source_id": "atomscale"})
    assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize(
    ("shown", "counted", "as_counted"),
    [
        pytest.param([1] * 399, [1] * 400, "a list of 400", id="list"),
        pytest.param((1,) * 399, (1,) * 400, "a tuple of 400", id="tuple"),
        pytest.param(dict.fromkeys(range(399), 1), dict.fromkeys(range(400), 1), "a dict of 400", id="dict"),
        pytest.param([[1] * 198, [1] * 199], [[1] * 199] * 2, "a list of 2", id="nested"),
        pytest.param("x" * (400 * 64 - 1), "x" * 400 * 64, "a str of 25600", id="text"),
        pytest.param(["x" * 64] * 199, ["x" * 64] * 200, "a list of 200", id="texts"),
        pytest.param(b"x" * (400 * 64 - 1), bytearray(400 * 64), "a bytearray of 25600", id="bytes"),
        pytest.param(np.zeros(399), np.zeros(400), "a ndarray of 400", id="array"),
        pytest.param(np.zeros((19, 20)), np.zeros((20, 19)), "a ndarray of 20", id="array of two dimensions"),
    ],
)
def test_a_value_of_more_than_400_values_is_shown_by_its_type_and_size(
    shown: object, counted: object, as_counted: str
) -> None:
    begin = " ".join(repr(shown).split())[:40]
    with pytest.raises(MetadataError, match=re.escape(f"metadata 'synth_source_id' is {begin}")):
        read_metadata({"synth_source_id": shown})
    with pytest.raises(MetadataError, match=f"metadata 'synth_source_id' is {as_counted}; expected a whole number"):
        read_metadata({"synth_source_id": counted})
