"""The ids that a run's metadata name are found by a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atomscale_bluesky import Settings
from atomscale_bluesky.__main__ import main
from atomscale_bluesky.api.client import Client
from atomscale_bluesky.server import Fault, LocalServer

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: LocalServer) -> Say:
    monkeypatch.setenv("ATOMSCALE_API_ENDPOINT", server.url)
    monkeypatch.setenv("ATOMSCALE_API_KEY", server.api_key)

    def run(*arguments: str) -> tuple[int, str, str]:
        return main(list(arguments)), *capsys.readouterr()

    return run


def sample_of(server: LocalServer, name: str) -> str:
    client = Client(Settings.load(environ={}, endpoint=server.url, api_key=server.api_key))
    try:
        return client.create_sample(name)
    finally:
        client.close()


def test_instruments_samples_and_projects_are_listed_with_their_ids(say: Say, server: LocalServer) -> None:
    sample = sample_of(server, "GaN-0417")
    project = server.add_project("Nitrides")

    code, said, _ = say("instruments")
    assert (code, [line.split(None, 1)[0] for line in said.splitlines()]) == (0, ["synth_source_id", "7", "42"])
    assert f"{sample}  GaN-0417" in say("samples")[1]
    assert f"{project}  Nitrides" in say("projects")[1]


def test_a_list_shows_those_whose_name_or_id_has_a_text_whatever_its_case(say: Say, server: LocalServer) -> None:
    sample_of(server, "GaN-0417")
    wanted = sample_of(server, "AlN-0001")

    assert json.loads(say("samples", "aln", "--json")[1]) == [{"physical_sample_id": wanted, "name": "AlN-0001"}]
    assert json.loads(say("samples", wanted[:8], "--json")[1])[0]["physical_sample_id"] == wanted
    assert json.loads(say("instruments", "42", "--json")[1]) == [{"synth_source_id": 42, "name": "MBE 42"}]
    assert say("projects", "nothing like it")[:2] == (0, "There are none with 'nothing like it'.\n")


def test_a_name_from_outside_reaches_no_terminal_as_it_is(say: Say, server: LocalServer) -> None:
    sample_of(server, "\x1b[31mred [bold]loud[/bold]")

    said = say("samples")[1]
    assert "\x1b" not in said
    assert "\\x1b[31mred [bold]loud[/bold]" in said


def test_a_list_that_cannot_be_had_says_why(say: Say, server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.misbehave(Fault(call="projects", status=503))
    code, _, complaint = say("projects")
    assert (code, f"atomscale-bluesky: Atomscale at {server.url}: GET projects/" in complaint) == (1, True)
    assert "was answered 503" in complaint
    assert "`atomscale-bluesky doctor` checks the way there" in complaint
    monkeypatch.setenv("ATOMSCALE_API_KEY", "another")
    code, _, complaint = say("instruments")
    assert (code, "check the key in ATOMSCALE_API_KEY" in complaint) == (1, True)
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    assert "there is no API key" in say("samples")[2]


def test_a_key_that_is_refused_is_named_with_its_place(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('api_key = "revoked"\n')
    file.chmod(0o600)
    monkeypatch.setenv("ATOMSCALE_BLUESKY_SETTINGS", str(file))
    monkeypatch.delenv("ATOMSCALE_API_KEY")
    assert say("instruments")[2].endswith(f"; check the key in file {file}\n")
    monkeypatch.setenv("AS_API_KEY", "revoked too")
    assert say("instruments")[2].endswith("; check the key in AS_API_KEY\n")
