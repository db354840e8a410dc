"""Every strict rule: insisted on, and waived when relaxed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from atomscale_bluesky.errors import SettingsError
from atomscale_bluesky.server import LocalServer, Rule

T0 = 1_760_000_000.0
NOBODY = str(uuid4())


def _finalized(api: Any, *chunks: tuple[int, str, int]) -> Any:
    data_id = api.initialize()
    for index, channel, count in chunks:
        assert api.chunk(data_id, index, channel, count=count).status_code == 200
    return api.finalize(data_id)


def _again(api: Any, first: dict[str, Any], second: dict[str, Any]) -> Any:
    data_id = api.initialize()
    assert api.chunk(data_id, 0, **first).status_code == 200
    return api.chunk(data_id, 0, **second)


def _two_time_bases(api: Any) -> Any:
    data_id = api.initialize()
    api.chunk(data_id, 0, "a")
    return api.chunk(data_id, 0, "b", timestamps=[T0 + 0.5, T0 + 1, T0 + 2, T0 + 3])


def _other_family(api: Any) -> Any:
    data_id = api.initialize()
    api.family = "tool-state"
    return api.chunk(data_id, 0)


def _after_finalize(api: Any) -> Any:
    data_id = api.initialize()
    api.finalize(data_id)
    return api.chunk(data_id, 0)


def _second_finalize(api: Any) -> Any:
    data_id = api.initialize()
    api.finalize(data_id)
    return api.finalize(data_id)


def _tool_state_sample(api: Any) -> Any:
    sample = api.ask("POST", "/physical_samples/", {"name": "GaAs"}).json()["id"]
    api.family = "tool-state"
    return api.try_initialize(physical_sample_id=sample)


def _not_declared(api: Any) -> Any:
    return api.session.post(
        f"{api.server.url}/metrology/stream/initialize",
        data=b'{"points_per_chunk": 4}',
        headers={"Content-Type": "text/plain"},
    )


# One request sequence per rule, ending with the answer that the rule is about.
BREACHES: dict[Rule, Callable[[Any], Any]] = {
    Rule.OVER_LENGTH: lambda api: api.chunk(api.initialize(), 0, count=5),
    Rule.SHORT_CHUNK: lambda api: _finalized(api, (0, "T", 3), (1, "T", 4)),
    Rule.HOLE: lambda api: _finalized(api, (0, "T", 4), (2, "T", 4)),
    Rule.LATE_CHANNEL: lambda api: _finalized(api, (0, "T", 4), (1, "T", 4), (1, "late", 4)),
    Rule.CHANGED_CHUNK: lambda api: _again(api, {}, {"offset": 1.0}),
    Rule.GROWN_CHUNK: lambda api: _again(api, {"count": 2}, {"count": 3}),
    Rule.TIME_BASE: _two_time_bases,
    Rule.NON_FINITE: lambda api: api.chunk(api.initialize(), 0, values=[1, None, 3, 4]),
    Rule.EMPTY_CHUNK: lambda api: api.chunk(api.initialize(), 0, count=0),
    Rule.UNEQUAL_LENGTHS: lambda api: api.chunk(api.initialize(), 0, values=[1, 2, 3]),
    Rule.CHANNEL_NAME: lambda api: api.chunk(api.initialize(), 0, "n" * 256),
    Rule.CHANGED_UNITS: lambda api: _again(api, {}, {"units": "degC"}),
    Rule.TEXT_LENGTH: lambda api: api.try_initialize(stream_name="n" * 256),
    Rule.UNKNOWN_MEMBER: lambda api: api.try_initialize(start_time=T0),
    Rule.CONTENT_TYPE: _not_declared,
    Rule.UNKNOWN_INSTRUMENT: lambda api: api.try_initialize(synth_source_id=999),
    Rule.UNKNOWN_SAMPLE: lambda api: api.try_initialize(physical_sample_id=NOBODY),
    Rule.UNKNOWN_PROJECT: lambda api: api.try_initialize(project_id=NOBODY),
    Rule.TOOL_STATE_SAMPLE: _tool_state_sample,
    Rule.FAMILY: _other_family,
    Rule.AFTER_FINALIZE: _after_finalize,
    Rule.SECOND_FINALIZE: _second_finalize,
}


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.value)
def test_a_breach_of_the_rule_is_refused_by_its_name(server, make_api, rule):
    answer = BREACHES[rule](make_api(server))

    assert answer.status_code == rule.status
    assert answer.json()["detail"].endswith(f"[{rule.value}]")


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.value)
def test_a_breach_of_a_relaxed_rule_is_taken(make_server, make_api, rule):
    answer = BREACHES[rule](make_api(make_server(relax={rule.value})))

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.value)
def test_every_rule_says_in_one_line_what_it_demands(rule):
    assert rule.doc.endswith((".", ")."))
    assert "\n" not in rule.doc


@pytest.mark.parametrize(
    "breach",
    [
        lambda api: api.chunk(api.initialize(), 0, ""),
        lambda api: api.chunk(api.initialize(), 0, "ü" * 128),
    ],
    ids=["empty", "256 bytes in 128 characters"],
)
def test_a_channel_name_is_measured_in_characters_and_in_bytes(api, breach):
    assert breach(api).json()["detail"].endswith("[channel_name]")


def test_a_channel_name_of_255_characters_is_taken(api):
    assert api.chunk(api.initialize(), 0, "n" * 255).status_code == 200


def test_the_words_NaN_and_Infinity_are_refused_as_not_finite(make_server, make_api):  # noqa: N802
    body = b'{"data_id": "%s", "chunk_index": 0, "channel_name": "T", "timestamps": [1, 2], "values": [NaN, -Infinity]}'
    for relax, status in ((), 422), (("non_finite",), 200):
        server = make_server(relax=relax)
        api = make_api(server)
        data_id = api.initialize()
        answer = api.session.post(
            f"{server.url}/metrology/stream/chunk",
            data=body % data_id.encode(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == status, answer.text
    assert server.points(data_id)["T"].values == [None, None]


def test_a_null_that_was_taken_reads_back_as_null(make_server, make_api):
    api = make_api(make_server(relax={"non_finite"}))
    data_id = api.initialize()
    api.chunk(data_id, 0, values=[1, None, 3, 4])
    assert api.read(data_id).json()["properties"]["T"]["values"] == [1, None, 3, 4]


def test_the_largest_numbers_are_not_taken_for_infinite(server, api):
    data_id = api.initialize()
    huge = [1.7e308, 1.7e308, -1.7e308, math.pi]
    assert api.chunk(data_id, 0, values=huge).status_code == 200
    assert server.points(data_id)["T"].values == huge


def test_a_refused_change_is_counted_and_changes_nothing(server, api):
    data_id = api.initialize()
    api.chunk(data_id, 0)
    api.chunk(data_id, 0, offset=1.0)

    assert server.streams()[0].changed == 1
    assert server.points(data_id)["T"].values == [0, 1, 2, 3]


def test_a_relaxed_change_replaces_and_does_not_append(make_server, make_api):
    server = make_server(relax={"changed_chunk"})
    api = make_api(server)
    data_id = api.initialize()
    api.chunk(data_id, 0)
    assert api.chunk(data_id, 0, offset=1.0).json()["total_points"] == 4
    assert server.points(data_id)["T"].values == [1, 2, 3, 4]


def test_a_relaxed_chunk_may_grow_one_channel_after_the_other(make_server, make_api):
    server = make_server(relax={"grown_chunk"})
    api = make_api(server)
    data_id = api.initialize()
    for count in (2, 4):
        for channel in ("a", "b"):
            assert api.chunk(data_id, 0, channel, count=count).json()["total_points"] == count
    assert api.finalize(data_id).status_code == 200


def test_a_chunk_with_fewer_points_than_before_is_a_changed_one(api):
    data_id = api.initialize()
    api.chunk(data_id, 0)
    assert api.chunk(data_id, 0, count=3).json()["detail"].endswith("[changed_chunk]")


def test_two_time_bases_in_one_multi_are_refused(api):
    data_id = api.initialize()
    channels = {"a": {"timestamps": [T0], "values": [1]}, "b": {"timestamps": [T0 + 1], "values": [1]}}
    assert api.multi(data_id, 0, channels).json()["detail"].endswith("[time_base]")


def test_a_multi_without_channels_is_empty(api):
    assert api.multi(api.initialize(), 0, {}).json()["detail"].endswith("[empty_chunk]")


def test_an_unknown_member_of_a_channel_is_named(api):
    channels = {"a": {"timestamps": [T0], "values": [1], "unit": "K"}}
    assert "'unit' in channel 'a'" in api.multi(api.initialize(), 0, channels).json()["detail"]


def test_a_stream_is_not_finalized_or_read_under_the_other_family(server, make_api):
    data_id = make_api(server, "tool-state").initialize()
    other = make_api(server, "metrology")
    assert other.finalize(data_id).status_code == 404
    assert other.read(data_id).status_code == 404


def test_an_unknown_rule_is_an_error_that_lists_the_known_ones():
    with pytest.raises(SettingsError, match="'non_finit', which is unknown; known are after_finalize, "):
        LocalServer(relax={"non_finit"})


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"chunk_index": -1}, "$.chunk_index"),
        ({"chunk_index": True}, "$.chunk_index"),
        ({"chunk_index": 0.5}, "$.chunk_index"),
        ({"values": [1, 2, "3", 4]}, "$.values[2]"),
        ({"values": [True, 2, 3, 4]}, "$.values[0]"),
        ({"timestamps": None}, "$.timestamps"),
        ({"units": 3}, "$.units"),
    ],
    ids=str,
)
def test_a_member_of_the_wrong_type_is_named(api, members, told):
    answer = api.chunk(api.initialize(), 0, **members)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


@pytest.mark.parametrize("members", [{"points_per_chunk": 0}, {"points_per_chunk": "4"}, {"project_id": "x"}], ids=str)
def test_initialize_with_a_member_of_the_wrong_type_is_refused(api, members):
    assert api.try_initialize(**members).status_code == 422


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"points_per_chunk": 4}}', b"\xff", b"null"])
def test_a_body_that_is_no_JSON_object_is_refused(api, body):  # noqa: N802
    answer = api.session.post(
        f"{api.server.url}/metrology/stream/initialize", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


def test_a_member_that_is_missing_is_named(api):
    assert "`data_id`" in api.ask("POST", "/metrology/stream/chunk", {"chunk_index": 0}).json()["detail"]


def test_an_unknown_stream_is_not_found(api):
    for answer in api.chunk(NOBODY, 0), api.finalize(NOBODY), api.read(NOBODY):
        assert answer.status_code == 404
        assert NOBODY in answer.json()["detail"]


def test_a_body_above_the_limit_is_refused_and_one_at_the_limit_is_taken(make_server, make_api):
    server = make_server(max_body_bytes=400)
    api = make_api(server)
    data_id = api.initialize()
    assert api.chunk(data_id, 0, "x" * 500).status_code == 413
    body = b'{"points_per_chunk": 4}'.ljust(400)
    for size, status in (400, 200), (401, 413):
        answer = api.session.post(
            f"{server.url}/metrology/stream/initialize",
            data=body.ljust(size),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == status


def test_a_compressed_body_is_refused(api):
    answer = api.ask(
        "POST", "/metrology/stream/initialize", {"points_per_chunk": 4}, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("headers", [{"X-API-KEY": None}, {"X-API-KEY": ""}, {"X-API-KEY": "local-keY"}], ids=str)
def test_without_the_right_key_there_is_only_401(api, headers):
    for path in ("/metrology/stream/initialize", "/tags/", "/metrology/stream/chunk"):
        answer = api.ask("POST", path, {}, headers=headers)
        assert answer.status_code == 401
        assert api.server.api_key not in answer.text


def test_the_key_is_an_option(make_server, make_api):
    server = make_server(api_key="other")
    assert make_api(server).entries().status_code == 200


def test_a_body_nested_too_deep_is_refused(api):
    body = b'{"points_per_chunk": 4, "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = api.session.post(
        f"{api.server.url}/metrology/stream/initialize", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


def test_a_time_beyond_all_milliseconds_reads_back_as_null(api):
    data_id = api.initialize()
    assert api.chunk(data_id, 0, timestamps=[T0, 1e300, -1e308, 1.7e308]).status_code == 200
    answer = api.read(data_id)
    assert answer.json()["properties"]["T"]["unix_timestamp_ms"] == [T0 * 1000, None, None, None]
