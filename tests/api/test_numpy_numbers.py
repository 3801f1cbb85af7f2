"""Values read out of arrays are numbers: where one is asked, numpy's do, and are kept as Python's."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rockbed
from rockbed import (
    Connection,
    Feature,
    GroupConflict,
    InvalidConfig,
    PyInitializer,
    PyStorage,
    Saver,
    feature_column,
    get_kv_variable,
    variable_scope,
)
from rockbed.config import FLOAT32_MAX, StoreConfig, number_problems
from tests.api.helpers import OpenStorage, embedding, keys_of, ones, sgd

Number = Callable[[Any], Any]
FLOATS: list[Number] = [np.float16, np.float32, np.float64]
INTS: list[Number] = [np.int64, np.int32, np.uint8]
NOT_NUMBERS = [True, np.True_, "1", None, np.array([1.0, 2.0]), float("nan"), np.float32("inf"), 10**400]


def _types(value: Any) -> set[type]:
    """Of all that stands in a config."""
    inner = value.values() if isinstance(value, dict) else []
    return set().union(*map(_types, inner)) if isinstance(value, dict) else {type(value)}


@pytest.mark.parametrize("number", FLOATS)
def test_settings_of_a_group_may_be_floats_of_numpy_and_are_stored_as_python_ones(
    open_storage: OpenStorage, number: Number
) -> None:
    settings: dict[str, Any] = {
        "ttl": number(0.1),
        "clip_norm": number(0.1),
        "weight_min": -number(0.1),
        "miss_value": number(0.1),
    }
    plain: dict[str, Any] = {name: float(value) for name, value in settings.items()}
    with open_storage() as storage:
        uniform = PyInitializer(name="random_uniform", min=-number(0.1), max=number(0.1))
        rows = embedding(storage, optimizer=sgd(number(0.1)), initializer=uniform, **settings)
        assert _types(rows.config.to_json()) <= {int, float, str, type(None)}
        assert json.loads(rows.config.to_bytes()) == rows.config.to_json()
    with open_storage() as storage:
        uniform = PyInitializer(name="random_uniform", min=-float(number(0.1)), max=float(number(0.1)))
        again = embedding(storage, optimizer=sgd(float(number(0.1))), initializer=uniform, **plain)
        assert again.config == rows.config


def test_a_float32_is_another_setting_than_the_float_it_was_rounded_from_and_the_message_says_so(
    storage: PyStorage,
) -> None:
    embedding(storage, initializer=PyInitializer(name="random_uniform", min=-0.1, max=0.1), ttl=0.1)
    rounded = np.float32(0.1)
    with pytest.raises(GroupConflict, match=r"-0\.1.*not .*-0\.10000000149011612.*alike as float32"):
        embedding(storage, initializer=PyInitializer(name="random_uniform", min=-rounded, max=rounded), ttl=0.1)
    uniform = PyInitializer(name="random_uniform", min=-0.1, max=0.1)
    with pytest.raises(GroupConflict, match=r"ttl 0\.1 / 0\.10000000149011612 \(alike as float32.*clip_norm None / 1"):
        embedding(storage, initializer=uniform, ttl=rounded, clip_norm=np.int64(1))
    get_kv_variable("rows", 4, storage=storage, ttl=0.1)
    with variable_scope("", reuse=True):
        get_kv_variable("rows", 4, storage=storage, ttl=np.float64(0.1))
        with pytest.raises(GroupConflict, match=r"ttl is 0\.1, not 0\.10000000149011612"):
            get_kv_variable("rows", 4, storage=storage, ttl=rounded)


@pytest.mark.parametrize("number", FLOATS)
def test_conditions_of_shrink_and_export_may_be_floats_of_numpy(
    storage: PyStorage, tmp_path: Path, number: Number
) -> None:
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1, 2, 2), ones(3))  # weights of -0.5 and -1
    for name, value in {"min_abs": 0.75, "min_norm": 1.5, "cutoff": 0.75, "max_age": 1000}.items():
        options: dict[str, Any] = {name: number(value)}
        report = storage.export(tmp_path / name, format="npz", **options)
        assert report.rows_written == {0: 1 if name in ("min_abs", "min_norm") else 2}
    assert storage.shrink(min_norm=number(1.5), max_age=number(1000), dry_run=True).rows_removed == 1
    variable = get_kv_variable("rows", 4, storage=storage, optimizer=sgd(number(0.5)))
    variable.apply_gradients([1], ones(1))
    (saved,) = Saver([variable]).export_saved_model(tmp_path / "model", cutoff=number(1.0))
    assert saved.rows_written == {variable.config.group: 0}


@pytest.mark.parametrize("number", INTS)
def test_counts_and_groups_may_be_ints_of_numpy(storage: PyStorage, tmp_path: Path, number: Number) -> None:
    rows = embedding(storage, number(4), number(7), seed=number(3), padding_key=number(9), step="global")
    assert _types(rows.config.to_json()) <= {int, float, str, type(None)}
    for step, keys in ((number(5), keys_of(1, 2)), (number(9), keys_of(2))):
        rows.global_step = step
        rows.apply_gradients(keys, ones(keys.size))
    exported = storage.export(tmp_path / "a", format="npz", groups=[number(7)], min_count=number(2))
    assert exported.rows_written == {7: 1}
    assert storage.import_(tmp_path / "a", groups=[number(7)], slots=(number(0), 16_384)).rows_read == {7: 1}
    assert storage.shrink(group=number(7), min_count=number(2), dry_run=True).rows_removed == 1
    assert storage.shrink(group=number(7), min_step=number(7), dry_run=True).rows_removed == 1
    assert Feature("a", rows, max_norm=number(2), default_key=number(1)).bags(rockbed.Ragged.from_lists([[1]]))


def test_the_options_of_a_column_and_of_a_connection_may_be_numbers_of_numpy() -> None:
    half: Any = np.float32(0.5)
    three: Any = np.int64(3)
    options: list[Any] = [
        feature_column.CounterFilter(three),
        feature_column.CBFFilter(three, three, half),
        feature_column.GlobalStepEvict(three),
        feature_column.L2WeightEvict(half),
        feature_column.TimeEvict(half),
        feature_column.InitializerOption(default_value_no_permission=half),
        Connection(deadline_s=half, retry_s=three, in_flight=three),
        StoreConfig(ttl_s=half, journal_bytes_max=three << 20),
    ]
    for each in options:
        values = {getattr(each, name) for name in each.__dataclass_fields__ if "type" not in name}
        assert not any(isinstance(value, np.generic) for value in values), each


def test_what_is_no_number_is_refused(storage: PyStorage, tmp_path: Path) -> None:
    assert number_problems("x", Fraction(1, 2)) == []
    assert number_problems("x", np.float16(3), most=FLOAT32_MAX) == []  # which float16 would take for infinity
    for value in NOT_NUMBERS:
        assert number_problems("x", value) == [f"x is {value!r}, not a finite number"]
    calls: list[Number] = [
        lambda value: embedding(storage, clip_norm=value),
        lambda value: sgd(value),
        lambda value: storage.shrink(min_norm=value),
        lambda value: storage.export(tmp_path / "a", format="npz", cutoff=value),
        lambda value: Connection(retry_s=value),
        lambda value: feature_column.TimeEvict(value),
    ]
    for call in calls:
        for value in (True, np.True_, np.float32("nan")):
            with pytest.raises(InvalidConfig):
                call(value)
