"""Hashing of strings and numbers, beside what TensorFlow 2 gives for them."""

import string
from typing import Any

import numpy as np
import pytest

from rockbed import InvalidConfig, WrongDtype, WrongShape
from rockbed.client.hashing import fingerprint64, hash_buckets

TEXT = "The quick brown fox jumps over the lazy dog. " * 8
FINGERPRINTS = {  # length of the text's beginning: tf.fingerprint(..., method="farmhash64")
    1: 1366698271136253306,
    2: 6802249652779214323,
    3: 9622071900453499901,
    4: 17648915545525335717,
    5: 8805132910519014279,
    7: 18103137151329643399,
    8: 5102859526078303239,
    9: 5536152759197313107,
    15: 9032017524180936103,
    16: 4320848957565769301,
    17: 14385391840113208765,
    24: 6702341905823656245,
    31: 9483090991977816915,
    32: 13139644296358924898,
    33: 17464935208016327638,
    40: 11893331242100975777,
    63: 17498978691875723554,
    64: 10142713867129616544,
    65: 8330986144681106620,
    80: 6805940383668424699,
    127: 14753975610102865547,
    128: 6548702730867532314,
    129: 18093668623211604690,
    192: 5294140426138889423,
    193: 18281655559986122894,
    255: 3236774876700135259,
    300: 12592192079144456656,
}


def test_fingerprints_are_those_of_tensorflow_at_every_length_that_takes_another_way() -> None:
    found = fingerprint64([TEXT[:length] for length in FINGERPRINTS])
    assert found.tolist() == list(FINGERPRINTS.values())


def test_an_empty_string_has_the_bucket_that_tensorflow_gives_it() -> None:
    assert hash_buckets([""], 2**62 - 57).tolist() == [1936946117179621569]


def test_numbers_hash_as_their_decimal_digits() -> None:
    keys = np.array([0, 1, -1, 7, 10, 123456789, 2**63 - 1, -(2**63)])
    expected = [735, 849, 430, 88, 862, 306, 319, 112]  # string_to_hash_bucket_fast(as_string(keys), 1000)
    assert hash_buckets(keys, 1000).tolist() == expected
    assert hash_buckets([str(key) for key in keys], 1000).tolist() == expected
    assert hash_buckets(np.array([2**64 - 1], np.uint64), 1000) == hash_buckets(["18446744073709551615"], 1000)


def test_strings_hash_as_utf8() -> None:
    words = ["größe", "日本語", "user_42"]
    expected = [984, 783, 217]  # string_to_hash_bucket_fast
    for form in (words, [word.encode() for word in words], np.array(words), np.array(words, object)):
        assert hash_buckets(form, 1000).tolist() == expected
    assert hash_buckets(np.array([word.encode() for word in words]), 1000).tolist() == expected


def test_a_string_has_its_hash_whatever_stands_beside_it() -> None:
    random = np.random.default_rng(3)
    letters = np.array(list(string.printable))
    words = ["".join(random.choice(letters, size)) for size in random.integers(0, 200, 500)]
    together = fingerprint64(words)
    assert together.tolist() == [int(fingerprint64([word])[0]) for word in words]
    assert fingerprint64(words[::-1]).tolist() == together[::-1].tolist()
    assert np.unique(together).size == len(set(words))


def test_buckets_are_filled_evenly() -> None:
    counts = np.bincount(hash_buckets(np.arange(50_000), 50), minlength=50)
    assert abs(counts - 1_000).max() < 6 * 1_000**0.5


def test_no_strings_are_no_hashes() -> None:
    nothing: list[Any] = [[], np.empty(0, object), np.empty(0, "S5")]
    for none in nothing:
        assert fingerprint64(none).shape == (0,)
    assert hash_buckets(np.empty(0, np.int64), 7).shape == (0,)


@pytest.mark.parametrize("buckets", [0, -1, 2**63, 1.5, True])
def test_a_number_of_buckets_that_cannot_be_is_refused(buckets: Any) -> None:
    with pytest.raises(InvalidConfig, match="the number of buckets is"):
        hash_buckets(["a"], buckets)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (["a", 3], WrongDtype),
        ([None], WrongDtype),
        (["\ud800"], WrongDtype),
        ("abc", WrongDtype),
        (b"abc", WrongDtype),
        (7, WrongDtype),
        (np.array([1.5]), WrongDtype),
        (np.array([["a"]]), WrongShape),
    ],
)
def test_what_is_no_string_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="strings must"):
        fingerprint64(wrong)
