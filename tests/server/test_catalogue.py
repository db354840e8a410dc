"""What surrounds the streams: catalogue, instruments, physical samples, projects, tags, clock."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

NOBODY = str(uuid4())


@pytest.fixture
def sample(api):
    return api.ask("POST", "/physical_samples/", {"name": "GaAs 1"}).json()["id"]


@pytest.fixture
def project(api):
    return api.ask("GET", "/projects/").json()[0]["id"]


def _ids(answer):
    assert answer.status_code == 200, answer.text
    return [entry["data_id"] for entry in answer.json()]


def test_the_catalogue_is_searched_by_each_filter(api, sample, project):
    first = api.initialize(stream_name="Growth A a1b2c3", physical_sample_id=sample)
    second = api.initialize(stream_name="growth b", project_id=project, synth_source_id=42)
    api.finalize(second)

    assert _ids(api.entries()) == [first, second]
    assert _ids(api.entries(keywords="A1B2")) == [first]
    assert _ids(api.entries(keywords=["growth", "mbe 42"])) == [second]
    assert _ids(api.entries(keywords="nothing")) == []
    assert _ids(api.entries(status="stream_active")) == [first]
    assert _ids(api.entries(status="success")) == [second]
    assert _ids(api.entries(data_ids=[second, NOBODY])) == [second]
    assert _ids(api.entries(physical_sample_ids=sample)) == [first]
    assert _ids(api.entries(project_ids=[project])) == [second]
    assert _ids(api.entries(data_type="tool_state")) == [first, second]
    assert _ids(api.entries(data_type="rheed")) == []
    assert _ids(api.entries(upload_datetime_max="2020-01-01T00:00:00")) == []
    assert _ids(api.entries(last_updated_min="2020-01-01T00:00:00Z")) == [first, second]


def test_an_entry_has_what_the_stream_was_initialized_with(api, sample, project):
    data_id = api.initialize(stream_name="growth", physical_sample_id=sample, project_id=project, synth_source_id=42)
    [entry] = api.entries(data_ids=data_id).json()
    assert entry["raw_name"] == "growth"
    assert entry["char_source_type"] == "tool_state"
    assert entry["source_name"] == "MBE 42"
    assert entry["physical_sample_name"] == "GaAs 1"
    assert entry["projects"] == [{"id": project, "name": "Local project"}]


def test_the_catalogue_refuses_words_it_does_not_know(api):
    assert api.entries(data_type="metrology").status_code == 422
    assert api.entries(status="done").status_code == 422
    assert api.entries(upload_datetime_min="yesterday").status_code == 422


def test_a_server_without_tool_state_calls_the_type_metrology(make_server, make_api):
    api = make_api(make_server(families=["metrology"]))
    data_id = api.initialize()
    assert _ids(api.entries(data_type="metrology")) == [data_id]
    assert api.entries().json()[0]["char_source_type"] == "metrology"
    assert api.entries(data_type="tool_state").status_code == 422


def test_there_is_an_instrument_42_and_more_can_be_created_and_deleted(api):
    assert [one["synth_source_id"] for one in api.ask("GET", "/instruments/synthesis").json()] == [7, 42]
    body = {"label": "East", "name": "Neocera", "type": "pld", "serial_id": None}
    created = api.ask("POST", "/instruments/synthesis", body).json()["synth_source_id"]
    api.initialize(synth_source_id=created)
    path = f"/instruments/synthesis?synthesis_instrument_ids={created}"
    assert api.ask("DELETE", path).status_code == 200
    assert api.try_initialize(synth_source_id=created).status_code == 404
    assert api.ask("DELETE", path).status_code == 404


@pytest.mark.parametrize("identity", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**200])
def test_an_instrument_with_a_number_of_any_size_is_sought(api, identity):
    answer = api.ask("DELETE", f"/instruments/synthesis?synthesis_instrument_ids={identity}")
    assert (answer.status_code, answer.json()) == (404, {"detail": f"there is no growth instrument {identity}"})


def test_an_instrument_of_an_unknown_type_is_refused(api):
    assert api.ask("POST", "/instruments/synthesis", {"label": "a", "name": "b", "type": "oven"}).status_code == 422


def test_a_sample_name_that_is_taken_is_answered_with_409_and_its_id(api, sample):
    answer = api.ask("POST", "/physical_samples/", {"name": "  gaas 1 "})
    assert answer.status_code == 409
    assert answer.json()["detail"]["physical_sample_id"] == sample


def test_a_blank_sample_name_is_refused(api):
    assert api.ask("POST", "/physical_samples/", {"name": "  "}).status_code == 422


def test_samples_are_listed_with_their_number_of_data_items(api, sample):
    other = api.ask("POST", "/physical_samples/", {"name": "InP", "growth_instrument_id": 42}).json()
    assert other["growth_instrument"] == "MBE 42"
    api.initialize(physical_sample_id=sample)
    listed = api.ask("GET", "/physical_samples/").json()
    assert [(one["name"], one["num_data_items"]) for one in listed] == [("GaAs 1", 1), ("InP", 0)]
    assert [one["name"] for one in api.ask("GET", "/physical_samples/?has_data_item=false").json()] == ["InP"]
    assert [one["name"] for one in api.ask("GET", f"/physical_samples/?physical_sample_id={sample}").json()] == [
        "GaAs 1"
    ]


def test_linking_a_sample_twice_is_harmless_and_the_last_sample_counts(api, sample):
    data_id = api.initialize()
    for _ in range(2):
        answer = api.ask("POST", "/data_entries/physical_sample", {"data_ids": [data_id], "physical_sample_id": sample})
        assert (answer.status_code, answer.json()) == (200, "OK")
    assert _ids(api.entries(physical_sample_ids=sample)) == [data_id]
    other = api.ask("POST", "/physical_samples/", {"name": "InP"}).json()["id"]
    api.ask("POST", "/data_entries/physical_sample", {"data_ids": [data_id], "physical_sample_id": other})
    assert _ids(api.entries(physical_sample_ids=sample)) == []


def test_linking_what_does_not_exist_is_not_found(api, sample):
    for data_id, sample_id in ((NOBODY, sample), (api.initialize(), NOBODY)):
        body = {"data_ids": [data_id], "physical_sample_id": sample_id}
        assert api.ask("POST", "/data_entries/physical_sample", body).status_code == 404


def test_a_project_tracks_samples_and_has_one_that_is_active(server, api, sample, project):
    path = f"/projects/{project}/configuration/tracking_samples"
    assert api.ask("POST", path, {"physical_sample_id": sample, "set_active": False}).status_code == 200
    configuration = api.ask("GET", "/projects/").json()[0]["configuration"]
    assert configuration == {"tracking_physical_sample_id": None, "tracking_physical_sample_ids": [sample]}
    assert api.ask("POST", path, {"physical_sample_id": sample, "set_active": True}).status_code == 200
    configuration = api.ask("GET", "/projects/").json()[0]["configuration"]
    assert configuration["tracking_physical_sample_id"] == sample
    assert [one["id"] for one in api.ask("GET", f"/projects/{project}/physical_samples").json()] == [sample]
    assert api.ask("GET", f"/projects/{NOBODY}/physical_samples").status_code == 404


def test_a_project_can_be_added_over_the_control(server, api):
    identity = server.add_project("Nitrides")
    assert {one["name"] for one in api.ask("GET", "/projects/").json()} == {"Local project", "Nitrides"}
    api.initialize(project_id=identity)


def test_a_tag_is_created_once_and_attached_twice_without_harm(server, api):
    data_id = api.initialize()
    tag = api.ask("POST", "/tags/", {"name": "anneal"}).json()["id"]
    assert api.ask("POST", "/tags/", {"name": " Anneal"}).status_code == 400
    assert api.ask("GET", "/tags/").json() == [{"id": tag, "name": "anneal"}]
    created = [
        api.ask("POST", "/tags/data-items/", {"data_ids": [data_id], "tag_ids": [tag]}).json()["associations_created"]
        for _ in range(2)
    ]
    assert created == [1, 0]
    assert api.entries().json()[0]["tags"] == ["anneal"]
    assert server.streams()[0].tags == ("anneal",)
    assert api.ask("POST", "/tags/data-items/", {"data_ids": [data_id], "tag_ids": [NOBODY]}).status_code == 404


def test_the_clock_needs_no_key_and_speaks_milliseconds(api):
    before = time.time() * 1000
    answer = api.ask("GET", "/gateway/time", headers={"X-API-KEY": None}).json()
    assert before <= answer["receivedAtUnixMs"] <= answer["transmittedAtUnixMs"] <= time.time() * 1000
