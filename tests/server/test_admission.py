"""rockbed.server.admission against dict models: what is counted, who is admitted and when, and what is remembered."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.server.admission import Admission, checked_admission, make_admission
from rockbed.types import I64, AnyArray
from tests.splitmix import GAMMA, MASK, mix64

MIN_COUNT: dict[str, Any] = {"name": "min_count", "count": 3}
BLOOM: dict[str, Any] = {"name": "counting_bloom", "count": 3, "capacity": 10_000, "fpr": 1e-6}
PROBABILITY: dict[str, Any] = {"name": "probability", "p": 0.3}
ALL_RULES = pytest.mark.parametrize("config", [MIN_COUNT, BLOOM, PROBABILITY], ids=lambda config: config["name"])

KEYS = st.one_of(st.integers(-3, 40), st.sampled_from([0, -(2**63), 2**63 - 1]))
BATCHES = st.lists(st.dictionaries(KEYS, st.integers(1, 5), max_size=12), max_size=12)


def rule(config: dict[str, Any], group: int = 1, seed: int = 0) -> Admission:
    return make_admission(config, group=group, seed=seed)


def array(*values: int) -> I64:
    return np.array(values, np.int64)


def batches_of(batches: list[dict[int, int]]) -> list[tuple[I64, I64]]:
    return [(array(*batch), array(*batch.values())) for batch in batches]


def saved_and_loaded(state: dict[str, AnyArray]) -> dict[str, AnyArray]:
    """Through a file, as the engine does it."""
    file = io.BytesIO()
    np.savez(file, **dict[str, Any](state))
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def draws(p: float, seed: int, group: int, key: int, n: int) -> bool:
    """Whether the n-th sighting of a key admits it, n from 1."""
    stream = mix64((mix64(seed ^ 0xA0761D6478BD642F) + (group + 1) * GAMMA) & MASK)
    return mix64((mix64(stream ^ (key & MASK)) + n * GAMMA) & MASK) < int(p * 2**64)


class Model:
    """Exact counting, key by key; `admits(key, before, after)` is the rule."""

    def __init__(self, admits: Any, keys_max: int = 1 << 24) -> None:
        self.admits = admits
        self.keys_max = keys_max
        self.counts: dict[int, int] = {}
        self.admitted: set[int] = set()
        self.aged = False

    def age(self) -> None:
        self.counts = {key: count for key, count in self.counts.items() if key not in self.admitted}
        self.admitted.clear()
        while len(self.counts) > self.keys_max * 3 // 4:
            self.counts = {key: count // 2 for key, count in self.counts.items() if count > 1}
        self.aged = True

    def admit(self, batch: dict[int, int]) -> list[bool]:
        got = []
        for key, count in batch.items():
            if key not in self.counts and len(self.counts) == self.keys_max:
                self.age()
            before = self.counts.get(key, 0)
            self.counts[key] = before + count
            if self.admits(key, before, before + count):
                self.admitted.add(key)
            got.append(key in self.admitted)
        return got

    def seen(self, key: int) -> int:
        return self.counts.get(key, -1 if self.aged else 0)


# --- min_count ---


@given(BATCHES, st.integers(2, 9), st.one_of(st.integers(1, 20), st.just(1 << 24)))
def test_min_count_is_the_dict_model_aging_included(batches: list[dict[int, int]], count: int, keys_max: int) -> None:
    admission = rule({"name": "min_count", "count": count, "keys_max": keys_max})
    model = Model(lambda key, before, after: after >= count, keys_max)
    everyone = array(*{key for batch in batches for key in batch})
    for batch, (keys, counts) in zip(batches, batches_of(batches), strict=True):
        assert admission.admit(keys, counts).tolist() == model.admit(batch)
        assert admission.seen(everyone).tolist() == [model.seen(key) for key in everyone.tolist()]
        assert admission.is_admitted(everyone).tolist() == [key in model.admitted for key in everyone.tolist()]


def test_occurrences_within_one_batch_count() -> None:
    admission = rule(MIN_COUNT)
    assert admission.admit(array(1, 2), array(2, 3)).tolist() == [False, True]
    assert admission.admit(array(1), array(1)).tolist() == [True]
    assert admission.seen(array(1, 2, 3)).tolist() == [3, 3, 0]


def test_asking_does_not_count() -> None:
    admission = rule(MIN_COUNT)
    for _ in range(5):
        assert not admission.is_admitted(array(1)).any()
    assert admission.seen(array(1)).tolist() == [0]


@pytest.mark.parametrize("config", [{**MIN_COUNT, "count": 1}, {**BLOOM, "count": 1}, {**PROBABILITY, "p": 1}])
def test_a_rule_that_admits_at_first_sight_admits_a_push_as_well(config: dict[str, Any]) -> None:
    admission = rule(config)
    assert admission.is_admitted(array(7)).all()
    assert admission.admit(array(7, -7), array(1, 1)).all()
    assert admission.is_admitted(array(7, 8)).all()


def test_an_exact_rule_that_admits_everybody_remembers_nobody() -> None:
    admission = rule({"name": "min_count", "count": 1})
    before = admission.memory_bytes()
    assert admission.admit(np.arange(100_000), np.ones(100_000, np.int64)).all()
    assert admission.memory_bytes() == before
    assert admission.seen(array(5)).tolist() == [-1]


def test_counts_survive_the_growing_of_the_table() -> None:
    admission = rule(MIN_COUNT)
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 200_000)
    for part in np.array_split(keys, 7):
        assert not admission.admit(part, np.full(part.size, 2)).any()
    np.testing.assert_array_equal(admission.seen(keys), 2)
    assert admission.admit(keys, np.ones(keys.size, np.int64)).all()
    assert admission.memory_bytes() <= 48 * 200_000 + 1_000


def test_memory_is_bounded_by_keys_max_and_admitted_keys_are_forgotten_first() -> None:
    admission = rule({"name": "min_count", "count": 3, "keys_max": 4_000})
    admission.admit(np.arange(3_000), np.full(3_000, 3))  # admitted
    admission.admit(np.arange(3_000, 4_000), np.full(1_000, 2))  # waiting, and the table is full
    assert admission.is_admitted(np.arange(3_000)).all()
    admission.admit(array(4_000), array(1))
    assert admission.seen(array(0, 3_000, 3_999, 4_000)).tolist() == [-1, 2, 2, 1]
    assert not admission.is_admitted(np.arange(4_001)).any()
    for start in range(5_000, 105_000, 5_000):  # batches of more keys than may be remembered
        assert not admission.admit(np.arange(start, start + 5_000), np.ones(5_000, np.int64)).any()
    assert (admission.seen(np.arange(200_000)) > 0).sum() <= 4_000
    assert admission.memory_bytes() <= 24 * 4_000 + 1_000


def test_aging_halves_until_a_quarter_is_free() -> None:
    admission = rule({"name": "min_count", "count": 100, "keys_max": 8})
    admission.admit(np.arange(8), array(1, 1, 2, 3, 4, 5, 9, 99))
    admission.admit(array(8), array(6))
    # halved once: 0 and 1 are gone, six are left
    assert admission.seen(np.arange(9)).tolist() == [-1, -1, 1, 1, 2, 2, 4, 49, 6]
    assert admission.admit(array(7), array(51)).tolist() == [True]


# --- probability ---


@given(BATCHES, st.floats(0.01, 1), st.integers(0, 2**64 - 1), st.integers(0, 65535))
def test_probability_is_its_specification(batches: list[dict[int, int]], p: float, seed: int, group: int) -> None:
    admission = rule({"name": "probability", "p": p}, group, seed)
    model = Model(lambda key, before, after: any(draws(p, seed, group, key, n) for n in range(before + 1, after + 1)))
    for batch, (keys, counts) in zip(batches, batches_of(batches), strict=True):
        assert admission.admit(keys, counts).tolist() == model.admit(batch)


def test_probability_does_not_depend_on_how_sightings_fall_into_batches() -> None:
    keys = np.arange(-2_000, 2_000)
    one_by_one, at_once, reversed_order = (rule(PROBABILITY) for _ in range(3))
    for _ in range(4):
        last = one_by_one.admit(keys, np.ones(keys.size, np.int64))
    np.testing.assert_array_equal(at_once.admit(keys, np.full(keys.size, 4)), last)
    reversed_order.admit(np.ascontiguousarray(keys[::-1]), np.full(keys.size, 3))
    again = [bool(reversed_order.admit(keys[i : i + 1], array(1))[0]) for i in range(keys.size)]
    np.testing.assert_array_equal(again, last)


def test_the_sighting_that_admits_is_geometric_and_differs_between_keys_seeds_and_groups() -> None:
    n, p = 100_000, 0.2
    keys = np.arange(n)
    admission = rule({"name": "probability", "p": p}, seed=12)
    for sighting in range(1, 9):
        share = admission.admit(keys, np.ones(n, np.int64)).mean()
        expected = 1 - (1 - p) ** sighting
        # five standard deviations of a binomial share
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)
    first = [rule({"name": "probability", "p": p}, group, seed).admit(keys, np.ones(n, np.int64))
             for group, seed in ((1, 0), (2, 0), (1, 1))]  # fmt: skip
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((first[a] & first[b]).mean() - p * p) < 5 * np.sqrt(p * p / n)


def test_an_admitted_key_stays_admitted() -> None:
    admission = rule(PROBABILITY)
    keys = np.arange(1_000)
    admitted = admission.admit(keys, np.full(1_000, 2))
    np.testing.assert_array_equal(admission.is_admitted(keys), admitted)
    for _ in range(3):
        assert admission.admit(keys[admitted], np.ones(admitted.sum(), np.int64)).all()


def test_the_smallest_probability_admits_nobody_soon() -> None:
    assert not rule({"name": "probability", "p": 1e-15}).admit(np.arange(1_000), np.full(1_000, 1_000)).any()


# --- counting_bloom ---


@given(BATCHES, st.integers(1, 9), st.sampled_from([1, 3, 100]))
def test_a_bloom_filter_is_never_too_late(batches: list[dict[int, int]], count: int, capacity: int) -> None:
    admission = rule({"name": "counting_bloom", "count": count, "capacity": capacity, "fpr": 0.1})
    model = Model(lambda key, before, after: after >= count)
    for batch, (keys, counts) in zip(batches, batches_of(batches), strict=True):
        must = np.array(model.admit(batch), np.bool_)
        assert admission.admit(keys, counts)[must].all()
        assert admission.is_admitted(keys)[must].all()
        assert (admission.seen(keys) >= [min(model.seen(key), count) for key in batch]).all()


@pytest.mark.parametrize(("count", "width"), [(15, 4), (16, 8), (255, 8), (256, 16), (65_535, 16)])
def test_a_bloom_filter_counts_exactly_where_it_has_room_in_counters_as_narrow_as_they_can_be(
    count: int, width: int
) -> None:
    admission = rule({"name": "counting_bloom", "count": count, "capacity": 10_000, "fpr": 1e-9})
    keys = np.arange(500)
    assert not admission.admit(keys, np.full(500, count - 1)).any()
    np.testing.assert_array_equal(admission.seen(keys), count - 1)
    assert admission.admit(keys, np.full(500, 2**62)).all()  # and no overflow
    np.testing.assert_array_equal(admission.seen(keys), count)
    counters = int(np.ceil(-np.log(1e-9) / np.log(2) ** 2 * 10_000))
    assert abs(admission.memory_bytes() - counters * width / 8) < 2


@pytest.mark.parametrize("fpr", [0.1, 0.01, 0.001])
def test_a_full_bloom_filter_admits_too_early_at_most_the_share_promised(fpr: float) -> None:
    n = 50_000
    keys = np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 3 * n)
    ones = np.ones(n, np.int64)
    admission = rule({"name": "counting_bloom", "count": 2, "capacity": n, "fpr": fpr})
    early = admission.admit(keys[:n], ones).mean()
    strangers = admission.seen(keys[n:]) > 0  # after n keys: the false positives of the plain filter
    assert early <= fpr
    assert strangers.mean() <= fpr + 5 * np.sqrt(fpr / strangers.size)
    assert admission.admit(keys[:n], ones).all()


# --- saving ---


@ALL_RULES
def test_counts_go_on_after_restoring(config: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    one, other = rule(config, 5, 6), rule(config, 5, 6)
    keys = np.arange(3_000)
    one.admit(keys, rng.integers(1, 3, keys.size))
    state = one.state()
    stored = saved_and_loaded(state)
    other.admit(keys[:10], np.ones(10, np.int64))  # what was counted before restoring is gone
    other.restore(stored)
    for method in ("is_admitted", "seen"):
        np.testing.assert_array_equal(getattr(other, method)(np.arange(4_000)), getattr(one, method)(np.arange(4_000)))
    more = rng.integers(1, 3, keys.size)
    np.testing.assert_array_equal(other.admit(keys, more), one.admit(keys, more))
    for name, before in stored.items():  # a copy, and one that is not worked on
        np.testing.assert_array_equal(state[name], before)
    assert other.memory_bytes() <= 2 * one.memory_bytes()


def test_what_was_forgotten_is_unknown_after_restoring_too() -> None:
    one, other = (rule({**MIN_COUNT, "keys_max": 8}) for _ in range(2))
    one.admit(np.arange(9), np.ones(9, np.int64))
    other.restore(saved_and_loaded(one.state()))
    assert other.seen(array(0, 8)).tolist() == [-1, 1]


def test_counts_are_kept_when_count_or_keys_max_change() -> None:
    old, new = rule(MIN_COUNT), rule({**MIN_COUNT, "count": 5, "keys_max": 100})
    old.admit(np.arange(1_000), np.where(np.arange(1_000) < 10, 3, 2))
    new.restore(saved_and_loaded(old.state()))
    assert new.admit(array(3, 900), array(1, 2)).tolist() == [True, False]  # admitted once, admitted now
    assert new.admit(array(900), array(1)).tolist() == [True]
    new.admit(array(5_000), array(1))  # too many: aged
    assert (new.seen(np.arange(6_000)) > 0).sum() <= 100


@pytest.mark.parametrize(
    "other",
    [
        {**PROBABILITY, "p": 0.5},
        {**BLOOM, "capacity": 20_000},
        {**BLOOM, "fpr": 0.1},
        {**BLOOM, "count": 20},  # wider counters
    ],
)
@ALL_RULES
def test_counts_of_another_rule_are_not_taken_over(config: dict[str, Any], other: dict[str, Any]) -> None:
    old, new = rule(config), rule(other)
    old.admit(np.arange(100), np.full(100, 2))
    new.admit(np.arange(50), np.ones(50, np.int64))
    new.restore(saved_and_loaded(old.state()))
    np.testing.assert_array_equal(new.seen(np.arange(100)), 0)


@pytest.mark.parametrize("config", [PROBABILITY, BLOOM])
@pytest.mark.parametrize(("group", "seed"), [(2, 0), (1, 1)])
def test_hashed_counts_are_of_one_group_and_seed(config: dict[str, Any], group: int, seed: int) -> None:
    old, new = rule(config), rule(config, group, seed)
    old.admit(np.arange(100), np.full(100, 2))
    new.restore(old.state())
    np.testing.assert_array_equal(new.seen(np.arange(100)), 0)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (MIN_COUNT, {"keys": array(1, 1)}),
        (MIN_COUNT, {"keys": array(1)}),
        (MIN_COUNT, {"counts": array(1, 0)}),
        (MIN_COUNT, {"counts": array(1)}),
        (MIN_COUNT, {"counts": np.ones((2, 1), np.int64)}),
        (MIN_COUNT, {"counts": np.ones(2)}),
        (PROBABILITY, {"keys": np.ones(2, np.int32)}),
        (BLOOM, {"words": np.zeros(7, np.uint16)}),
        (BLOOM, {"words": np.zeros(7, np.float64)}),
    ],
)
def test_a_damaged_state_is_refused(config: dict[str, Any], change: dict[str, AnyArray]) -> None:
    admission = rule(config)
    admission.admit(array(1, 2), array(1, 1))
    state = admission.state()
    with pytest.raises(ValueError, match=r"count|key"):
        admission.restore({**state, **change})
    for name in state:
        with pytest.raises(KeyError, match=name):
            admission.restore({other: value for other, value in state.items() if other != name})


# --- settings ---


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, InvalidConfig, "give a mapping like.*min_count"),
        ({"name": "lottery"}, UnknownName, "counting_bloom, min_count, probability"),
        ({"name": 3}, InvalidConfig, "must be a str"),
        (3, InvalidConfig, "mapping"),
        ({"name": "min_count"}, InvalidConfig, "count must be given"),
        ({"name": "min_count", "count": 0}, InvalidConfig, "count=0 must be at least 1"),
        ({"name": "min_count", "count": 2.5}, InvalidConfig, "count must be of type int"),
        ({"name": "min_count", "count": True}, InvalidConfig, "count"),
        ({"name": "min_count", "count": 2, "keys_max": 0}, InvalidConfig, "keys_max"),
        ({"name": "min_count", "count": 2, "filter_freq": 2}, InvalidConfig, "same parameter"),
        ({"name": "min_count", "cuont": 2}, UnknownName, "Did you mean 'count'"),
        ({"name": "min_count", "count": 0, "keys_max": -1}, InvalidConfig, "count=0.*keys_max=-1"),
        ({"name": "counting_bloom", "count": 65_536}, InvalidConfig, "65535"),
        ({"name": "counting_bloom", "count": 0, "capacity": 0, "fpr": 1}, InvalidConfig, "count=.*capacity=.*fpr="),
        ({"name": "counting_bloom", "count": 2, "fpr": 0.0}, InvalidConfig, "fpr"),
        ({"name": "counting_bloom", "count": 2, "fpr": 1e-300}, InvalidConfig, "fpr"),
        ({"name": "counting_bloom", "count": 2, "capacity": 1 << 60}, InvalidConfig, "capacity"),
        ({"name": "probability"}, InvalidConfig, "p must be given"),
        ({"name": "probability", "p": 0}, InvalidConfig, "p=0"),
        ({"name": "probability", "p": 1.01}, InvalidConfig, "p=1.01"),
        ({"name": "probability", "p": float("nan")}, InvalidConfig, "p=nan"),
        ({"name": "probability", "p": "half"}, InvalidConfig, "p must be of type float"),
    ],
)
def test_a_bad_setting_is_refused_with_every_problem(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_admission(config)
    with pytest.raises(error, match=message):
        make_admission(config, group=0, seed=0)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "min_count", "filter_freq": 3},
        {"name": "counting_bloom", "filter_freq": 3, "max_element_size": 1_000, "false_positive_probability": 1e-4},
    ],
)
def test_deeprec_names_of_parameters_are_taken(config: dict[str, Any]) -> None:
    checked_admission(config)
    admission = rule(config)
    assert [bool(admission.admit(array(4), array(1))[0]) for _ in range(4)] == [False, False, True, True]


@ALL_RULES
def test_empty_batches_are_fine(config: dict[str, Any]) -> None:
    admission = rule(config)
    assert admission.admit(array(), array()).shape == (0,)
    assert admission.is_admitted(array()).shape == (0,)
    assert admission.seen(array()).shape == (0,)
    admission.restore(admission.state())
