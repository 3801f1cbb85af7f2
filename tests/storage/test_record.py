"""The bytes of a row on disk, pinned, and the order of its keys."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage.record import (
    FLAG_FRESH,
    SLOTS,
    TTL_STAMP_BYTES,
    decode_key,
    disk_order,
    encode_keys,
    headers_of,
    key_prefix,
    pack,
    prefix_end,
    record_bytes,
    unpack,
)
from tests.splitmix import mix64

KEY = st.integers(-(2**63), 2**63 - 1)


def test_golden_keys() -> None:
    keys = np.array([0, 1, -1, 2**63 - 1, -(2**63)], np.int64)
    assert [row.tobytes().hex() for row in encode_keys(0x0102, keys)] == [
        "0102" + f"{mix64(int(k)) & 0x3FFF:04x}" + f"{(int(k) ^ (1 << 63)) & (2**64 - 1):016x}" for k in keys
    ]
    assert encode_keys(0x0102, keys)[1].tobytes().hex() == "010205e58000000000000001"


def test_golden_value() -> None:
    header = np.array([[0x1122334455667788, 1_700_000_000_123, 7, 99]], np.int64)
    data = np.array([[1.5, -2.0, 0.25]], np.float32)
    value = np.empty((1, record_bytes(3) + TTL_STAMP_BYTES), np.uint8)
    pack(np.array([0]), header, np.array([FLAG_FRESH], np.uint8), data, 0x0102, 2, 1_700_000_000, value)
    assert value.tobytes().hex() == (
        "01"  # version
        "01"  # flags: fresh
        "0201"  # group
        "02000000"  # dim
        "8877665544332211"  # key
        "7b68e5cf8b010000"  # update time, ms
        "0700000000000000"  # updates
        "6300000000000000"  # LSN
        "0000c03f" "000000c0" "0000803e"  # weights, slots
        "00f15365"  # RocksDB's TTL stamp, s
    )  # fmt: skip


@given(st.lists(KEY, min_size=1, max_size=50, unique=True), st.integers(0, 65_535), st.integers(1, 9))
def test_rows_come_back_as_they_were(keys: list[int], group: int, width: int) -> None:
    n = len(keys)
    rng = np.random.default_rng(width)
    header = np.stack([np.array(keys, np.int64), *rng.integers(-(2**62), 2**62, (3, n))], axis=1)
    data = rng.standard_normal((n, width)).astype(np.float32)
    values = np.empty((n, record_bytes(width) + TTL_STAMP_BYTES), np.uint8)
    pack(np.arange(n), header, np.zeros(n, np.uint8), data, group, 1, 5, values)
    records = np.ascontiguousarray(values[:, :-TTL_STAMP_BYTES])
    assert (headers_of(records)["key"] == keys).all()
    assert (headers_of(records)["group"] == group).all()
    back_header, back_data = np.zeros_like(header), np.zeros_like(data)
    unpack(records, np.arange(n), back_header, back_data)
    np.testing.assert_array_equal(back_header, header)
    np.testing.assert_array_equal(back_data, data)


@given(st.lists(st.tuples(st.integers(0, 65_535), KEY), min_size=2, max_size=60))
def test_bytes_sort_by_group_slot_and_key(pairs: list[tuple[int, int]]) -> None:
    encoded = {pair: encode_keys(pair[0], np.array([pair[1]]))[0].tobytes() for pair in pairs}
    by_bytes = sorted(set(pairs), key=lambda pair: encoded[pair])
    assert by_bytes == sorted(set(pairs), key=lambda pair: (pair[0], mix64(pair[1]) % SLOTS, pair[1]))
    assert [decode_key(encoded[pair]) for pair in by_bytes] == by_bytes


@given(st.lists(KEY, min_size=1, max_size=200, unique=True))
def test_disk_order_is_the_order_of_the_bytes(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    raw = [row.tobytes() for row in encode_keys(9, array)]
    assert [raw[i] for i in disk_order(array)] == sorted(raw)


def test_disk_order_holds_for_keys_that_differ_only_in_their_low_bits() -> None:
    # thousands of neighbours: some share their slot, and all share the 50 bits that the sort looks at first
    array = np.random.default_rng(1).permutation(np.arange(2**62, 2**62 + 60_000))
    raw = encode_keys(9, array)
    ordered = raw[disk_order(array)]
    numbers = [int.from_bytes(row.tobytes(), "big") for row in ordered]
    assert numbers == sorted(numbers)


def test_a_prefix_ends_where_the_next_group_begins() -> None:
    assert prefix_end(key_prefix(5)) == key_prefix(6)
    assert prefix_end(key_prefix(255)) == b"\x01"
    assert prefix_end(key_prefix(65_535)) is None
