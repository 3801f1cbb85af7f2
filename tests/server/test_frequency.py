"""Which ids are frequent, against a dict; how many distinct ones there were; which journal entry began a step."""

import math
from typing import Any

import numpy as np
import pytest

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.server.distinct import DistinctCount
from rockbed.server.frequency import BloomFrequencies, BloomFrequency, Frequencies, Frequency, make_frequency
from rockbed.server.step_marks import StepMarks
from rockbed.types import I64, AnyArray


class Counts:
    """The same in Python, an id at a time; with room for every id. stop: where counts stop."""

    def __init__(self, enter: int, leave: int, half_life: int, stop: int = 1 << 62) -> None:
        self._enter, self._leave, self._half_life, self._stop = enter, leave, half_life, stop
        self.counts: dict[int, int] = {}
        self.frequent: set[int] = set()
        self.total = self.left = 0

    def count(self, keys: I64, counts: I64) -> list[bool]:
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self.counts[key] = min(self.counts.get(key, 0) + count, self._stop)
            if self.counts[key] >= self._enter:
                self.frequent.add(key)
        found = [key in self.frequent for key in keys.tolist()]
        before, self.total = self.total, self.total + int(counts.sum())
        if self._half_life:
            for _ in range(self.total // self._half_life - before // self._half_life):
                self.halve()
        return found

    def halve(self) -> None:
        self.counts = {key: count // 2 for key, count in self.counts.items() if count // 2}
        stay = {key for key in self.frequent if self.counts.get(key, 0) >= self._leave}
        self.left += len(self.frequent - stay)
        self.frequent = stay


@pytest.mark.parametrize(("enter", "leave", "half_life"), [(2, 1, 0), (5, 2, 700), (9, 8, 300), (3, 1, 40)])
def test_they_are_what_a_dict_counts(enter: int, leave: int, half_life: int) -> None:
    given = {"enter": enter, "leave": leave, "half_life": half_life}
    frequencies, model = Frequencies(Frequency(**given)), Counts(**given)
    rng = np.random.default_rng(1)
    for step in range(120):
        keys = np.unique(rng.zipf(1.3, 200) % 5000) - 2500
        counts = rng.integers(1, 4, keys.size)
        assert frequencies.count(keys, counts).tolist() == model.count(keys, counts)
        if step == 60:  # saved and read again
            state, frequencies = frequencies.state(), Frequencies(Frequency(**given))
            frequencies.restore(state)
    everything = np.arange(-2600, 2600)
    assert set(everything[frequencies.frequent(everything)].tolist()) == model.frequent
    assert (frequencies.frequent_ids, frequencies.left) == (len(model.frequent), model.left)
    assert frequencies.ids == len(model.counts)


@pytest.mark.parametrize(
    ("enter", "leave", "half_life", "stop", "most"),
    [
        (2, 1, 0, 15, 8),
        (5, 2, 700, 15, 8),
        (9, 8, 300, 255, 8),
        (15, 7, 700, 15, 8),
        (30, 3, 900, 255, 8),
        (300, 200, 40_000, 65_535, 200),
    ],
)
def test_with_room_enough_a_bloom_filter_counts_the_same_up_to_where_counters_stop(
    enter: int, leave: int, half_life: int, stop: int, most: int
) -> None:
    given = {"enter": enter, "leave": leave, "half_life": half_life}
    rule = BloomFrequency(**given, capacity=6000, fpr=1e-9)
    frequencies, model = rule.build(3, 7), Counts(**given, stop=stop)
    rng = np.random.default_rng(1)
    for step in range(120):
        keys = np.unique((rng.zipf(1.3, 200) + step // 20 * 10) % 5000) - 2500  # others are popular later
        counts = rng.integers(1, most, keys.size, endpoint=True)
        assert frequencies.count(keys, counts).tolist() == model.count(keys, counts)
        if step == 60:  # saved and read again
            state, frequencies = frequencies.state(), rule.build(3, 7)
            frequencies.restore(state)
    everything = np.arange(-2600, 2600)
    assert set(everything[frequencies.frequent(everything)].tolist()) == model.frequent
    # estimated, from as many bits as there were ids
    assert frequencies.ids == pytest.approx(len(model.counts), rel=0.05, abs=2)
    assert frequencies.frequent_ids == pytest.approx(len(model.frequent), rel=0.05, abs=2)
    assert frequencies.left == pytest.approx(model.left, rel=0.1, abs=2)
    assert model.left > 0 or not half_life


@pytest.mark.parametrize(("fpr", "over"), [(0.1, 1), (0.01, 1), (0.01, 3)])
def test_a_bloom_filter_is_never_too_late_and_as_seldom_too_early_as_the_formula_says(fpr: float, over: int) -> None:
    ids = np.arange(10_000 * over)
    rule = BloomFrequency(enter=20, leave=5, half_life=15 * ids.size, capacity=10_000, fpr=fpr)
    bloom, exact = rule.build(1, 2), Counts(20, 5, 15 * ids.size, stop=255)
    rng = np.random.default_rng(4)
    for _ in range(20):
        keys, counts = np.unique(rng.choice(ids, ids.size), return_counts=True)
        found, wanted = bloom.count(keys, counts), np.array(exact.count(keys, counts))
        assert not (wanted & ~found).any()
    m, k = math.ceil(10_000 * -math.log(fpr) / math.log(2) ** 2), math.ceil(-math.log2(fpr))
    chance = (1 - math.exp(-k * ids.size / m)) ** k
    frequent = np.isin(ids, list(exact.frequent))
    assert 0.1 < frequent.mean() < 0.9
    wrong = (bloom.frequent(ids) & ~frequent).sum()
    assert wrong <= ids.size * chance + 5 * math.sqrt(ids.size * chance)


def test_the_memory_of_a_bloom_filter_is_what_capacity_and_rate_say() -> None:
    for enter, leave, bits in ((15, 7, 4), (15, 8, 8), (16, 1, 8), (255, 1, 8), (256, 1, 16), (65_535, 32_767, 16)):
        bloom = BloomFrequency(enter=enter, leave=leave, capacity=100_000, fpr=0.01).build(0, 0)
        assert bloom.memory_bytes() == pytest.approx(958_506 * (bits + 1) / 8, abs=4)
        bloom.count(np.arange(300_000), np.ones(300_000, np.int64))
        assert bloom.memory_bytes() == pytest.approx(958_506 * (bits + 1) / 8, abs=4)


def test_an_id_whose_counter_has_stopped_stays_frequent_when_it_is_halved_once() -> None:
    bloom = BloomFrequency(enter=15, leave=8, half_life=100).build(0, 0)
    for _ in range(5):
        assert bloom.count(np.array([1]), np.array([100])).all()
        assert bloom.frequent(np.array([1])).all()
    assert bloom.left == 0


def test_a_filter_of_another_shape_begins_anew() -> None:
    state = _counted(BloomFrequency(enter=3, capacity=1000)).state()
    for other in ({"capacity": 1001}, {"fpr": 0.02}, {"enter": 16}):
        given: dict[str, Any] = {"enter": 3, "capacity": 1000, **other}
        again = BloomFrequency(**given).build(0, 0)
        again.restore(state)
        assert not again.frequent(np.array([1, 2])).any()
        assert (again.ids, again.frequent_ids) == (0, 0)
        assert again.count(np.array([1]), np.array([given["enter"] - 1])).tolist() == [False]
    same = BloomFrequency(enter=4, leave=3, capacity=1000).build(0, 0)
    same.restore(state)
    assert same.frequent(np.array([1, 2])).tolist() == [True, False]


def test_counters_that_are_damaged_are_refused() -> None:
    rule = BloomFrequency(enter=3, capacity=1000)
    state = _counted(rule).state()
    wrong: list[tuple[str, AnyArray]] = [("words", state["words"][1:]), ("frequent", state["frequent"].view(np.int16))]
    for name, damaged in wrong:
        with pytest.raises(ValueError, match=r"int16\["):
            rule.build(0, 0).restore({**state, name: damaged})
    for name in ("words", "frequent", "rule", "total"):
        with pytest.raises(KeyError):
            rule.build(0, 0).restore({each: value for each, value in state.items() if each != name})


def _counted(rule: BloomFrequency) -> BloomFrequencies:
    """An id that was seen five times, and one that was twice."""
    bloom = rule.build(0, 0)
    assert bloom.count(np.array([1, 2]), np.array([5, 2])).tolist() == [True, False]
    return bloom


def test_memory_is_bounded_and_rare_ids_are_forgotten_first() -> None:
    frequencies = Frequencies(Frequency(enter=50, leave=10, keys_max=1000))
    often = np.arange(100)
    frequencies.count(often, np.full(100, 64))
    for start in range(1000, 20_000, 100):
        frequencies.count(np.arange(start, start + 100), np.ones(100, np.int64))
        frequencies.count(often, np.full(100, 8))
        assert frequencies.ids <= 1000
        assert frequencies.frequent(often).all()
        assert frequencies.frequent_ids == 100
    assert frequencies.memory_bytes() < 48_000


def test_as_many_halvings_as_multiples_are_passed() -> None:
    frequencies = Frequencies(Frequency(enter=100, half_life=10))
    assert frequencies.count(np.array([1]), np.array([1000])).tolist() == [True]  # then halved to nothing
    assert not frequencies.frequent(np.array([1])).any()
    assert frequencies.ids == 0


@pytest.mark.parametrize(
    ("threshold", "error", "said"),
    [
        ({"name": "frequency", "enter": 2, "leaves": 1}, UnknownName, "leaves"),
        ({"name": "frequency", "enter": 2.5}, InvalidConfig, "enter must be of type int"),
        ({"name": "frequency", "enter": 5, "keys_max": 0}, InvalidConfig, "keys_max=0"),
        ({"enter": 5}, InvalidConfig, "give a mapping like"),
        ({"name": "often", "enter": 5}, UnknownName, "counting_bloom, frequency"),
        ({"name": "counting_bloom", "enter": 5, "keys_max": 9}, UnknownName, "capacity"),
        ({"name": "counting_bloom", "enter": 5, "leave": 5}, InvalidConfig, "leave=5 must be below enter=5"),
        ({"name": "counting_bloom", "enter": 5, "capacity": 0}, InvalidConfig, "capacity=0 must be from 1"),
        ({"name": "counting_bloom", "enter": 5, "fpr": 1.0}, InvalidConfig, "fpr=1.0 must be in"),
        ({"name": "counting_bloom", "enter": 65_536}, InvalidConfig, "enter=65536 and twice leave=1 must be at most"),
        ({"name": "counting_bloom", "enter": 60_000, "leave": 32_768}, InvalidConfig, "twice leave=32768"),
    ],
)
def test_thresholds_that_cannot_be(threshold: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        make_frequency(threshold)


@pytest.mark.parametrize("n", [0, 1, 100, 5_000, 40_000, 60_000, 1_000_000])
def test_distinct_keys_are_estimated(n: int) -> None:
    count = DistinctCount()
    keys = np.arange(n) * 977 - 5
    for part in np.array_split(np.concatenate([keys, keys[::-1]]), 7):  # each twice
        count.note(part)
    assert count.estimate() == pytest.approx(n, rel=0.04)  # five standard errors
    again = DistinctCount()
    again.restore(count.registers)
    assert again.estimate() == count.estimate()


def test_a_damaged_estimate_is_refused() -> None:
    wrong: list[AnyArray] = [np.zeros(5, np.uint8), np.full(1 << 14, 200, np.uint8), np.zeros(1 << 14, np.int64)]
    for damaged in wrong:
        with pytest.raises(ValueError, match="registers"):
            DistinctCount().restore(damaged)


def test_every_step_is_marked_at_first() -> None:
    marks = StepMarks()
    for step in range(10, 400, 3):
        marks.note(step, 1000 + step)
        marks.note(step, 2000 + step)  # later pushes of a step begin no other
    assert [marks.lsn_of(step) for step in (9, 10, 13)] == [0, 1010, 1013]
    # what was pushed at 10 is older than a step at which there was no push, and all is older than one to come
    assert [marks.lsn_of(step) for step in (11, 5000)] == [2011, 2398]
    again = StepMarks(marks.snapshot())
    again.note(5, 9000)  # a trainer that begins anew
    assert [again.lsn_of(step) for step in (397, 398)] == [1397, 9001]


def test_marks_that_are_thinned_out_stay_near_enough() -> None:
    marks = StepMarks()
    for step in range(1, 100_001):
        marks.note(step, 10 * step)
    snapshot = marks.snapshot()
    assert len(snapshot) <= 513
    steps, ends = np.array(snapshot)[:, [0, 2]].T
    assert (ends[:-1] == steps[1:] - 1).all()
    assert (np.diff(steps) <= np.maximum(1, (100_000 - steps[:-1]) / 16)).all()
    assert steps[0] == 1
    for step in (1, 70_000, 99_000, 100_000):
        lsn = marks.lsn_of(step)
        assert 0 <= 10 * step - lsn <= 10 * (100_000 - lsn / 10) / 16


def test_steps_without_a_push_are_told_from_marks_that_became_one() -> None:
    marks = StepMarks()
    pushed = np.unique(np.random.default_rng(3).integers(1, 200_000, 3000)).tolist()
    for step in pushed:
        marks.note(step, 10 * step)
    for step in range(1, 200_000, 777):
        before = max((each for each in pushed if each < step), default=0)
        lsn, oldest = marks.lsn_of(step), step - (200_000 - step) / 16
        # nothing of this step or later ones is older than it
        assert lsn <= (10 * step if step in pushed else 10 * before + 1)
        assert not [each for each in pushed if each < oldest and 10 * each >= lsn]
