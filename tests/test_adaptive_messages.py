"""AdaptiveLookup by hand and by protobuf are the same bytes' worth."""

import numpy as np
import pytest

from rockbed import adaptive_messages
from rockbed.errors import WrongShape
from rockbed.requests import AdaptiveKeys
from rockbed.types import Bool
from rockbed.v1 import embedding_pb2 as pb
from rockbed.wire_format import joined

KEYS, BUCKETS = np.array([-1, 2**62, 0]), np.array([3, 0, 7])


@pytest.mark.parametrize("mask", [None, np.array([True, False, True])])
def test_a_request_is_what_protobuf_reads_and_writes(mask: Bool | None) -> None:
    asked = AdaptiveKeys(40_000, 0, KEYS, BUCKETS, mask, 17, 2**40)
    ours = joined(adaptive_messages.adaptive_request(asked, True, 2))
    theirs = pb.AdaptiveLookupRequest.FromString(ours)
    assert (theirs.static_group, theirs.exact_group, theirs.train, theirs.precision) == (40_000, 0, True, 2)
    assert (theirs.static_generation, theirs.exact_generation) == (17, 2**40)
    assert (theirs.keys, theirs.buckets) == (KEYS.tobytes(), BUCKETS.tobytes())
    assert theirs.HasField("mask") == (mask is not None)
    read = adaptive_messages.adaptive_keys(adaptive_messages.read_adaptive_request(theirs.SerializeToString()))
    assert (read.static, read.exact) == (40_000, 0)
    assert (read.static_generation, read.exact_generation) == (17, 2**40)
    np.testing.assert_array_equal(read.keys, KEYS)
    np.testing.assert_array_equal(read.buckets, BUCKETS)
    if mask is None:
        assert read.mask is None
    else:
        np.testing.assert_array_equal(read.mask, mask)


def test_a_mask_of_no_ids_is_a_mask() -> None:
    none = np.empty(0, np.int64)
    message = joined(adaptive_messages.adaptive_request(AdaptiveKeys(1, 2, none, none, none == 0), False, 0))
    assert pb.AdaptiveLookupRequest.FromString(message).HasField("mask")
    assert adaptive_messages.adaptive_keys(adaptive_messages.read_adaptive_request(message)).mask is not None


def test_an_answer_is_what_protobuf_reads_and_writes() -> None:
    weights, mask = np.ones((2, 3), np.float32), np.array([False, True])
    theirs = pb.AdaptiveLookupResponse.FromString(joined(adaptive_messages.adaptive_response(weights, mask, 5)))
    assert (theirs.weights, theirs.mask, theirs.migrated) == (weights.tobytes(), b"\0\1", 5)
    read = adaptive_messages.read_adaptive_response(theirs.SerializeToString())
    assert (bytes(read.weights), read.migrated) == (weights.tobytes(), 5)
    np.testing.assert_array_equal(adaptive_messages.mask_from(read.mask, 2), mask)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(WrongShape, match="a mask of 2 bytes for 3 keys"):
        adaptive_messages.mask_from(b"\0\1", 3)
