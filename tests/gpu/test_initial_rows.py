"""Rows that start on the device have the bits that the CPU would give them."""

import numpy as np
import pytest

from rockbed.optimizers import initializer_names, make_initializer, make_optimizer
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.record import headers_of
from tests.gpu.tables import EXTREMES, data_of, initial_rows, make_table

NAMES = [name for name in initializer_names() if name != "constant"]
KEYS = np.concatenate([EXTREMES, np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 60)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_an_initializer_gives_the_cpus_bits(launcher: Launcher, name: str, dim: int) -> None:
    table = make_table(launcher, dim, initializer=name)
    rows, _ = table.insert(launcher.to_device(KEYS), now_ms=1, lsn=1)
    np.testing.assert_array_equal(launcher.to_host(table.gather(rows)), initial_rows(KEYS, dim, name))


def test_every_initializer_says_what_it_computes() -> None:
    for name in NAMES:
        kind, *numbers = make_initializer(name).recipe(16)
        assert kind in ("constant", "uniform", "normal")
        assert np.isfinite(numbers).all()
    assert make_initializer("constant", value=0.25).recipe(4) == ("constant", 0.25, 0.0, 0.0)


@pytest.mark.parametrize(("optimizer", "dim"), [("ftrl", 5), ("adagrad_decay", 4), ("partial_rowwise_adam", 3)])
def test_a_new_row_has_its_first_state_and_header(launcher: Launcher, optimizer: str, dim: int) -> None:
    table = make_table(launcher, dim, optimizer=optimizer)
    rows, _ = table.insert(launcher.to_device(KEYS), now_ms=123, lsn=77)
    records = table.records(rows)
    heads, data = headers_of(records), data_of(records)
    state = make_optimizer(optimizer).initial_state(dim)
    np.testing.assert_array_equal(data[:, :dim], initial_rows(KEYS, dim))
    np.testing.assert_array_equal(data[:, dim:], np.tile(state, (KEYS.size, 1)))
    assert heads["key"].tolist() == KEYS.tolist()
    for name, value in {"update_time": 123, "update_num": 0, "lsn": 77, "dim": dim, "group": 3, "flags": 1}.items():
        assert (heads[name] == value).all()
    flags = launcher.to_host(table.flags)[launcher.to_host(rows)]
    assert (flags == k.USED | k.TOUCHED | k.DIRTY | k.FRESH).all()
