"""Parts, partitioners and scopes: what variables have before there is a store."""

import threading
from typing import Any

import numpy as np
import pytest

import rockbed
from rockbed import AUTO_REUSE, InvalidConfig, variable_scope
from rockbed.client.partitioners import parts_by
from rockbed.client.placement import Placement
from rockbed.client.variable_keys import key_dtype_name
from rockbed.client.variable_scope import current_scope
from rockbed.slots import SLOTS, slots_of
from rockbed.storage.record import encode_keys

EXTREMES = np.array([0, -1, 1, 2**63 - 1, -(2**63), 10**15])


def test_slots_are_those_of_the_keys_on_disk() -> None:
    keys = np.concatenate([EXTREMES, np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 1000)])
    on_disk = encode_keys(7, keys)
    np.testing.assert_array_equal(slots_of(keys), on_disk[:, 2].astype(int) * 256 + on_disk[:, 3])


@pytest.mark.parametrize("parts", [1, 2, 5, 7, 16])
def test_keys_spread_evenly_over_parts(parts: int) -> None:
    for keys in (np.arange(16_000), np.arange(16_000) * 1024):  # one after another, and of one low bit pattern
        counts = np.bincount(Placement(parts, 1).parts_of(keys), minlength=parts)
        assert counts.size == parts
        assert abs(counts - 16_000 / parts).max() < 5 * np.sqrt(16_000 / parts)


@pytest.mark.parametrize(("parts", "storages"), [(2, 2), (5, 2), (7, 3), (3, 3), (16_384, 5)])
def test_each_part_lies_on_one_storage_and_its_keys_are_found_there(parts: int, storages: int) -> None:
    placement = Placement(parts, storages)
    keys = np.arange(50_000)
    shares = placement.split(keys)
    assert [i for i, _ in shares] == list(range(storages))
    np.testing.assert_array_equal(np.sort(np.concatenate([at for _, at in shares])), keys)
    for i, at in shares:
        low, high = placement.slots_on(i)
        slots = slots_of(keys[at])
        assert low <= slots.min() <= slots.max() < high
        of = placement.parts_of(keys[at])
        assert set(of) <= {part for part in range(parts) if part * storages // parts == i}
        assert (np.diff(at) > 0).all()
    assert [placement.slots_on(i)[0] for i in range(storages)][1:] == [
        placement.slots_on(i)[1] for i in range(storages)
    ][:-1]
    assert (placement.slots_on(0)[0], placement.slots_on(storages - 1)[1]) == (0, SLOTS)


def test_two_numbers_of_parts_may_place_rows_alike() -> None:
    assert Placement(2, 2) == Placement(4, 2)
    assert Placement(5, 1) == Placement(7, 1)
    assert Placement(2, 2) != Placement(3, 2)
    assert Placement(2, 2) != Placement(2, 1)


def test_partitioners_count_parts_by_the_bytes_of_the_rows() -> None:
    assert parts_by(rockbed.fixed_size_partitioner(5), 16) == 5
    by_shard = rockbed.variable_axis_size_partitioner(1 << 20, expected_rows=100_000)
    assert parts_by(by_shard, 16) == 7  # 6.4 MB
    assert parts_by(rockbed.variable_axis_size_partitioner(1 << 20, expected_rows=100_000, max_shards=4), 16) == 4
    by_slice = rockbed.min_max_variable_partitioner(10, expected_rows=10_000)
    assert parts_by(by_slice, 16) == 2  # 640 kB in slices of 256 KiB or more
    assert parts_by(by_slice, 1) == 1
    assert parts_by(by_slice, 4096) == 10


@pytest.mark.parametrize("parts", [0, -1, SLOTS + 1, 2.0, True, None])
def test_a_number_of_parts_that_cannot_be_is_an_error(parts: Any) -> None:
    with pytest.raises(InvalidConfig):
        parts_by(lambda row_bytes: parts, 4)
    with pytest.raises(InvalidConfig, match="num_shards"):
        rockbed.fixed_size_partitioner(parts)


def test_what_is_no_partitioner_is_an_error() -> None:
    with pytest.raises(InvalidConfig, match="fixed_size_partitioner"):
        parts_by(5, 4)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r"max_shard_bytes is 0.*expected_rows is -1"):
        rockbed.variable_axis_size_partitioner(0, expected_rows=-1)


def test_scopes_nest_and_end() -> None:
    assert current_scope().full_name("v") == "v"
    with variable_scope("a") as outer:
        assert outer.full_name("v") == "a/v"
        with variable_scope("b", reuse=True), variable_scope(""):
            assert current_scope().full_name("v") == "a/b/v"
            assert current_scope().reuse is True
        assert current_scope() is outer
    assert current_scope().full_name("v") == "v"


def test_a_scope_within_one_that_reuses_reuses_too() -> None:
    with variable_scope("a", reuse=AUTO_REUSE), variable_scope("b", reuse=False):
        assert current_scope().reuse is AUTO_REUSE
    with variable_scope("a", reuse=True), variable_scope("b"):
        assert current_scope().reuse is True


def test_a_scope_is_left_by_an_error_and_is_no_other_threads() -> None:
    seen = []
    with variable_scope("a"):
        thread = threading.Thread(target=lambda: seen.append(current_scope().name))
        thread.start()
        thread.join()
    with pytest.raises(ZeroDivisionError), variable_scope("a"):
        raise ZeroDivisionError
    assert seen == [""]
    assert current_scope().name == ""


@pytest.mark.parametrize(("name", "reuse"), [(7, None), ("a", "yes"), ("a", 1)])
def test_a_scope_of_something_else_is_an_error(name: Any, reuse: Any) -> None:
    with pytest.raises(InvalidConfig), variable_scope(name, reuse=reuse):
        pass


@pytest.mark.parametrize(
    ("given", "name"), [(np.int32, "int32"), ("int64", "int64"), (np.dtype("uint64"), "uint64"), (str, "string")]
)
def test_key_dtypes_have_names(given: Any, name: str) -> None:
    assert key_dtype_name(given) == name


@pytest.mark.parametrize("given", [np.int16, float, "text", None, 7])
def test_other_key_dtypes_are_errors(given: Any) -> None:
    with pytest.raises(InvalidConfig, match="not one of int32, int64, uint64, str"):
        key_dtype_name(given)
