"""What tests of variables build."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import rockbed
from rockbed import KvVariable, PyStorage, variable_scope
from rockbed.config import NAMED_GROUPS
from rockbed.types import F32
from tests.api.helpers import OpenStorage, sgd, uniform

Make = Callable[..., KvVariable]

SPREAD: Sequence[tuple[int, int]] = [(1, 1), (5, 1), (2, 2), (7, 3)]
"""(parts, storages)"""


def variable(storage: Any, name: str = "test/rows", dim: int = 4, **options: Any) -> KvVariable:
    """SGD at a rate of 1 on rows that begin uniformly on -1..1, as lookups without training find them, too."""
    scope, _, last = name.rpartition("/")
    reuse = options.pop("reuse", None)
    rules = {"optimizer": sgd(1.0), "initializer": uniform(), "miss_value": "initializer"}
    with variable_scope(scope, reuse=reuse, storage=storage):
        return rockbed.get_kv_variable(last, dim, **{**rules, **options})


def storages(open_storage: OpenStorage, count: int, **options: Any) -> list[PyStorage]:
    """So many stores, a to ...."""
    return [open_storage("abcdefgh"[i], **options) for i in range(count)]


def initial(of: KvVariable, *keys: int) -> F32:
    """The rows that keys begin with."""
    out = np.empty((len(keys), of.dim), np.float32)
    for row, key in zip(out, keys, strict=True):
        rockbed.PyInitializer(of.config.initializer).call(row, group=of.config.group, seed=of.config.seed, key=key)
    return out


def names_of_one_number() -> tuple[str, str]:
    """Two names whose first choice of a number is the same."""
    seen: dict[int, str] = {}
    for i in range(1 << 16):
        name = f"feature_{i}"
        other = seen.setdefault(zlib.crc32(name.encode()) % NAMED_GROUPS, name)
        if other != name:
            return other, name
    raise AssertionError("crc32 collides sooner than that")


spread = pytest.mark.parametrize(("parts", "count"), SPREAD)
