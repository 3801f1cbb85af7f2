"""Device tables for tests, and the host's rows that they are compared with."""

from typing import Any

import numpy as np

from rockbed.config import GroupConfig
from rockbed.optimizers import make_initializer, make_optimizer
from rockbed.storage.gpu.launcher import Launcher
from rockbed.storage.gpu.rules import limits_of
from rockbed.storage.gpu.table import DeviceTable, row_bytes
from rockbed.storage.record import FLAG_FRESH, RECORD_VERSION, headers_of, record_bytes
from rockbed.types import F32, I64, U8, AnyArray

EXTREMES = np.array([0, -1, 1, 2**63 - 1, -(2**63), -(2**63) + 1, -(2**63) + 2], np.int64)
"""Keys that a table could take for something else: the second but last two are the marks of index.cuh."""

SEED, GROUP = 11, 3


def make_table(
    launcher: Launcher,
    dim: int = 4,
    *,
    rows: int = 256,
    optimizer: str = "sgd",
    initializer: str = "random_uniform",
    written: list[U8] | None = None,
    limits: dict[str, Any] | None = None,
    **params: Any,
) -> DeviceTable:
    """A table of `rows` rows. written: takes the records that leave it dirty."""
    rule = make_optimizer(optimizer, **params)
    config = GroupConfig(group=GROUP, dim=dim, optimizer={"name": "sgd"}, initializer={"name": "zeros"}, **limits or {})
    kept: list[U8] = [] if written is None else written
    return DeviceTable(
        launcher,
        group=GROUP,
        dim=dim,
        rule=rule,
        limits=limits_of(config),
        recipe=make_initializer(initializer).recipe(dim),
        seed=SEED,
        budget_bytes=rows * row_bytes(dim + rule.state_width(dim)),
        write_back=kept.append,
    )


def records_of(
    keys: I64, data: F32, *, dim: int | None = None, lsn: int = 5, fresh: bool = False, time_ms: int = 7, count: int = 2
) -> U8:
    """Records with those rows, as storage/record.py lays them out. dim: where data holds slots, too."""
    out = np.zeros((keys.size, record_bytes(data.shape[1])), np.uint8)
    heads = headers_of(out)
    heads["version"], heads["flags"], heads["group"] = RECORD_VERSION, FLAG_FRESH * fresh, GROUP
    heads["dim"], heads["key"] = data.shape[1] if dim is None else dim, keys
    heads["update_time"], heads["update_num"], heads["lsn"] = time_ms, count, lsn
    out[:, 40:] = np.ascontiguousarray(data).view(np.uint8).reshape(keys.size, -1)
    return out


def data_of(records: U8) -> F32:
    """float32[n, width]: what lies behind the headers."""
    return np.ascontiguousarray(records[:, 40:]).view(np.float32)


def initial_rows(keys: I64, dim: int, initializer: str = "random_uniform") -> F32:
    """What the CPU's initializer gives: float32[n, dim]."""
    rows = np.empty((keys.size, dim), np.float32)
    make_initializer(initializer).fill(rows, np.arange(keys.size), keys, dim, SEED, GROUP)
    return rows


def resident(table: DeviceTable) -> dict[int, AnyArray]:
    """Every row of the table, by key: its weights and slots."""
    records = table.records(table.used_rows())
    return dict(zip(headers_of(records)["key"].tolist(), data_of(records), strict=True))
