"""Groups by name: the catalogue finds the same rows again, and no two groups have the same name."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rockbed import DimMismatch, GroupConflict, InvalidConfig, PyEmbedding, PyStorage, UnknownGroup
from rockbed.config import NAMED_GROUPS
from tests.api.helpers import (
    OpenStorage,
    adagrad,
    as_after_kill,
    assert_sound,
    engine_of,
    keys_of,
    ones,
    sgd,
    uniform,
    zeros,
)
from tests.api.variables import names_of_one_number


def named(storage: PyStorage, name: str | int = "user", dim: int = 4, **options: Any) -> PyEmbedding:
    return PyEmbedding(storage, sgd(), uniform(), dim, name, **options)


def test_a_name_finds_the_same_rows_after_a_reopening(open_storage: OpenStorage) -> None:
    with open_storage() as storage:
        users = named(storage)
        assert users.name == "user"
        assert users.group >= NAMED_GROUPS
        users.apply_gradients(keys_of(1, 2), ones(2))
        rows = users.lookup(keys_of(1, 2))
        assert storage.names() == {"user": users.group}
    with open_storage() as storage:
        again = named(storage)
        assert (again.group, again.name) == (users.group, "user")
        assert (again.lookup(keys_of(1, 2), train=False) == rows).all()
        assert storage.groups()[again.group].name == "user"
        assert_sound(storage)


def test_a_name_finds_its_rows_after_a_crash_without_a_flush(open_storage: OpenStorage, tmp_path: Any) -> None:
    storage = open_storage()
    users = named(storage)
    users.apply_gradients(keys_of(1), ones(1))
    with PyStorage(as_after_kill(storage, tmp_path / "image")) as after:
        assert after.names() == {"user": users.group}
        assert (named(after).lookup(keys_of(1), train=False) == users.lookup(keys_of(1))).all()


def test_first_rows_do_not_depend_on_the_order_in_which_names_come(open_storage: OpenStorage) -> None:
    first, second = open_storage("one"), open_storage("two")
    a, b = named(first, "a"), named(first, "b")
    there_b, there_a = named(second, "b"), named(second, "a")
    for mine, theirs in ((a, there_a), (b, there_b)):
        assert (mine.lookup(np.arange(9)) == theirs.lookup(np.arange(9))).all()
    assert (a.lookup(np.arange(9)) != b.lookup(np.arange(9))).any()


def test_two_names_that_point_to_one_number_get_two(storage: PyStorage) -> None:
    one, other = names_of_one_number()
    first, second = named(storage, one), named(storage, other)
    assert first.group != second.group
    assert storage.names() == {one: first.group, other: second.group}
    assert named(storage, other).group == second.group


def test_many_threads_that_open_one_name_get_one_group(storage: PyStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        groups = list(pool.map(lambda i: named(storage, f"name_{i % 2}").group, range(32)))
    assert len(set(groups)) == 2
    assert sorted(storage.names()) == ["name_0", "name_1"]


def test_another_dim_or_optimizer_under_the_name_is_an_error_that_names_it(storage: PyStorage) -> None:
    named(storage)
    with pytest.raises(DimMismatch, match=r"'user'.*dim 4.*not 8"):
        named(storage, dim=8)
    with pytest.raises(GroupConflict, match=r"'user'.*'sgd'.*'adagrad'"):
        PyEmbedding(storage, adagrad(), uniform(), 4, "user")
    assert list(storage.names()) == ["user"]


def test_opened_by_its_number_a_group_keeps_its_name(storage: PyStorage) -> None:
    users = named(storage, variable={"kind": "kv"})
    by_number = named(storage, users.group)
    assert by_number.name == "user"
    assert by_number.config.variable == {"kind": "kv"}
    by_number.alter(ttl=60)
    assert storage.groups()[users.group].name == "user"
    assert storage.groups()[users.group].ttl_s == 60


def test_a_dropped_name_is_free_and_begins_anew(storage: PyStorage) -> None:
    users = named(storage)
    first = users.lookup(keys_of(5))
    users.apply_gradients(keys_of(5), ones(1))
    storage.drop_group(users.group)
    assert storage.names() == {}
    with pytest.raises(UnknownGroup):
        users.lookup(keys_of(5))
    again = named(storage)
    assert again.group == users.group
    assert (again.lookup(keys_of(5)) == first).all()


def test_what_a_variable_says_is_kept_and_only_its_parts_may_change(open_storage: OpenStorage) -> None:
    said = {"kind": "kv", "key_dtype": "int64", "parts": 5}
    with open_storage() as storage:
        assert named(storage, variable=said).config.variable == said
        with pytest.raises(GroupConflict, match=r"variable is .*int64.*not .*string"):
            named(storage, variable={**said, "key_dtype": "string"})
        with pytest.raises(GroupConflict, match=r"open in this storage with other settings.*variable parts 5 / 3"):
            named(storage, variable={**said, "parts": 3})
    with open_storage() as storage:
        assert named(storage, variable={**said, "parts": 3}).config.variable == {**said, "parts": 3}


@pytest.mark.parametrize("name", ["", " user", "user ", "a\nb", "a\x00", "n" * 256, "ü" * 128])
def test_a_name_that_cannot_be_is_refused(storage: PyStorage, name: str) -> None:
    with pytest.raises(InvalidConfig, match="name is"):
        named(storage, name)
    assert storage.groups() == {}


@pytest.mark.parametrize("name", ["user", "ü" * 127, "a/b/part_3", "日本", "n" * 255, "7"])
def test_a_name_may_be_any_that_prints(storage: PyStorage, name: str) -> None:
    group = named(storage, name).group
    assert storage.names() == {name: group}


@pytest.mark.parametrize("variable", [{"a": float("nan")}, {"a": "x" * 5000}, {1: 2}, {"a": {1, 2}}])
def test_what_is_no_small_json_is_no_variable(storage: PyStorage, variable: Any) -> None:
    with pytest.raises(InvalidConfig, match="variable is"):
        named(storage, variable=variable)


def test_an_import_finds_groups_by_their_names(open_storage: OpenStorage, tmp_path: Any) -> None:
    one, other = names_of_one_number()
    here, there = open_storage("here"), open_storage("there")
    rows = named(here, other)  # has the number that both names point to
    rows.apply_gradients(np.arange(50), ones(50))
    here.export(tmp_path / "export", format="npz", slots=True)
    stranger = named(there, one)
    before = stranger.lookup(np.arange(50))
    assert stranger.group == rows.group

    report = there.import_(tmp_path / "export")

    number = there.names()[other]
    assert number != rows.group
    assert report.groups_created == [number]
    assert report.rows_written == {number: 50}
    assert (named(there, other).lookup(np.arange(50), train=False) == rows.lookup(np.arange(50))).all()
    assert (stranger.lookup(np.arange(50)) == before).all()
    assert there.import_(tmp_path / "export", mode="keep").rows_written == {number: 0}


def test_a_group_that_was_made_by_number_cannot_be_given_a_name(storage: PyStorage) -> None:
    plain = PyEmbedding(storage, sgd(), zeros(), 4, 7)
    assert plain.name is None
    assert storage.names() == {}
    engine = engine_of(storage)
    with pytest.raises(GroupConflict, match="its name is None, not 'late'"):
        engine.open_group(replace(plain.config, name="late"))
    users = named(storage)
    with pytest.raises(GroupConflict, match=f"'user' is group {users.group}'s"):
        engine.open_group(replace(users.config, group=8))


def test_a_bad_setting_of_a_named_group_is_said_with_its_name(storage: PyStorage) -> None:
    with pytest.raises(InvalidConfig, match="group 'user': ttl is -1, below 0"):
        named(storage, ttl=-1)


def test_an_import_of_some_groups_takes_what_goes_to_them(open_storage: OpenStorage, tmp_path: Any) -> None:
    one, other = names_of_one_number()
    here, there = open_storage("here"), open_storage("there")
    for group in (named(here, one), named(here, other)):
        group.apply_gradients(np.arange(5), ones(5))
    here.export(tmp_path / "export", format="npz")
    theirs, mine = named(there, other), named(there, one)  # the other way round, so with each other's numbers
    assert (theirs.group, mine.group) == (here.names()[one], here.names()[other])
    report = there.import_(tmp_path / "export", groups=[mine.group])
    assert report.rows_written == {mine.group: 5}
    assert there.stats()["groups"][theirs.group]["rows"] == 0
    both = rf"{mine.group} \('{one}'\), {theirs.group} \('{other}'\)"
    with pytest.raises(UnknownGroup, match=f"no rows for group 7 of this store .*for: {both}"):
        there.import_(tmp_path / "export", groups=[7])


def test_a_group_comes_with_the_number_by_which_its_rows_begin(open_storage: OpenStorage, tmp_path: Any) -> None:
    one, other = names_of_one_number()
    here, there, stranger = open_storage("here"), open_storage("there"), open_storage("stranger")
    named(here, one)
    rows = named(here, other, miss_value="initializer")
    rows.apply_gradients(np.arange(5), ones(5))
    here.export(tmp_path / "export", format="npz", groups=[rows.group])
    there.import_(tmp_path / "export", groups=[rows.group])
    again = named(there, other, miss_value="initializer")
    assert again.group == rows.group
    assert (again.lookup(np.arange(9), train=False) == rows.lookup(np.arange(9), train=False)).all()
    named(stranger, rows.group)
    with pytest.raises(UnknownGroup, match=r"has some for: none"):  # it would get a number that nobody asked for
        stranger.import_(tmp_path / "export", groups=[rows.group])


def test_rows_of_another_variable_are_not_taken_for_its_own(open_storage: OpenStorage, tmp_path: Any) -> None:
    here, there = open_storage("here"), open_storage("there")
    words = named(here, variable={"kind": "kv", "key_dtype": "string", "parts": 3, "storage": 0, "storages": 2})
    words.apply_gradients(np.arange(5), ones(5))
    here.export(tmp_path / "export", format="npz")
    named(there, variable={"kind": "kv", "key_dtype": "int64", "parts": 1})
    with pytest.raises(GroupConflict, match=r"'user'.*int64.*has rows of the variable .*string"):
        there.import_(tmp_path / "export")
    fitting = open_storage("fitting")
    group = named(fitting, variable={"kind": "kv", "key_dtype": "string", "parts": 1}).group
    assert fitting.import_(tmp_path / "export").rows_written == {group: 5}
