"""Every update rule on the device gives the bits of its CPU kernel, step after step, headers and limits included."""

from typing import Any

import numpy as np
import pytest

from rockbed.config import GroupConfig
from rockbed.errors import UnknownName
from rockbed.optimizers import make_optimizer, optimizer_names
from rockbed.storage import gradient_kernels
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.rules import limits_of, update_kernel
from rockbed.storage.gpu.table import DeviceTable
from rockbed.storage.record import headers_of
from rockbed.types import F32, I64
from tests.gpu.tables import data_of, make_table, records_of
from tests.optimizers.test_rules import CASE_IDS, CASES

STEPS, ROWS = 4, 24


class OnHost:
    """The same rows under the CPU's kernels, in the order of server/push.py's `_update_rows`."""

    def __init__(self, rule: Any, data: F32, count: I64, limits: dict[str, Any]) -> None:
        self.rule, self.data, self.limits = rule, data, limits
        self.header = np.zeros((data.shape[0], 4), np.int64)
        self.header[:, 2] = count
        self.flags = np.full(data.shape[0], k.USED | k.FRESH, np.uint8)

    def update(self, dim: int, rows: I64, grads: F32, rates: F32, *, step: int, now_ms: int, lsn: int) -> None:
        steps = np.empty(rows.size, np.int64)
        k.stamp(self.header, self.flags, rows, now_ms, lsn, steps)
        if step >= 0:
            steps[:] = step
        if "clip_value" in self.limits:
            limit = np.float32(self.limits["clip_value"])
            grads = np.clip(grads, -limit, limit)
        if "clip_norm" in self.limits:
            grads = grads.copy()
            gradient_kernels.clip_norm(grads, self.limits["clip_norm"])
        self.rule.apply(self.data, rows, np.ascontiguousarray(grads), rates, steps)
        if "weight_min" in self.limits or "weight_max" in self.limits:
            low, high = self.limits.get("weight_min", -np.inf), self.limits.get("weight_max", np.inf)
            k.bound_weights(self.data, rows, dim, np.float32(low), np.float32(high))


def same_start(
    launcher: Launcher, name: str, params: dict[str, Any], dim: int, limits: dict[str, Any] | None = None
) -> tuple[DeviceTable, OnHost, Any]:
    """A table on the device, its rows on the host, and the device's number of each of the host's rows."""
    rule, rng = make_optimizer(name, **params), np.random.default_rng([dim, len(name)])
    table = make_table(launcher, dim, optimizer=name, limits=limits, **params)
    data = np.empty((ROWS, table.width), np.float32)
    data[:, :dim] = rng.normal(size=(ROWS, dim))
    data[:, dim:] = rule.initial_state(dim)
    keys = np.arange(ROWS)
    rows = table.load(keys, records_of(keys, data, dim=dim, fresh=True))
    return table, OnHost(rule, data.copy(), np.full(ROWS, 2), limits or {}), launcher.to_host(rows)


def run(
    launcher: Launcher,
    name: str,
    params: dict[str, Any],
    dim: int,
    *,
    step: int = -1,
    limits: dict[str, Any] | None = None,
) -> tuple[F32, F32]:
    """Rows after some steps on the device and on the host, which have the same headers and flags by then."""
    table, host, row_of = same_start(launcher, name, params, dim, limits)
    rng = np.random.default_rng([dim, len(params)])
    lr = make_optimizer(name, **params).lr
    for t in range(STEPS):
        chosen = rng.permutation(ROWS)[: ROWS - 5]
        grads = (rng.normal(size=(chosen.size, dim)) * rng.choice([1e-3, 1, 30])).astype(np.float32)
        grads[rng.integers(0, chosen.size, 3), rng.integers(0, dim, 3)] = 0
        rates = (lr * rng.uniform(0.5, 2, chosen.size)).astype(np.float32)
        if t == STEPS - 1:
            rates[:] = np.float32(lr)
        own = {"step": step + t if step >= 0 else -1, "now_ms": 1000 + t, "lsn": 50 + t}
        host.update(dim, chosen, grads, rates, **own)
        sent = float(np.float32(lr)) if t == STEPS - 1 else launcher.to_device(rates)
        table.update(launcher.to_device(row_of[chosen].astype(np.int32)), launcher.to_device(grads), sent, **own)
    records = table.records(launcher.to_device(row_of.astype(np.int32)))
    heads = headers_of(records)
    stored = np.stack([heads[name].astype(np.int64) for name in ("update_time", "update_num", "lsn")], axis=1)
    untouched = host.header[:, 1] == 0
    np.testing.assert_array_equal(stored[~untouched], host.header[~untouched][:, 1:])
    assert (heads["update_num"][untouched] == 2).all()
    flags = launcher.to_host(table.flags)[row_of]
    np.testing.assert_array_equal(flags & (k.DIRTY | k.FRESH), host.flags & (k.DIRTY | k.FRESH))
    return data_of(records), host.data


def params_of(case: int) -> tuple[str, dict[str, Any]]:
    return CASES[case][0], CASES[case][2]


@pytest.mark.parametrize("case", range(len(CASES)), ids=CASE_IDS)
def test_a_rule_gives_the_cpus_bits(launcher: Launcher, case: int) -> None:
    device, host = run(launcher, *params_of(case), 8)
    np.testing.assert_array_equal(device, host)


# a rule of each form: by element, with a single value, summing over the row, both
@pytest.mark.parametrize("name", ["adam", "adagrad_decay", "group_adam", "partial_rowwise_adam"])
@pytest.mark.parametrize("dim", [1, 2, 4, 30, 64, 128, 132, 301])
def test_every_width_of_rows(launcher: Launcher, name: str, dim: int) -> None:
    device, host = run(launcher, name, {}, dim)
    np.testing.assert_array_equal(device, host)


@pytest.mark.parametrize(
    "name", ["adam", "adagrad", "adagrad_decay", "rectified_adam", "partial_rowwise_adam", "group_adam"]
)
def test_a_global_step_takes_the_place_of_the_rows_own(launcher: Launcher, name: str) -> None:
    own: dict[str, dict[str, Any]] = {"adagrad": {"eta": 0.1}, "adagrad_decay": {"decay_steps": 3}}
    params = own.get(name, {})
    early, _ = run(launcher, name, params, 8, step=1)
    device, host = run(launcher, name, params, 8, step=123_456)
    np.testing.assert_array_equal(device, host)
    assert (device != early).any()


LIMITS: list[dict[str, Any]] = [
    {"clip_value": 0.7},
    {"clip_norm": 1.3},
    {"clip_value": 0.9, "clip_norm": 0.5},
    {"weight_min": -0.2},
    {"weight_max": 0.3},
    {"weight_min": -0.25, "weight_max": 0.125, "clip_norm": 2.0},
]


@pytest.mark.parametrize("limits", LIMITS, ids=["-".join(each) for each in LIMITS])
@pytest.mark.parametrize("name", ["sgd", "ftrl", "rowwise_adagrad"])
def test_gradients_are_clipped_and_weights_bounded_as_on_the_cpu(
    launcher: Launcher, name: str, limits: dict[str, Any]
) -> None:
    params = {"ftrl": {"alpha": 0.1}}.get(name, {"gamma": 0.1})
    free, _ = run(launcher, name, params, 20)
    for dim in (20, 140):
        device, host = run(launcher, name, params, dim, limits=limits)
        np.testing.assert_array_equal(device, host)
        if dim == 20:
            assert (device != free).any()


@pytest.mark.parametrize("name", optimizer_names())
def test_numbers_at_the_edge_give_the_cpus_bits(launcher: Launcher, name: str) -> None:
    table, host, row_of = same_start(launcher, name, {}, 8)
    edges = np.array([0.0, -0.0, 1e-45, -1e-38, 1e-20, 1e19, 3e38, -3e38], np.float32)
    grads = np.stack([np.roll(edges, i) for i in range(4)] + [np.zeros(8, np.float32)])
    grads = np.concatenate([grads, np.full((1, 8), np.nan, np.float32), np.full((1, 8), np.inf, np.float32)])
    chosen = np.arange(len(grads))
    rates = np.array([1e-2, 0, 1e-2, 1e3, 0, 1e-2, 1e-2], np.float32)
    for t in range(2):
        with np.errstate(all="ignore"):
            host.update(8, chosen, grads, rates, step=-1, now_ms=t, lsn=t)
        rows = launcher.to_device(row_of[chosen].astype(np.int32))
        table.update(rows, launcher.to_device(grads), launcher.to_device(rates), step=-1, now_ms=t, lsn=t)
    device = data_of(table.records(launcher.to_device(row_of.astype(np.int32))))
    np.testing.assert_array_equal(device, host.data)
    where = ~np.isnan(host.data)
    np.testing.assert_array_equal(np.signbit(device[where]), np.signbit(host.data[where]))


def test_the_parameters_of_a_rule_can_be_changed(launcher: Launcher) -> None:
    table = make_table(launcher, 4, optimizer="sgd")
    rows, _ = table.insert(launcher.to_device(np.array([1])), now_ms=1, lsn=1)
    before = launcher.to_host(table.gather(rows))
    config = GroupConfig(group=1, dim=4, optimizer={"name": "sgd"}, initializer={"name": "zeros"}, weight_max=0.0)
    table.configure(make_optimizer("sgd", weight_decay=0.5), limits_of(config))
    table.update(rows, launcher.zeros((1, 4), np.float32), 1.0, step=-1, now_ms=2, lsn=2)
    np.testing.assert_array_equal(launcher.to_host(table.gather(rows)), np.minimum(before * np.float32(0.5), 0))


def test_a_rule_that_the_device_does_not_know_is_named() -> None:
    class Unheard:
        name = "unheard"

        def params(self) -> dict[str, Any]:
            return {}

        def state_width(self, dim: int) -> int:
            return dim

        def initial_state(self, dim: int) -> F32:
            return np.zeros(dim, np.float32)

    with pytest.raises(UnknownName, match="'unheard' has no form for the GPU; those that have: adabelief, adadelta"):
        update_kernel(Unheard(), 8)


def test_every_rule_has_a_form_for_the_device() -> None:
    for name in optimizer_names():
        module, hyper = update_kernel(make_optimizer(name), 8)
        assert module.kernels() == ("update",)
        assert hyper.dtype == np.float64
