"""What the entries of the journal say: their bytes, pinned, and that they come back as they were written."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.requests import Request
from rockbed.storage.entries import (
    BagSection,
    Kind,
    Put,
    Section,
    delete_parts,
    drop_parts,
    group_parts,
    push_kind,
    push_parts,
    put_parts,
    read_delete,
    read_drop,
    read_group,
    read_push,
    read_put,
)

REQUEST = st.none() | st.builds(Request, st.text(min_size=1, max_size=20), st.integers(1, 2**63 - 1))


def _payload(parts: list[Any]) -> memoryview:
    for part in parts:
        assert len(bytes(part)) % 8 == 0, "the journal hashes whole words"
    return memoryview(b"".join(bytes(part) for part in parts))


@given(
    REQUEST, st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.booleans(), st.integers(-1, 99)), max_size=3)
)
def test_pushes(request: Request | None, shapes: list[tuple[int, int, bool, int]]) -> None:
    rng = np.random.default_rng(1)
    sections = [
        Section(
            group=i,
            keys=rng.integers(-(2**63), 2**63 - 1, n),
            fresh=rng.integers(0, 2, n).astype(np.uint8),
            grads=rng.standard_normal((n, dim)).astype(np.float32),
            sequential=sequential,
            step=step,
        )
        for i, (n, dim, sequential, step) in enumerate(shapes)
    ]
    back_request, back = read_push(_payload(push_parts(request, sections)))
    assert back_request == request
    assert len(back) == len(sections)
    for one, other in zip(sections, back, strict=True):
        assert isinstance(other, Section)
        assert (one.group, one.sequential, one.step) == (other.group, other.sequential, other.step)
        for name in ("keys", "fresh", "grads"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.text(max_size=9))
def test_deletions(keys: list[int], reason: str) -> None:
    group, back, its_reason = read_delete(_payload(delete_parts(7, np.array(keys, np.int64), reason)))
    assert (group, back.tolist(), its_reason) == (7, keys, reason)


@given(st.text(max_size=30))
def test_group_settings(text: str) -> None:
    config = text.replace("\0", "").encode()
    assert read_group(_payload(group_parts(config))) == config


def _put() -> Put:
    data = np.array([[1.5, -2.0, 0.25], [0.0, 8.0, -1.0]], np.float32)
    return Put(0x0102, np.array([1, -2]), np.array([7, 0]), np.array([300, 1]), data)


def test_stored_rows_and_their_golden_bytes() -> None:
    payload = _payload(put_parts(_put()))
    assert bytes(payload).hex() == NO_REQUEST + STORED
    back = read_put(payload)
    assert back.group == 0x0102
    for name in ("keys", "update_num", "update_time", "data"):
        np.testing.assert_array_equal(getattr(back, name), getattr(_put(), name))


def test_a_drop_and_its_golden_bytes() -> None:
    payload = _payload(drop_parts(0x0102))
    assert bytes(payload).hex() == NO_REQUEST + "02010000" "00000000"  # fmt: skip
    assert read_drop(payload) == 0x0102


# --- golden bytes, written by hand from the layout in storage/entries.py ---

NO_REQUEST = "0000000000000000" "00000000" "00000000"  # fmt: skip
NUMBER_258_OF_UEBER = (
    "0201000000000000"  # number
    "05000000" "00000000"  # bytes of the client id
    "c3bc626572" "000000"  # the client id
)  # fmt: skip
ROW_STEPS = (
    "02010000" "01000000" "00000000" "00000000"  # group, dim, not sequential
    "0300000000000000"  # n
    "ffffffffffffffff"  # each row's own step
    "0100000000000000" "feffffffffffffff" "0807060504030201"  # keys
    "010001" "0000000000"  # fresh
    "0000c03f" "000000c0" "0000803e" "00000000"  # gradients
)  # fmt: skip
GLOBAL_STEP = (
    "03000000" "02000000" "01000000" "00000000"  # group, dim, sequential
    "0100000000000000"  # n
    "2c01000000000000"  # step
    "ffffffffffffff7f"  # key
    "00" "00000000000000"  # fresh
    "000080bf" "00000041"  # gradients
)  # fmt: skip
DELETED = (
    "02010000" "06000000" "0200000000000000"  # group, bytes of the reason, n
    "0100000000000000" "ffffffffffffffff"  # keys
    "736872696e6b" "0000"  # reason
)  # fmt: skip
STORED = (
    "02010000" "03000000" "0200000000000000"  # group, width, n
    "0100000000000000" "feffffffffffffff"  # keys
    "0700000000000000" "0000000000000000"  # update counts
    "2c01000000000000" "0100000000000000"  # update times
    "0000c03f" "000000c0" "0000803e" "00000000" "00000041" "000080bf"  # rows
)  # fmt: skip
CONFIG = "7b2264696d223a20347d" "000000000000"  # fmt: skip


def _row_steps() -> Section:
    keys = np.array([1, -2, 0x0102030405060708])
    return Section(0x0102, keys, np.array([1, 0, 1], np.uint8), np.array([[1.5], [-2.0], [0.25]], np.float32))


def _global_step() -> Section:
    grads = np.array([[-1.0, 8.0]], np.float32)
    return Section(3, np.array([2**63 - 1]), np.zeros(1, np.uint8), grads, sequential=True, step=300)


def test_golden_kinds() -> None:
    kinds = {"PUSH": 1, "DELETE": 2, "GROUP": 3, "PUT": 4, "DROP": 5, "BAG_PUSH": 6, "COPY": 7}
    assert {kind.name: kind.value for kind in Kind} == kinds


@pytest.mark.parametrize(
    ("request_", "sections", "golden"),
    [
        (None, [_row_steps()], NO_REQUEST + "01000000" "00000000" + ROW_STEPS),
        (
            Request("über", 258),
            [_global_step(), _row_steps()],
            NUMBER_258_OF_UEBER + "02000000" "00000000" + GLOBAL_STEP + ROW_STEPS,
        ),
        (Request("über", 258), [], NUMBER_258_OF_UEBER + "00000000" "00000000"),
    ],
)  # fmt: skip
def test_golden_push(request_: Request | None, sections: list[Section], golden: str) -> None:
    assert _payload(push_parts(request_, sections)).hex() == golden


def test_golden_bag_push() -> None:
    section = BagSection(
        group=0x0102,
        keys=np.array([1, -1]),
        fresh=np.array([1, 0], np.uint8),
        inverse=np.array([0, 1, -1], np.int32),
        sizes=np.array([1, 2], np.uint32),
        weights=np.array([1, 2, 0.5], np.float32),
        grads=np.array([[1], [2]], np.float32),
        step=3,
    )
    golden = (
        NO_REQUEST
        + "0100000000000000"
        + "0201000001000000"
        + "0000000001000000"
        + "0200000000000000"
        + "0300000000000000"
        + "0100000000000000ffffffffffffffff"
        + "0100000000000000"
        + "03000000000000000200000001000000"
        + "0000000001000000ffffffff00000000"
        + "0100000002000000"
        + "0000803f000000400000003f00000000"
        + "0000803f00000040"
    )
    assert push_kind([section]) == Kind.BAG_PUSH
    assert _payload(push_parts(None, [section])).hex() == golden


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4), st.integers(1, 5), st.booleans())
def test_pushes_of_bags(keys: int, positions: int, bags: int, dim: int, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    section = BagSection(
        group=7,
        keys=rng.integers(-(2**63), 2**63 - 1, keys),
        fresh=rng.integers(0, 2, keys).astype(np.uint8),
        inverse=rng.integers(-1, keys, positions).astype(np.int32),
        sizes=rng.integers(0, 9, bags).astype(np.uint32),
        weights=rng.standard_normal(positions if weighted else 0).astype(np.float32),
        grads=rng.standard_normal((bags, dim)).astype(np.float32),
        step=5,
    )
    by_key = Section(3, np.arange(2), np.zeros(2, np.uint8), np.ones((2, 3), np.float32))
    _, (first, back, last) = read_push(_payload(push_parts(None, [by_key, section, by_key])))
    assert isinstance(back, BagSection)
    assert (back.group, back.step) == (7, 5)
    for name in ("keys", "fresh", "inverse", "sizes", "weights", "grads"):
        np.testing.assert_array_equal(getattr(back, name), getattr(section, name))
    for each in (first, last):
        assert isinstance(each, Section)
        np.testing.assert_array_equal(each.grads, by_key.grads)


def test_golden_delete() -> None:
    golden = NO_REQUEST + DELETED
    assert _payload(delete_parts(0x0102, np.array([1, -1]), "shrink")).hex() == golden


def test_golden_group() -> None:
    assert _payload(group_parts(b'{"dim": 4}')).hex() == NO_REQUEST + CONFIG


def test_a_deletion_and_a_groups_settings_are_read_behind_a_request_too() -> None:
    group, keys, reason = read_delete(memoryview(bytes.fromhex(NUMBER_258_OF_UEBER + DELETED)))
    assert (group, keys.tolist(), reason) == (0x0102, [1, -1], "shrink")
    assert read_group(memoryview(bytes.fromhex(NUMBER_258_OF_UEBER + CONFIG))) == b'{"dim": 4}'
