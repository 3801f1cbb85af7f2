"""What the tests of the table writer share: random rows, a database to ingest into, and a reader of the file format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rocksdict import (
    BlockBasedOptions,
    ChecksumType,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    ReadOptions,
    SstFileWriter,
)

from rockbed.storage.sst import BLOCK_BYTES
from rockbed.types import I64, U8

KEY_BYTES = 12
ENTRY_BYTES = 3 + KEY_BYTES + 8  # beside the value, for values of fewer than 128 bytes
FOOTER_BYTES = 53
DAY_S = 24 * 3600


def random_rows(n: int, v: int, seed: int = 0) -> tuple[U8, U8]:
    """keys uint8[n, 12], ascending and different, and values uint8[n, v]."""
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(0, 256, (n, KEY_BYTES), dtype=np.uint8), axis=0)
    assert len(keys) == n
    return keys, rng.integers(0, 256, (n, v), dtype=np.uint8)


def as_dict(keys: U8, values: U8) -> dict[bytes, bytes]:
    return {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}


def byte_order(keys: U8) -> I64:
    """The rows of keys in the order of their bytes."""
    return np.array(sorted(range(len(keys)), key=lambda row: keys[row].tobytes()), np.int64)


def options() -> Options:
    result = Options(raw_mode=True)
    result.create_if_missing(True)
    result.set_paranoid_checks(True)
    # When to compact, which reads and rewrites every file, is for the test to decide.
    result.set_disable_auto_compactions(True)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    result.set_block_based_table_factory(table)
    return result


def opened(path: Path, db_options: Options | None = None, **how: Any) -> Any:
    """An Rdict; Any, because the type information of rocksdict says less than it takes and gives."""
    return Rdict(str(path), db_options or options(), **how)


def ingest(db: Any, *paths: Path) -> None:
    ingest_options = IngestExternalFileOptions()
    ingest_options.set_move_files(True)
    db.ingest_external_file([str(path) for path in paths], ingest_options)


def verifying() -> ReadOptions:
    result = ReadOptions()
    result.set_verify_checksums(True)
    return result


def assert_holds(db: Any, expected: dict[bytes, bytes]) -> None:
    """The database has these rows and no other: by batched get, by single get, in order, and not the absent ones."""
    keys = list(expected)
    assert db.get(keys, read_opt=verifying()) == list(expected.values())
    assert db[keys[0]] == expected[keys[0]]
    assert list(db.items(read_opt=verifying())) == sorted(expected.items())
    beside = [key[:-1] + bytes([key[-1] ^ 1]) for key in keys[:200]]
    absent = [key for key in beside if key not in expected]
    assert db.get(absent) == [None] * len(absent)


@dataclass(frozen=True)
class Table:
    """A table file taken apart by the description of the format, without the code under test."""

    data: bytes
    places: dict[str, tuple[int, int]]  # offset and size of each block that is not a data block
    properties: dict[str, bytes]
    data_blocks: list[tuple[int, int]]

    @classmethod
    def of(cls, path: Path) -> "Table":
        data = path.read_bytes()
        footer = data[-FOOTER_BYTES:]
        assert footer[-8:] == bytes.fromhex("f7cff485b741e288")
        meta_at, meta_size, index_at, index_size = varints(footer[1:41])[:4]
        places = {"metaindex": (meta_at, meta_size), "index": (index_at, index_size)}
        for name, place in entries(data[meta_at : meta_at + meta_size]).items():
            at, size = varints(place)
            places[name] = (at, size)
        at, size = places["rocksdb.properties"]
        properties = entries(data[at : at + size])
        return cls(data, places, properties, data_places(data[index_at : index_at + index_size]))

    def block(self, name: str) -> bytes:
        at, size = self.places[name]
        return self.data[at : at + size]

    def number(self, name: str) -> int:
        return varints(self.properties["rocksdb." + name])[0]


def varints(data: bytes) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    return numbers


def entries(block: bytes) -> dict[str, bytes]:
    """The entries of a block whose sizes all fit into one byte, or two for the value."""
    restarts = int.from_bytes(block[-4:], "little")
    body, at, key, found = block[: -4 - 4 * restarts], 0, b"", {}
    while at < len(body):
        shared, own, size = body[at], body[at + 1], body[at + 2]
        at += 3
        if size >= 0x80:
            size = size & 0x7F | body[at] << 7
            at += 1
        key = key[:shared] + body[at : at + own]
        found[key.decode()] = body[at + own : at + own + size]
        at += own + size
    return found


def data_places(index: bytes) -> list[tuple[int, int]]:
    """Offset and size of each data block, from an index whose entries are all restart points."""
    count = int.from_bytes(index[-4:], "little")
    offsets = np.frombuffer(index[-4 - 4 * count : -4], "<u4").tolist()
    return [(number[0], number[1]) for number in (varints(index[at + 2 + index[at + 1] :][:15]) for at in offsets)]


def written_by_rocksdb(path: Path, rows: dict[bytes, bytes]) -> Table:
    """The same rows by RocksDB's own SstFileWriter, with the table options that write_sst stands for."""
    table_options = BlockBasedOptions()
    table_options.set_format_version(5)
    table_options.set_bloom_filter(10, False)
    table_options.set_checksum_type(ChecksumType.xxhash64())
    table_options.set_block_restart_interval(1)  # or keys would share their prefixes
    table_options.set_block_size(BLOCK_BYTES)
    file_options = Options(raw_mode=True)
    file_options.set_compression_type(DBCompressionType.none())
    file_options.set_block_based_table_factory(table_options)
    writer = SstFileWriter(options=file_options)
    writer.open(str(path))
    for key, value in rows.items():
        writer[key] = value
    writer.finish()
    return Table.of(path)
