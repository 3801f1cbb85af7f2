"""The bytes that rockbed.storage.sst writes, beside those of RocksDB's own writer, and with some of them broken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed.storage.sst import write_sst
from rockbed.types import U8
from tests.storage.sst_files import (
    Table,
    as_dict,
    assert_holds,
    ingest,
    opened,
    options,
    random_rows,
    verifying,
    written_by_rocksdb,
)


def test_the_properties_are_those_of_rocksdbs_own_writer(tmp_path: Path) -> None:
    keys, values = random_rows(2_000, 176)
    ours, theirs = tmp_path / "ours.sst", tmp_path / "theirs.sst"
    write_sst(ours, keys, values)
    mine, reference = Table.of(ours), written_by_rocksdb(theirs, as_dict(keys, values))
    only_theirs = {"compression_options", "creating.host.identity", "creation.time", "oldest.key.time"}
    assert set(reference.properties) - set(mine.properties) <= {"rocksdb." + name for name in only_theirs}
    assert set(mine.properties) <= set(reference.properties)
    # Blocks are cut elsewhere, index keys are shortened, and identity is the file's own.
    different = {"data.size", "index.size", "num.data.blocks", "tail.start.offset", "filter.size"}
    different |= {"creating.db.identity", "creating.session.identity", "original.file.number"}
    for name in set(mine.properties) - {"rocksdb." + name for name in different}:
        assert mine.properties[name] == reference.properties[name], name


def test_the_filter_is_bit_for_bit_that_of_rocksdbs_own_writer(tmp_path: Path) -> None:
    # So many keys that rounding up to whole lines leaves 10 bits a key; for fewer RocksDB takes more probes.
    keys, values = random_rows(20_000, 8)
    ours, theirs = tmp_path / "ours.sst", tmp_path / "theirs.sst"
    write_sst(ours, keys, values)
    name = "fullfilter.rocksdb.BuiltinBloomFilter"
    assert Table.of(ours).block(name) == written_by_rocksdb(theirs, as_dict(keys, values)).block(name)


def test_a_data_block_is_byte_for_byte_that_of_rocksdbs_own_writer(tmp_path: Path) -> None:
    keys, values = random_rows(1, 180)
    ours, theirs = tmp_path / "ours.sst", tmp_path / "theirs.sst"
    write_sst(ours, keys, values)
    mine, reference = Table.of(ours), written_by_rocksdb(theirs, as_dict(keys, values))
    end = mine.number("data.size")
    assert end == reference.number("data.size")
    assert mine.data[:end] == reference.data[:end]
    assert mine.block("index") == reference.block("index")


def test_a_file_without_a_filter_has_none(tmp_path: Path) -> None:
    keys, values = random_rows(100, 60)
    write_sst(tmp_path / "rows.sst", keys, values, bloom_bits_per_key=0)
    table = Table.of(tmp_path / "rows.sst")
    assert set(table.places) == {"metaindex", "index", "rocksdb.properties"}
    assert table.number("filter.size") == table.number("num.filter_entries") == 0
    database = opened(tmp_path / "db")
    ingest(database, tmp_path / "rows.sst")
    assert_holds(database, as_dict(keys, values))
    database.close()


def flipped(path: Path, source: Path, offset: int) -> None:
    data = bytearray(source.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def ingest_and_get(db: Any, path: Path, keys: U8) -> None:
    ingest(db, path)
    db.get([key.tobytes() for key in keys], read_opt=verifying())


@pytest.mark.parametrize("where", ["data", "data checksum", "index", "rocksdb.properties", "metaindex"])
def test_a_flipped_bit_is_found(tmp_path: Path, where: str) -> None:
    keys, values = random_rows(1_000, 60)
    good = tmp_path / "good.sst"
    write_sst(good, keys, values, block_bytes=1_000)
    table = Table.of(good)
    if where == "data":
        offsets = np.linspace(0, table.number("data.size") - 1, 12).astype(int).tolist()
    elif where == "data checksum":
        at, size = table.data_blocks[3]
        offsets = list(range(at + size, at + size + 5))  # the compression byte and the checksum
    else:
        at, size = table.places[where]
        offsets = np.linspace(at, at + size + 4, 12).astype(int).tolist()
    for number, offset in enumerate(offsets):
        bad = tmp_path / f"bad{number}.sst"
        flipped(bad, good, offset)
        database = opened(tmp_path / f"db{number}")
        with pytest.raises(Exception, match=r"Corruption|unsorted"):
            ingest_and_get(database, bad, keys)
        database.close()


def test_a_flipped_bit_in_the_filter_hides_no_row(tmp_path: Path) -> None:
    """RocksDB ignores a filter whose checksum is wrong; trusting it would lose rows."""
    keys, values = random_rows(1_000, 60)
    good, bad = tmp_path / "good.sst", tmp_path / "bad.sst"
    write_sst(good, keys, values)
    at, size = Table.of(good).places["fullfilter.rocksdb.BuiltinBloomFilter"]
    data = bytearray(good.read_bytes())
    data[at : at + size - 5] = bytes(size - 5)
    bad.write_bytes(data)
    database = opened(tmp_path / "db")
    ingest(database, bad)
    assert_holds(database, as_dict(keys, values))
    database.close()


def statistic(db_options: Any, name: str) -> int:
    line = next(line for line in (db_options.get_statistics() or "").splitlines() if line.startswith(name + " "))
    return int(line.rsplit(" ", 1)[1])


def test_the_filter_spares_nearly_all_reads_of_absent_keys(tmp_path: Path) -> None:
    counted = options()
    counted.enable_statistics()
    database = opened(tmp_path / "db", counted)
    keys, values = random_rows(20_000, 44)
    write_sst(tmp_path / "rows.sst", keys, values)
    ingest(database, tmp_path / "rows.sst")
    absent = [key.tobytes() for key in random_rows(20_000, 1, seed=9)[0]]
    assert database.get(absent) == [None] * len(absent)
    spared = statistic(counted, "rocksdb.bloom.filter.useful COUNT :")
    database.close()
    # 10 bits and 6 probes within one line let 0.96% pass (bloom_impl.h); 1.3% is more than 4 sigma above that.
    assert len(absent) * 0.987 < spared <= len(absent)
