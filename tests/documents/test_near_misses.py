"""Metadata keys that are nearly one of ours are mentioned once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from runs import growth

from atomscale_bluesky import AtomscaleCallback, MetadataError, validate_metadata

MakeCallback = Callable[..., AtomscaleCallback]
PROJECT = "0f14d0ab-9605-4a62-a9e4-5ed26688389b"


def mentioned(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [record.getMessage() for record in caplog.records if "was" in record.message and "meant?" in record.message]
    return [(text.split("'")[1], text.split("'")[3]) for text in found]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"synth_source": 7}, [("synth_source", "synth_source_id")]),
        ({"synthSourceId": 7}, [("synthSourceId", "synth_source_id")]),
        ({"synth-source-id": "7"}, [("synth-source-id", "synth_source_id")]),
        ({"physical_samples": "GaN-1"}, [("physical_samples", "physical_sample")]),
        ({"projectid": PROJECT}, [("projectid", "project_id")]),
        ({"point_per_chunk": 50}, [("point_per_chunk", "points_per_chunk")]),
        # What another program means.
        ({"synth_source": "the big one"}, []),
        ({"project": "perovskites"}, []),
        ({"proposal_id": "GUP-1"}, []),
        ({"tag": "x", "stream": "z", "points": 4}, []),
        ({"sample": {"name": "W12", "diameter": 50}}, []),
        # Another word for ours.
        ({"sample": "W12"}, [("sample", "physical_sample")]),
        ({"sample": 12}, [("sample", "physical_sample")]),
        # Ours is there too.
        ({"sample": "W12", "physical_sample_id": PROJECT}, []),
        ({"sample": "W12", "atomscale": {"physical_sample": "W12"}}, []),
        ({"synth_source": 42, "synth_source_id": 42}, []),
        ({"synth_source": "42", "atomscale": {"synth_source_id": 42}}, []),
        ({"physical_samples": "W12", "physical_sample": "W12"}, []),
        # Ours is there too, with another value, as in the RunEngine's own metadata.
        ({"synth_source": 7, "synth_source_id": 42}, [("synth_source", "synth_source_id")]),
        ({"synth_source": 7, "atomscale": {"synth_source_id": 42}}, [("synth_source", "synth_source_id")]),
    ],
)
def test_a_key_that_is_nearly_ours_is_mentioned(
    make_callback: MakeCallback,
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, Any],
    expected: list[tuple[str, str]],
) -> None:
    callback = make_callback(offline=True)
    with caplog.at_level(logging.WARNING, logger="atomscale_bluesky"):
        for name, doc in growth(2):
            if name == "start":
                doc = {key: value for key, value in doc.items() if key != "synth_source_id"} | metadata
            callback(name, doc)

    assert mentioned(caplog) == expected
    assert callback.status()[0].points.seen == 4


def test_it_is_mentioned_once_for_many_runs(make_callback: MakeCallback, caplog: pytest.LogCaptureFixture) -> None:
    callback = make_callback(offline=True)
    for _ in range(3):
        for name, doc in growth(2, start_metadata={"point_per_chunk": 50}):
            callback(name, doc)

    assert mentioned(caplog) == [("point_per_chunk", "points_per_chunk")]


def test_a_key_that_the_setting_names_is_no_near_miss(
    make_callback: MakeCallback, caplog: pytest.LogCaptureFixture
) -> None:
    callback = make_callback(offline=True, metadata_keys={"synth_source_id": "synth_source"})
    for name, doc in growth(2, start_metadata={"synth_source": 7}):
        callback(name, doc)

    assert mentioned(caplog) == []


def test_the_error_about_a_missing_instrument_names_the_key_that_was_perhaps_meant() -> None:
    with pytest.raises(MetadataError, match="'synth_source_id' is missing, and 'synth_sourceid' means nothing here"):
        validate_metadata({"synth_sourceid": 42}, require_synth_source_id=True)
    with pytest.raises(MetadataError, match="'synth_source_id' is missing; name the growth instrument"):
        validate_metadata({"synth": "the big one"}, require_synth_source_id=True)
