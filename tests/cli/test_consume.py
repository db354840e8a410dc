"""The files that `consume` is given: one that cannot be used is named in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from integration.needs import need_module

Say = Callable[..., tuple[int, str, str]]

SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
ZMQ = ("zmq", "--address", "tcp://127.0.0.1:1", "--curve-server", "FILE", "--curve-secret", "FILE")
NATS = ("nats", "--server", "nats://127.0.0.1:1", "--stream", "s", "--durable", "d")
KAFKA = ("kafka", "--bootstrap", "127.0.0.1:1", "--topic", "t", "--group", "g", "--config", "FILE")


@pytest.mark.parametrize(
    ("command", "content", "complaint"),
    [
        (ZMQ, b"nonsense\n", "holds no CURVE key"),
        (ZMQ, b"\xff\xfe\n", "holds no CURVE key"),
        (ZMQ, b"curve\n", "holds no CURVE key"),
        (ZMQ, b'curve\n    public-key = "short"\n', "holds no CURVE key"),
        (ZMQ, b'curve\n    public-key = "%b"\n' % (b"~" * 40), "holds no CURVE key"),
        (ZMQ, b'curve\n    public-key = "%b"\n    secret-key = "%b~"' % ((SECRET.encode(),) * 2), "holds no CURVE key"),
        (ZMQ, b'curve\n    public-key = "%b"\n' % SECRET.encode(), "has no secret key"),
        ((*NATS, "--ca", "FILE"), b"nonsense\n", "holds no certificate authorities"),
        ((*NATS, "--creds", "FILE"), b"nonsense\n", "holds no NATS credentials"),
        (KAFKA, b"sasl.password=p\xe4ss\n", "is no text in UTF-8"),
        (KAFKA, b"security.protocol\n", "is no setting"),
    ],
)
def test_a_file_that_a_bus_cannot_use_is_named_in_one_line(
    say: Say, tmp_path: Path, command: tuple[str, ...], content: bytes, complaint: str
) -> None:
    need_module({"kafka": "confluent_kafka"}.get(command[0], command[0]), command[0])
    file = tmp_path / "file"
    file.write_bytes(content)
    code, said, complained = say("consume", *(str(file) if word == "FILE" else word for word in command))

    assert (code, said) == (2, "")
    assert complained.count("\n") == 1
    assert f"{str(file)!r} {complaint}" in complained
    assert SECRET not in complained
