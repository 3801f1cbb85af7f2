"""Arrays on the wire: exact as float32, rounded to the nearest in half precision, and refused where they do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.errors import DimMismatch, InvalidConfig, WrongShape
from rockbed.types import F32
from rockbed.wire import BFLOAT16, FLOAT16, FLOAT32, floats_from_bytes, floats_to_bytes, keys_from_bytes, keys_to_bytes

FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=20)


def _there_and_back(values: list[float], precision: int) -> F32:
    sent = np.array(values, np.float32).reshape(-1, 1)
    data = floats_to_bytes(sent, precision)
    assert len(data) == sent.size * (4 if precision == FLOAT32 else 2)
    got = floats_from_bytes(data, len(values), 1, precision, "values")
    assert got.dtype == np.float32
    assert got.flags.writeable
    return got.reshape(-1)


def test_keys_are_eight_bytes_each_little_endian() -> None:
    keys = np.array([1, -1, -(2**63), 2**63 - 1])
    data = keys_to_bytes(keys)
    assert data[:16] == bytes([1, 0, 0, 0, 0, 0, 0, 0] + [255] * 8)
    np.testing.assert_array_equal(keys_from_bytes(data), keys)
    with pytest.raises(WrongShape, match="keys are 31 bytes"):
        keys_from_bytes(data[:-1])


@given(FLOATS)
def test_float32_is_exact(values: list[float]) -> None:
    got = _there_and_back(values, FLOAT32)
    assert got.tobytes() == np.array(values, np.float32).tobytes()


@given(st.lists(st.floats(min_value=-65504, max_value=65504, width=32), min_size=1, max_size=20))
def test_float16_states_its_error(values: list[float]) -> None:
    sent = np.array(values, np.float32).astype(np.float64)
    error = np.abs(_there_and_back(values, FLOAT16).astype(np.float64) - sent)
    assert (error <= np.maximum(np.abs(sent) * 2.0**-11, 2.0**-25)).all()


@given(FLOATS)
def test_bfloat16_states_its_error_and_keeps_nan_and_infinity(values: list[float]) -> None:
    sent = np.array(values, np.float32)
    got = _there_and_back(values, BFLOAT16)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(sent))
    np.testing.assert_array_equal(got[np.isinf(sent)], sent[np.isinf(sent)])
    usual = np.isfinite(sent) & (np.abs(sent) >= 2.0**-126) & (np.abs(sent) < 3.38e38)
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - sent.astype(np.float64))
    assert (error[usual] <= np.abs(sent[usual]).astype(np.float64) * 2.0**-8).all()


def test_bfloat16_rounds_ties_to_even() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    got = _there_and_back(ties.tolist(), BFLOAT16).view(np.uint32)
    assert [hex(bits) for bits in got.tolist()] == ["0x3f800000", "0x3f820000", "0x3f810000"]


def test_floats_are_lent_where_they_can_be_used_as_they_lie() -> None:
    memory = bytearray(np.arange(10, dtype=np.float32).tobytes())
    data = memoryview(memory)
    there = floats_from_bytes(data[8:32], 3, 2, FLOAT32, "values", lent=True)
    assert np.shares_memory(there, np.frombuffer(memory, np.uint8))
    for got, at in (
        (floats_from_bytes(data[8:32], 3, 2, FLOAT32, "values"), 8),
        (floats_from_bytes(data[8:32].toreadonly(), 3, 2, FLOAT32, "values", lent=True), 8),
        (floats_from_bytes(data[9:33], 3, 2, FLOAT32, "values", lent=True), 9),
    ):
        assert got.tobytes() == bytes(data[at : at + 24])
        assert got.flags.writeable
        assert got.flags.aligned
        assert not np.shares_memory(got, np.frombuffer(memory, np.uint8))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DimMismatch, match=r"the gradients are 20 bytes for 3 keys of dim 2: .*24 bytes in all"):
        floats_from_bytes(bytes(20), 3, 2, FLOAT32, "the gradients")
    for call in (lambda: floats_from_bytes(b"", 0, 2, 3, "x"), lambda: floats_to_bytes(np.zeros(2, np.float32), 7)):
        with pytest.raises(InvalidConfig, match=r"precision [37] is unknown"):
            call()
