"""Settings of a group changed while it is used."""

from typing import Any

import pytest

from rockbed import GroupConflict, InvalidConfig, PyOptimizer, PyStorage, RockbedError, UnknownName
from tests.api.helpers import OpenStorage, adagrad, embedding, keys_of, ones, sgd


def test_others_who_have_the_group_open_go_on_with_the_new_settings(storage: PyStorage) -> None:
    one, other = embedding(storage, optimizer=sgd(1.0)), embedding(storage, optimizer=sgd(1.0))
    one.alter(optimizer=PyOptimizer(name="sgd", gamma=4.0), clip_value=0.5, ttl=1e6)
    other.apply_gradients(keys_of(1), ones(1))
    assert other.lookup(keys_of(1))[0, 0] == -2.0
    assert one.config == storage.groups()[0]
    assert one.config.ttl_s == 1e6


def test_the_new_settings_are_kept(open_storage: OpenStorage) -> None:
    storage = open_storage()
    embedding(storage).alter(admission={"name": "min_count", "count": 3}, miss_value=7.0)
    stored = storage.groups()[0]
    storage.close()
    again = open_storage()
    assert again.groups()[0] == stored
    assert (embedding(again, admission=stored.admission, miss_value=7.0).lookup(keys_of(1), train=False) == 7.0).all()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"optimizer": adagrad()}, GroupConflict, "adagrad"),
        ({"seed": 3}, InvalidConfig, "seed cannot be altered"),
        ({"dim": 3, "initializer": 1}, InvalidConfig, "dim, initializer cannot"),
        ({"learning_rate": 3}, InvalidConfig, "learning_rate: no such setting"),
        ({"clip_norm": -1.0}, InvalidConfig, "clip_norm"),
        ({"admission": {"name": "luck"}}, UnknownName, "luck"),
    ],
)
def test_what_cannot_be_altered_is_said_and_changes_nothing(
    storage: PyStorage, changes: dict[str, Any], error: type[RockbedError], said: str
) -> None:
    rows = embedding(storage)
    before = storage.groups()[0]
    with pytest.raises(error, match=said):
        rows.alter(**changes)
    assert rows.config == before == storage.groups()[0]
