"""Random damages of a journal: no value is false, no untouched line is lost, and a writer goes on behind them.

Rows that are counted together have the same account as those that are counted one by one.

python -m tests.faults.damage --first 0 --seeds 100000
"""

# ruff: noqa: T201 - it is a program that speaks to a person

from __future__ import annotations

import argparse
import random
import struct
import tempfile
import uuid
from collections import Counter
from pathlib import Path

from atomscale_bluesky.model.rows import Channel
from atomscale_bluesky.spool.journal_format import Layout, encode_row, pack_values
from atomscale_bluesky.spool.journal_reader import JournalReader
from atomscale_bluesky.spool.journal_writer import JournalWriter
from atomscale_bluesky.spool.lines import checksummed, encode, payload_of
from atomscale_bluesky.spool.row_record import encoder, is_record
from atomscale_bluesky.spool.run_reader import RunReader
from atomscale_bluesky.spool.segments import segment_path
from atomscale_bluesky.status.account import Account

KINDS = ["bits", "byte", "burst", "zeros", "newlines", "torn", "twice", "swapped", "taken out", "put in"]
# Values whose bytes look like the beginning of a record, or like the end of a line.
ODD = [struct.unpack(">d", b"\x40row\xf5row")[0], struct.unpack(">d", b"\x40\x0a\xf5row\x0a\x0a")[0]]
STOP = b'{"kind":"stop","time":1.7e9,"exit_status":"success"}'


class Damage:
    """A journal of rows of both kinds, damaged by chance, and which of its lines the damage has touched."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.lines = self._lines()
        ends = [sum(map(len, self.lines[: n + 1])) for n in range(len(self.lines))]
        self._spans = [(end - len(text), end) for text, end in zip(self.lines, ends, strict=True)]
        self.kind = chance.choice(KINDS)
        self.touched: set[int] = set()
        self.content = self._damaged(bytearray(b"".join(self.lines)))

    def _lines(self) -> list[bytes]:
        chance = self.chance
        channels = chance.choice([1, 2, 5, 40, 300])
        encode, found = encoder(chance.choice([0, 200]), channels), []
        for n in range(chance.randrange(2, 60)):
            uid = str(uuid.UUID(int=chance.getrandbits(128)))
            if chance.random() < 0.15:
                values = pack_values([chance.random(), *[None] * (channels - 1)])
                found.append(checksummed(encode_row(1, n, 1.7e9 + n, uid, values, {"a": "gap"})))
                continue
            values = chance.choices([chance.random(), chance.random(), *ODD], k=channels)
            record = encode(float(n), 1.7e9 + n, uid, values)
            assert record is not None
            found.append(record)
        return found

    def _damaged(self, data: bytearray) -> bytes:
        chance = self.chance
        at = chance.randrange(1, len(data))
        length = min(len(data) - at, chance.choice([1, 3, 20, 512, 4096]))
        match self.kind:
            case "bits":
                for at in {chance.randrange(len(data)) for _ in range(chance.choice([1, 1, 2, 5]))}:
                    data[at] ^= 1 << chance.randrange(8)
                    self._touch(at, at + 1)
            case "byte":
                data[at] = chance.choice([0, 0x0A, 0xF5, chance.randrange(256)])
                self._touch(at, at + 1)
            case "burst" | "zeros" | "newlines":
                by = {"burst": chance.randbytes(length), "zeros": bytes(length), "newlines": b"\n" * length}
                data[at : at + length] = by[self.kind]
                self._touch(at, at + length)
            case "torn":
                del data[at:]
                self._touch(at, 2**62)
            case "twice":
                n = chance.randrange(len(self.lines))
                data = bytearray(b"".join([*self.lines[: n + 1], *self.lines[n:]]))
            case "swapped":
                one, two = (chance.randrange(len(self.lines)) for _ in range(2))
                lines = list(self.lines)
                lines[one], lines[two] = lines[two], lines[one]
                data = bytearray(b"".join(lines))
            case "taken out":
                del data[at : at + length]
                self._touch(at, at + length)
            case _:
                data[at:at] = chance.randbytes(length)
                self._touch(at, at + 1)
        return bytes(data)

    def _touch(self, begin: int, end: int) -> None:
        self.touched |= {n for n, (first, last) in enumerate(self._spans) if first < end and begin < last}

    def problems(self, folder: Path) -> list[str]:
        """What is wrong with what a reader and a writer make of the journal."""
        path = segment_path(folder, 1)
        path.write_bytes(self.content)
        found = self._differs(read(folder), "")
        writer = JournalWriter(folder)
        cut = len(self.content) - path.stat().st_size
        writer.append(checksummed(STOP))
        writer.close()
        found += self._differs(read(folder), "behind a writer, ", STOP)
        if vars(counted(folder, together=True)) != vars(counted(folder, together=False)):
            found.append("rows that are counted together have another account than one by one")
        whole = sum(len(text) for n, text in enumerate(self.lines) if n not in self.touched)
        if self.kind == "torn" and len(self.content) - cut != whole:
            found.append(f"{cut} bytes of a torn line were cut off, not {len(self.content) - whole}")
        path.unlink()
        return found

    def _differs(self, read: list[bytes], when: str, *further: bytes) -> list[str]:
        written = list(map(payload, self.lines))
        lost = [n for n, text in enumerate(written) if n not in self.touched and text not in set(read)]
        false = set(read) - {*written, *further}
        return (
            [f"{when}lines {lost} are lost"] * bool(lost)
            + [f"{when}{len(false)} lines are false"] * bool(false)
            + [f"{when}{text!r} is lost" for text in further if text not in read]
        )


def payload(text: bytes) -> bytes:
    """What a reader gives for an intact line."""
    found = text if is_record(text) else payload_of(text[:-1])
    assert found is not None
    return found


def read(folder: Path) -> list[bytes]:
    """All that a reader finds, and finds again when it looks once more at the end."""
    reader = JournalReader(folder)
    try:
        return [found.payload for _ in range(2) for found in reader.read()]
    finally:
        reader.close()


def counted(folder: Path, *, together: bool) -> Account:
    """The account of the rows, counted together where that is possible, or one by one."""
    account, reader = Account(), RunReader(folder)
    for number in (0, 1, 200):
        account.take_line(encode(Layout(number, "primary", "d", (Channel(f"a{number}", "a"),))))
    if together:
        account.read_on(reader)
    else:
        for found in reader.read():
            account.take_line(found.payload)
    reader.close()
    return account


def play(seeds: range, folder: Path) -> dict[int, list[str]]:
    """The seeds whose damage did more than it may, with what it did."""
    played = ((seed, Damage(seed).problems(folder)) for seed in seeds)
    return {seed: problems for seed, problems in played if problems}


def main() -> int:
    """Play seeds and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.damage", description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1000)
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with tempfile.TemporaryDirectory() as folder:
        found = play(seeds, Path(folder))
    for seed, problems in found.items():
        print(f"seed {seed}, {Damage(seed).kind}: {'; '.join(problems)}")
    kinds = Counter(Damage(seed).kind for seed in list(seeds)[:1000])
    print(f"{len(seeds)} damages, {len(found)} with problems; of the first 1000: {dict(kinds)}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
