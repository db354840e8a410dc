"""`atomscale-bluesky consume`: documents from a message bus, into the spool and to Atomscale, as a service."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .delivering import logged_as_a_service
from .ending import Ending
from .options import Once

if TYPE_CHECKING:
    import threading

    from ..delivery.deliverer import Deliverer
    from ..settings import Settings
    from ..sources.incoming import Source
    from ..sources.intake import Intake
    from ..spool.locks import RunLock
    from ..spool.spool import Spool

# What a file with NATS credentials has.
_NATS_CREDENTIALS = (b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED")
# The length of a CURVE key.
_CURVE_BYTES = 32
# How often a process that waits for its turn tries to take it.
TURN_S = 0.2

_logger = logging.getLogger("atomscale_bluesky.consume")


def _with_spool(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every bus has."""
    endpoint = click.option("--endpoint", cls=Once, metavar="URL", help="Send to the API there.")
    spool = click.option(
        "--spool-dir",
        cls=Once,
        type=click.Path(file_okay=False, path_type=Path),
        help="Go through this spool, on a local disk.",
    )
    return spool(endpoint(command))


@click.group
def consume() -> None:
    """Take documents from a message bus until told to end.

    Puts them into the spool. The setting `uploader` says how they are delivered: by this process, by a separate one, or
    not by this command, if `atomscale-bluesky upload --follow` serves the spool. NATS and Kafka get an acknowledgement
    once a document is safe on disk, even from a power cut. The command reports on standard error what it does.

    SIGTERM or Ctrl-C ends it, once the documents that it has received are in the spool. The exit code is then 0, and 1
    after a failure.
    """


@consume.command("zmq")
@click.option("--address", required=True, metavar="ADDRESS", help="Where the proxy sends: tcp://localhost:5568")
@click.option("--prefix", default="", metavar="TEXT", help="Take only messages with this prefix.")
@click.option(
    "--trust-pickle",
    is_flag=True,
    help="Read pickled documents. Everybody who can send to the proxy can then run code here.",
)
@click.option(
    "--curve-secret", type=click.Path(exists=True, dir_okay=False), help="With CURVE: the file with our secret key."
)
@click.option(
    "--curve-server", type=click.Path(exists=True, dir_okay=False), help="With CURVE: the proxy's public key."
)
@_with_spool
def zmq_(
    address: str,
    prefix: str,
    trust_pickle: bool,
    curve_secret: str | None,
    curve_server: str | None,
    spool_dir: Path | None,
    endpoint: str | None,
) -> int:
    """Take documents from a 0MQ proxy; best effort.

    0MQ keeps nothing: what is sent while no process listens is gone. A run whose start document was missed is left out
    and reported by its uid. At a run's end the command reports how many events never came.

    Bluesky's Publisher pickles by default, and reading a pickle can run any code. Let it send JSON or MessagePack, as
    in `Publisher(address, serializer=msgpack_numpy.dumps)`, or give --trust-pickle.
    """
    import zmq

    from ..errors import SettingsError
    from ..sources.zmq import ZmqDocuments

    if (curve_secret is None) != (curve_server is None):
        raise SettingsError("CURVE needs two files: give both --curve-secret and --curve-server")
    ours = None if curve_secret is None else _curve_keys(curve_secret)
    theirs = None if curve_server is None else _curve_keys(curve_server)
    if ours is not None and ours[1] is None:
        raise SettingsError(f"{curve_secret!r} has no secret key")

    def configure(socket: zmq.Socket[bytes]) -> None:
        if ours is not None and theirs is not None:
            socket.curve_publickey, socket.curve_secretkey = ours
            socket.curve_serverkey = theirs[0]

    def source(ending: threading.Event) -> Source:
        return ZmqDocuments(address, prefix=prefix, trust_pickle=trust_pickle, ending=ending, configure=configure)

    try:
        return _consume(source, spool_dir=spool_dir, endpoint=endpoint)
    except zmq.ZMQError as error:
        raise SettingsError(f"--address is {address!r}: {error}; expected such as tcp://localhost:5568") from error


def _curve_keys(path: str) -> tuple[bytes, bytes | None]:
    """Return the public key in a file, and its secret key if it has one.

    Raises:
        SettingsError: It holds no such key.
    """
    from zmq.auth import load_certificate
    from zmq.utils import z85

    from ..errors import SettingsError

    try:
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and len(z85.decode(key)) != _CURVE_BYTES:
                raise ValueError
    except (ValueError, KeyError):  # not shown, because it may show a part of a key
        raise SettingsError(
            f"{path!r} holds no CURVE key; expected a file as zmq.auth.create_certificates writes it"
        ) from None
    return public, secret


@consume.command("nats")
@click.option("--server", "servers", required=True, multiple=True, metavar="URL", help="Such as nats://bus:4222.")
@click.option("--stream", required=True, metavar="NAME", help="The JetStream stream that has the documents.")
@click.option("--durable", required=True, metavar="NAME", help="The consumer's name. It is made if there is none.")
@click.option("--subject", default=">", show_default=True, help="Subjects of the consumer, if it has to be made.")
@click.option("--creds", type=click.Path(exists=True, dir_okay=False), help="A file with NATS credentials.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="With TLS: certificate authorities to trust.")
@_with_spool
def nats_(
    servers: tuple[str, ...],
    stream: str,
    durable: str,
    subject: str,
    creds: str | None,
    ca: str | None,
    spool_dir: Path | None,
    endpoint: str | None,
) -> int:
    """Take documents from a NATS JetStream stream.

    The name of a document is the last part of its subject, as bluesky-nats publishes it; its body is JSON or
    MessagePack. A message is acknowledged once it is safe on disk, even from a power cut.

    If several of these commands run with the same durable and the same spool, only one takes documents. When it ends or
    dies, another one goes on.
    """
    import ssl

    from ..errors import SettingsError
    from ..sources.nats import NatsDocuments

    options: dict[str, Any] = {}
    if creds is not None:
        if not all(part in Path(creds).read_bytes() for part in _NATS_CREDENTIALS):  # the client would read it for ever
            raise SettingsError(f"{creds!r} holds no NATS credentials; expected a file as nsc writes it")
        options["user_credentials"] = creds
    if ca is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=ca)
        except ssl.SSLError as error:
            raise SettingsError(f"{ca!r} holds no certificate authorities: {error}") from error

    def source(ending: threading.Event) -> Source:
        return NatsDocuments(servers, stream=stream, durable=durable, subject=subject, ending=ending, **options)

    return _consume(source, turn=f"nats {stream} {durable}", spool_dir=spool_dir, endpoint=endpoint)


@consume.command("kafka")
@click.option("--bootstrap", required=True, metavar="BROKERS", help="Such as broker:9092, separated by commas.")
@click.option("--topic", "topics", required=True, multiple=True, help="A topic, or a pattern that begins with ^.")
@click.option("--group", required=True, metavar="NAME", help="The consumer group.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with further settings of librdkafka, one a line, such as security.protocol=SASL_SSL.",
)
@_with_spool
def kafka_(
    bootstrap: str,
    topics: tuple[str, ...],
    group: str,
    config_file: Path | None,
    spool_dir: Path | None,
    endpoint: str | None,
) -> int:
    """Take documents from Kafka topics.

    A message's value is `[name, doc]` as MessagePack or JSON, as bluesky-kafka publishes it. An offset is committed
    once everything before it is safe on this disk, even from a power cut.

    If several of these commands run with the same group and the same spool, only one takes documents. When it ends or
    dies, another one goes on. Each spool needs a group of its own.
    """
    from confluent_kafka import KafkaException

    from ..errors import SettingsError
    from ..sources.kafka import KafkaDocuments

    config = {} if config_file is None else _properties(config_file)

    def source(ending: threading.Event) -> Source:
        try:
            return KafkaDocuments(bootstrap, topics, group=group, ending=ending, config=config)
        except KafkaException as error:
            raise SettingsError(f"Kafka's client cannot begin: {error.args[0]}; check --config") from error

    try:
        return _consume(source, turn=f"kafka {group}", spool_dir=spool_dir, endpoint=endpoint)
    except KafkaException as error:
        raise click.ClickException(f"Kafka's client cannot go on: {error.args[0]}") from error


def _properties(path: Path) -> dict[str, str]:
    """Return the settings in a file of `name=value` lines, as Kafka's own tools read it."""
    from ..errors import SettingsError

    found: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{str(path)!r} is no text in UTF-8; expected lines of name=value") from None
    for number, line in enumerate(text.splitlines(), start=1):
        name, separator, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not separator:
            raise SettingsError(f"line {number} of {str(path)!r} is no setting; expected name=value")
        found[name.strip()] = value.strip()
    return found


def _consume(source: Callable[[threading.Event], Source], *, turn: str = "", **settings_given: Any) -> int:
    """Take a source's documents until a signal says to end. Return the exit code.

    Args:
        source: Makes the source, given what ends it.
        turn: What only one process may take at a time through one spool, or an empty text.
        **settings_given: Settings.
    """
    from ..documents.recorder import DocumentRecorder, open_spool
    from ..settings import Settings
    from ..sources.intake import Intake
    from ..spool.locks import RunLock

    settings = Settings.load(**settings_given)
    with Ending() as ending, logged_as_a_service():
        spool = open_spool(settings)
        recorders: list[DocumentRecorder] = []

        def complete_run(folder: Path) -> None:
            for recorder in recorders:
                recorder.complete_open_runs(folder)

        uploader = _uploader(spool, settings, complete_run)
        lock = RunLock(spool.path / f"consumer-{hashlib.sha256(turn.encode()).hexdigest()[:8]}.lock")
        try:
            if uploader is not None:
                uploader.start()
            if turn and not _wait_for_turn(lock, ending.event):
                return 0
            with DocumentRecorder(settings, spool=spool, listener=uploader, redelivers=True) as recorder:
                recorders.append(recorder)
                intake = Intake(recorder, ending.event)
                try:
                    intake.take_all(source(ending.event))
                finally:
                    _log_what_was_taken(intake)
        finally:
            if uploader is not None:
                uploader.stop()
            spool.writers.stop_threads()
            lock.release()
    return 0


def _wait_for_turn(lock: RunLock, ending: threading.Event) -> bool:
    """Wait until no other process takes the same through this spool. Return False if it was told to end meanwhile."""
    if lock.acquire():
        return True
    _logger.info("another process takes these documents into this spool; this process waits until that one ends")
    while not ending.wait(TURN_S):
        if lock.acquire():
            return True
    return False


def _uploader(spool: Spool, settings: Settings, complete_run: Callable[[Path], None]) -> Deliverer | None:
    """Return what delivers in this process or notifies what does, or None if nothing is sent."""
    if settings.offline or not (settings.api_key or settings.uploader == "none"):
        from ..settings import spool_option

        why = "offline by setting" if settings.offline else "no API key (ATOMSCALE_API_KEY)"
        upload = f"atomscale-bluesky upload{spool_option(settings)}"
        _logger.warning("%s: documents are spooled in %s, and `%s` sends them", why, spool.path, upload)
        return None
    if settings.uploader == "thread":
        from ..delivery.uploader import Uploader

        # It follows: another worker on this spool may die, and its runs are delivered too.
        return Uploader(spool, settings, follow=True, complete_run=complete_run)
    from ..delivery.uploader_elsewhere import UploaderElsewhere

    return UploaderElsewhere(spool, settings, start=settings.uploader == "process", complete_run=complete_run)


def _log_what_was_taken(intake: Intake) -> None:
    _logger.info(
        "documents taken: %d; runs begun: %d, known before: %d; rows written: %d; events known before: %d",
        intake.documents, intake.runs, intake.known_runs, intake.rows, intake.known,
    )  # fmt: skip
    for reason, number in intake.unusable.most_common(10):
        _logger.warning("documents that could not be used: %d: %s", number, reason)
    for uid, number in intake.without_start.most_common(10):
        _logger.warning("run %s: its start document never came; documents of it left out: %d", uid, number)
    if intake.open_runs:
        uids = ", ".join(sorted(intake.open_runs)[:10])
        _logger.warning("open runs, which count as interrupted until they go on: %d: %s", len(intake.open_runs), uids)
