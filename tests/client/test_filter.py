"""PyFilter: damo's counting Bloom filter, with its defects mended."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed import Parameters, PyFilter
from rockbed.errors import (
    InvalidConfig,
    RockbedError,
    StorageClosed,
    StorageCorrupt,
    StoreLocked,
    UnknownName,
    WrongDtype,
    WrongShape,
)

Open = Callable[..., PyFilter]
EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]


@pytest.fixture
def filter_at(tmp_path: Path) -> Iterator[Open]:
    """Opens filters in the test's own directory; small unless told otherwise."""
    made = []

    def make(**parameters: Any) -> PyFilter:
        given = {"capacity": 10_000, "count": 3, "path": tmp_path / "filter", **parameters}
        made.append(PyFilter(**given))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_key_passes_once_it_was_added_often_enough(filter_at: Open) -> None:
    counted = filter_at()
    assert counted.check(1, 77) is False
    for _ in range(2):
        counted.add(1, 77)
        assert counted.check(1, 77) is False
    counted.add(1, 77)
    assert counted.check(1, 77) is True
    assert counted.check(2, 77) is False
    assert counted.check(1, 78) is False


def test_num_is_honoured(filter_at: Open) -> None:
    counted = filter_at()
    counted.add(0, 5, 2)
    assert not counted.check(0, 5)
    counted.add(0, 5, num=0)
    assert not counted.check(0, 5)
    counted.add(0, 5, num=1)
    assert counted.check(0, 5)
    counted.add(0, 6, 10**30)
    assert counted.check(0, 6)


def test_arrays_do_what_single_calls_do(filter_at: Open, tmp_path: Path) -> None:
    one, other = filter_at(), filter_at(path=tmp_path / "other")
    keys = np.random.default_rng(1).integers(-300, 300, 2_000)
    for key in keys.tolist():
        one.add(4, key)
    other.add(4, keys[:1_500])
    other.add(4, keys[1_500:].view(np.uint64))
    everyone = np.arange(-400, 400)
    expected = [one.check(4, key) for key in everyone.tolist()]
    got = other.check(4, everyone)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, expected)
    assert 0 < got.sum() < 800
    other.add(5, np.array([1, 2, 1]), np.array([1, 3, 2]))
    np.testing.assert_array_equal(other.check(5, np.array([1, 2, 3])), [True, True, False])


def test_every_64_bit_key_works_signed_or_not(filter_at: Open) -> None:
    counted = filter_at(count=1)
    for key in EXTREMES:
        counted.add(65_535, key)
        assert counted.check(65_535, key)
    assert counted.check(65_535, np.uint64(2**64 - 1))
    assert counted.check(65_535, np.array([2**63, 2**64 - 1], np.uint64)).all()
    assert counted.check(65_535, np.array([-(2**63), -1])).all()
    assert not counted.check(65_535, 12345)


def test_strided_read_only_and_empty_arrays_are_fine(filter_at: Open) -> None:
    counted = filter_at(count=1)
    keys = np.arange(20)
    counted.add(0, keys[::2])
    keys.setflags(write=False)
    np.testing.assert_array_equal(counted.check(0, keys), keys % 2 == 0)
    counted.add(0, np.empty(0, np.int64))
    assert counted.check(0, np.empty(0, np.uint64)).shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5), st.integers(0, 6)), max_size=60), st.integers(1, 15))
def test_no_key_added_often_enough_is_missed(added: list[tuple[int, int, int]], count: int) -> None:
    # far too small, so that keys share counters
    settings: dict[str, Any] = {"capacity": 8, "fpr": 0.1, "count": count}
    with tempfile.TemporaryDirectory() as directory, PyFilter(path=f"{directory}/filter", **settings) as counted:
        model: dict[tuple[int, int], int] = {}
        for group, key, num in added:
            counted.add(group, key, num)
            model[group, key] = model.get((group, key), 0) + num
        for (group, key), total in model.items():
            assert counted.check(group, key) or total < count


@pytest.mark.parametrize("fpr", [0.05, 1e-2, 1e-3])
def test_at_capacity_no_more_strangers_pass_than_promised(filter_at: Open, fpr: float) -> None:
    n = 50_000
    keys = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 5 * n)
    counted = filter_at(capacity=n, fpr=fpr, count=1)
    counted.add(9, keys[:n])
    assert counted.check(9, keys[:n]).all()
    strangers = counted.check(9, keys[n:])
    # five standard deviations of a binomial share
    assert strangers.mean() <= fpr + 5 * np.sqrt(fpr / strangers.size)
    assert strangers.any()


def test_a_count_of_15_is_reached_and_stays_reached(filter_at: Open) -> None:
    counted = filter_at(count=15)
    counted.add(0, 1, 14)
    assert not counted.check(0, 1)
    for _ in range(20):
        counted.add(0, 1)
        assert counted.check(0, 1)


def test_a_reopened_filter_goes_on_and_count_may_change(filter_at: Open) -> None:
    with filter_at() as counted:
        counted.add(1, 5, 2)
        counted.flush()
    counted = filter_at()
    assert not counted.check(1, 5)
    counted.add(1, 5)
    assert counted.check(1, 5)
    counted.close()
    counted = filter_at(count=4)
    assert not counted.check(1, 5)
    counted.close()
    assert not filter_at(count=1, reload=False).check(1, 5)


def test_a_wrong_file_is_refused(filter_at: Open, tmp_path: Path) -> None:
    filter_at().close()
    with pytest.raises(InvalidConfig, match="capacity=10000"):
        filter_at(capacity=20_000)
    with pytest.raises(InvalidConfig, match="fpr"):
        filter_at(fpr=0.5)
    (tmp_path / "letter").write_text("precious")
    for reload in (True, False):
        with pytest.raises(StorageCorrupt, match="not a filter"):
            filter_at(path=tmp_path / "letter", reload=reload)
    with pytest.raises(RockbedError, match="not a regular file"):
        filter_at(path=tmp_path)


def test_two_at_a_time_are_refused(filter_at: Open) -> None:
    filter_at()
    with pytest.raises(StoreLocked):
        filter_at()


def test_parameters_keywords_and_aliases_build_the_same(tmp_path: Path) -> None:
    bag = Parameters()
    bag.insert("capacity", 100)
    bag.insert("count", 2)
    bag.insert("path", str(tmp_path / "filter"))
    bag.insert("fpr", 0.01)
    bag.insert("reload", True)
    with PyFilter(bag) as counted:
        counted.add(0, 1, 2)
        assert counted.path == tmp_path / "filter"
    aliases = {"max_element_size": 100, "filter_freq": 2, "false_positive_probability": 0.01}
    with PyFilter({"path": str(tmp_path / "filter")}, **aliases) as counted:
        assert counted.check(0, 1)
    with pytest.raises(InvalidConfig, match=r"twice.*count"):
        PyFilter(bag, count=3)
    with pytest.raises(InvalidConfig, match="mapping"):
        PyFilter("filter")  # type: ignore[arg-type]


def test_the_defaults_are_those_of_damo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with PyFilter() as counted:
        assert counted.path.parent == tmp_path
        assert counted.count == 15
        # 2^28 keys at 1e-3: half a byte for each of 14.4 counters
        assert abs(counted.path.stat().st_size - 14.378 * 2**27) < 1e5
        counted.add(0, 3, 15)
        assert counted.check(0, 3)
        assert counted.path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"count": 16}, InvalidConfig, "count=16 must be from 1 to 15"),
        ({"count": 0}, InvalidConfig, "count=0"),
        ({"count": True}, InvalidConfig, "count"),
        ({"capacity": 0}, InvalidConfig, "capacity"),
        ({"capacity": 1.5}, InvalidConfig, "capacity"),
        ({"fpr": 0}, InvalidConfig, "fpr"),
        ({"fpr": 1.0}, InvalidConfig, "fpr"),
        ({"fpr": 5e-324}, InvalidConfig, "fpr"),
        ({"fpr": float("nan")}, InvalidConfig, "fpr"),
        ({"path": 3}, InvalidConfig, "path"),
        ({"reload": "yes"}, InvalidConfig, "reload"),
        ({"count": 16, "capacity": -1, "fpr": 2}, InvalidConfig, "capacity.*count.*fpr"),
        (
            {"cuont": 3},
            UnknownName,
            "Did you mean 'count'.*Known: capacity or max_element_size, count or",
        ),
    ],
)
def test_bad_parameters_are_refused_with_every_problem(
    tmp_path: Path, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PyFilter(**{"path": str(tmp_path / "filter"), **parameters})
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused_and_count_nothing(filter_at: Open) -> None:
    counted = filter_at(count=1)
    keys = np.arange(3)
    calls: list[tuple[tuple[Any, ...], type[Exception]]] = [
        ((-1, 0), InvalidConfig),
        ((65_536, 0), InvalidConfig),
        ((1.0, 0), InvalidConfig),
        ((0, 2**64), WrongDtype),
        ((0, -(2**63) - 1), WrongDtype),
        ((0, 0.0), WrongDtype),
        ((0, True), WrongDtype),
        ((0, [0]), WrongDtype),
        ((0, keys.astype(np.int32)), WrongDtype),
        ((0, keys.reshape(1, 3)), WrongShape),
    ]
    for arguments, error in calls:
        with pytest.raises(error):
            counted.check(*arguments)
        with pytest.raises(error):
            counted.add(*arguments)
    nums: list[tuple[Any, type[Exception]]] = [
        (-1, InvalidConfig),
        (1.5, InvalidConfig),
        (True, InvalidConfig),
        (np.array([1, 1]), WrongShape),
        (np.array([1, 1, -1]), InvalidConfig),
        (np.ones(3), WrongDtype),
    ]
    for num, error in nums:
        with pytest.raises(error, match="num"):
            counted.add(0, keys, num)
    assert not counted.check(0, keys).any()


def test_a_closed_filter_says_so(filter_at: Open) -> None:
    counted = filter_at()
    counted.close()
    counted.close()
    for call in (lambda: counted.check(0, 1), lambda: counted.add(0, 1), counted.flush):
        with pytest.raises(StorageClosed, match="closed"):
            call()


def test_threads_lose_no_count(filter_at: Open) -> None:
    counted = filter_at(count=12, capacity=100_000)
    keys = np.arange(20_000)

    def add() -> None:
        for _ in range(3):
            counted.add(1, keys)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.check(1, keys).all()
