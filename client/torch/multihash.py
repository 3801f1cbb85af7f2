"""Lookups of multi-hash variables with tensors: torch puts the rows together, and its autograd takes them apart."""

from collections.abc import Sequence
from functools import reduce
from operator import add, mul
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rockbed.client.feature import Feature
from rockbed.client.fused import FusedEmbedding
from rockbed.client.kv_variable import KvVariable
from rockbed.client.ragged import Ragged
from rockbed.client.torch.tensors import ids_array
from rockbed.client.torch.variables import rows_of, trains, with_gradients
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.client.multihash import MultiHashVariable


def lookup(variable: "MultiHashVariable", ids: Any, train: bool | None) -> Any:
    """The embedding of each id, float32[*ids.shape, dim]. ids: a tensor of the variable's key dtype, on the CPU."""
    digits, shape = variable.ids.digits(ids_array("ids", ids, variable.ids.kind))
    rows = _rows(variable.tables, digits, trains(variable.tables[0], train))
    if variable.operation == "concat":
        whole = torch.cat(rows, dim=1)
    else:
        whole = reduce(add if variable.operation == "add" else mul, rows)
    return whole.reshape(*shape, variable.dim)


def _rows(tables: Sequence[KvVariable], digits: Sequence[I64], train: bool) -> list[Any]:
    """The rows of each table, float32[n, dim]: on one storage by one call."""
    if len(tables[0].storages) > 1:
        return [rows_of(table, keys, train) for table, keys in zip(tables, digits, strict=True)]
    fused = FusedEmbedding([Feature(each.name, each.embedding, None) for each in tables])
    whole = np.array([0, digits[0].size])
    batch = {table.name: Ragged(keys, whole) for table, keys in zip(tables, digits, strict=True)}
    out = fused.lookup(batch, train=train, keep=False)
    tensors = [torch.from_numpy(out.sequences[table.name]) for table in tables]
    return with_gradients(tables[0], out, tensors, train)
