"""`MultiHashVariable`: an embedding for each id of a large vocabulary, put together from rows of small tables."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.client.arrays import checked_floats, is_tensor
from rockbed.client.embedding import take_back
from rockbed.client.kv_opening import Rule, Storages, get_kv_variable, storages_of
from rockbed.client.kv_variable import KvVariable, all_of
from rockbed.client.mixed_radix import VOCABULARY_MAX, digits_of, partition_problems, smallest_radices
from rockbed.client.optimizer import PyOptimizer
from rockbed.client.partitioners import Partitioner
from rockbed.client.request_ids import RequestId
from rockbed.client.variable_keys import Keys, key_dtype_name
from rockbed.client.variable_scope import current_scope
from rockbed.client.variables import unregister
from rockbed.config import DIM_MAX, whole_problems
from rockbed.errors import GradientNotFinite, IdOutOfRange, InvalidConfig
from rockbed.types import F32, I64

if TYPE_CHECKING:
    from rockbed.client.initializer import PyInitializer
    from rockbed.client.storage import PyStorage

OPERATIONS = {"add": "add", "mul": "mul", "mult": "mul", "concat": "concat"}
STRATEGIES = ("Q-R",)


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a multi-hash variable takes, beside one table with a row for each id of its vocabulary.

    rows, full_rows: how many there are at the most. bytes, full_bytes: of their weights and optimizer state, float32.
    rows_now: how many rows exist.
    """

    rows: int
    rows_now: int
    bytes: int
    full_rows: int
    full_bytes: int

    @property
    def saved(self) -> float:
        """The part of the full table's bytes that is saved, 0..1."""
        return 1 - self.bytes / self.full_bytes


def quotient_remainder_dims(
    vocabulary: int, dim: int, num_of_partitions: int = 2, operation: str = "add"
) -> list[list[int]]:
    """`dims` for a vocabulary with about as few rows as can be, and an embedding of `dim` weights.

    For two partitions about 2 sqrt(vocabulary) rows. With "concat" the weights are divided among the tables as evenly
    as can be. Raises InvalidConfig.

    >>> quotient_remainder_dims(10**6, 16)
    [[1000, 16], [1000, 16]]
    """
    radices = smallest_radices(vocabulary, num_of_partitions)
    concat = _operation(operation) == "concat"
    problems = whole_problems("dim", dim, num_of_partitions if concat else 1, DIM_MAX)
    if problems:
        raise InvalidConfig(problems[0])
    if not concat:
        return [[radix, dim] for radix in radices]
    return [[radix, dim // len(radices) + (i < dim % len(radices))] for i, radix in enumerate(radices)]


def get_multihash_variable(
    name: str,
    dims: Sequence[Sequence[int]],
    num_of_partitions: int = 2,
    complementary_strategy: str = "Q-R",
    operation: str = "add",
    dtype: Any = np.float32,
    initializer: "PyInitializer | Rule | None" = None,
    partitioner: Partitioner | None = None,
    *,
    vocabulary: int | None = None,
    key_dtype: Any = np.int64,
    modulus: int | None = None,
    trainable: bool = True,
    storage: Storages | None = None,
    optimizer: PyOptimizer | Rule | None = None,
    **settings: Any,
) -> "MultiHashVariable":
    """Take the multi-hash variable of a name, or make it: a table `name/0`, `name/1`, ... for each partition.

    dims: [rows, weights a row] of each table: [[rows of quotients, d], [rows of remainders, d]]. An id's row in the
        last table is its remainder by the number of its rows m, and in the one before the quotient id // m; with more
        than two tables that quotient is divided again. So all ids below the product of the rows are told apart.
        `quotient_remainder_dims` finds dims for a vocabulary.
    complementary_strategy: "Q-R".
    operation: "add" or "mul" (also "mult") the rows, which then have the same weights, or "concat" them.
    vocabulary: ids are 0 .. vocabulary - 1; None = the product of the rows.
    modulus: ids are any 64-bit numbers, hashed ones say, of which the remainder by this is taken first; at most the
        vocabulary. Ids of one remainder share everything. Strings (key_dtype=str) need it.
    dtype: float32. key_dtype, initializer, partitioner, trainable, storage, optimizer, settings: as of get_kv_variable,
        for each table.

    Raises InvalidConfig, and what get_kv_variable raises. Warns where all rows begin as zeros that are multiplied:
    neither table would ever learn.
    """
    kind = _operation(operation)
    radices, widths = _shapes(dims, num_of_partitions, kind)
    if complementary_strategy not in STRATEGIES:
        raise InvalidConfig(f"complementary_strategy is {complementary_strategy!r}, not {', '.join(STRATEGIES)!r}")
    ids = _Ids(name, key_dtype_name(key_dtype), radices, vocabulary, modulus)
    shared: dict[str, Any] = {
        "value_dtype": dtype,
        "initializer": initializer,
        "trainable": trainable,
        "partitioner": partitioner,
        "storage": storage,
        "optimizer": optimizer,
        **settings,
    }
    about = {**ids.about(), "operation": kind}
    tables = _opened(name, widths, about, shared)
    first = tables[0].embeddings[0].config.initializer
    if kind == "mul" and first["name"] in ("zeros", "constant") and not first.get("value"):
        warnings.warn(
            f"multi-hash variable {name!r} multiplies rows that begin as zeros: every gradient is 0, and it never "
            "learns; give it another initializer, ones say",
            stacklevel=2,
        )
    return MultiHashVariable(tables[0].name.removesuffix("/0"), tables, ids, kind)


def _opened(name: str, widths: list[int], about: Mapping[str, Any], shared: Mapping[str, Any]) -> list[KvVariable]:
    """The tables; where one cannot be opened, none is made, and none stays open that was not before."""
    scope = current_scope()
    storage = storages_of(scope.storage if shared["storage"] is None else shared["storage"])[0]
    stored, open_before = storage.names(), dict(storage.variables)
    tables: dict[int, KvVariable] = {}
    try:
        # those that are there first: what they were made of is fixed, and nothing is made where it is not what is asked
        for i in sorted(range(len(widths)), key=lambda i: scope.full_name(f"{name}/{i}") not in stored):
            built_on = {"multihash": {**about, "table": i}}
            tables[i] = get_kv_variable(f"{name}/{i}", widths[i], variable=built_on, **shared)
    except BaseException:
        for table in tables.values():
            if open_before.get(table.name) is not table:
                take_back(table.embeddings)
                unregister(table)  # it can be asked for again
        raise
    return [tables[i] for i in range(len(widths))]


class MultiHashVariable:
    """Embeddings of the ids below `vocabulary`, each put together from a row of every table. Of get_multihash_variable.

    tables: the KvVariables. operation: "add", "mul" or "concat".
    """

    def __init__(self, name: str, tables: Sequence[KvVariable], ids: "_Ids", operation: str) -> None:
        self.name = name
        self.tables = tuple(tables)
        self.operation = operation
        self.ids = ids

    @property
    def dim(self) -> int:
        """float32 weights of an embedding."""
        widths = [table.dim for table in self.tables]
        return sum(widths) if self.operation == "concat" else widths[0]

    @property
    def vocabulary(self) -> int:
        """Ids are 0 .. vocabulary - 1; with a modulus, what is left of them."""
        return self.ids.vocabulary

    @property
    def storages(self) -> "tuple[PyStorage, ...]":
        """Where the rows are."""
        return self.tables[0].storages

    def rows_of(self, ids: Any) -> list[I64]:
        """The row of each table that each id has: int64 of the shape of ids, for each table.

        Raises WrongDtype, IdOutOfRange.
        """
        digits, shape = self.ids.digits(ids)
        return [each.reshape(shape) for each in digits]

    def lookup(self, ids: Any, *, train: bool | None = None) -> Any:
        """The embedding of each id, float32[*ids.shape, dim], with `apply_gradients` for its gradient.

        ids: an array of any rank, or a list; a torch tensor gives a tensor, whose backward pass applies the gradient.
        train: as of KvVariable.lookup.
        Raises WrongDtype, IdOutOfRange, and what KvVariable.lookup raises.
        """
        if is_tensor(ids):
            from rockbed.client.torch.multihash import lookup

            return lookup(self, ids, train)
        train = self.tables[0].trains(train)
        digits, shape = self.ids.digits(ids)
        rows = self._rows(digits, train)

        def push(grads: F32, request: RequestId | None) -> bool:
            return self._push(digits, self._divided(rows, grads.reshape(-1, self.dim)), request)

        return self.tables[0].looked_up(self._put_together(rows).reshape(*shape, self.dim), train, push)

    def apply_gradients(self, ids: Any, gradients: F32, *, request: RequestId | None = None) -> bool:
        """Update the rows of ids in all tables, as one change where they are on one storage; durable when it returns.

        ids: as of `lookup`, not a tensor. gradients: float32[*ids.shape, dim]. With "mul" a row's gradient is made with
        the other rows as they are now: `lookup(ids).apply_gradients(...)` takes them as they were looked up. Returns as
        KvVariable.apply_gradients. Raises WrongDtype, WrongShape, IdOutOfRange, and what KvVariable.apply_gradients
        raises.
        """
        digits, shape = self.ids.digits(ids)
        grads = checked_floats("gradients", gradients, (*shape, self.dim)).reshape(-1, self.dim)
        rows = self._rows(digits, train=False) if self.operation == "mul" else []
        return self._push(digits, self._divided(rows, grads), request)

    def memory(self) -> MemoryReport:
        """What the variable takes, and what one table of its vocabulary would."""
        optimizer = PyOptimizer(self.tables[0].config.optimizer)
        rows = [min(radix, self.vocabulary) for radix in self.ids.radices]
        stats = [storage.stats()["groups"] for storage in self.storages]
        groups = {table.embeddings[0].group for table in self.tables}
        return MemoryReport(
            rows=sum(rows),
            rows_now=sum(found[group]["rows"] for found in stats for group in groups if group in found),
            bytes=4 * sum(n * optimizer.get_space(table.dim) for n, table in zip(rows, self.tables, strict=True)),
            full_rows=self.vocabulary,
            full_bytes=4 * self.vocabulary * optimizer.get_space(self.dim),
        )

    def drop(self) -> int:
        """Drop all tables with their rows, for good. Returns how many rows there were. Raises as KvVariable.drop."""
        return sum(table.drop() for table in self.tables)

    def __repr__(self) -> str:
        dims = [[radix, table.dim] for radix, table in zip(self.ids.radices, self.tables, strict=True)]
        return f"MultiHashVariable({self.name!r}, {dims}, {self.operation!r}, ids below {self.vocabulary})"

    # --- rows of all tables together ---

    def _rows(self, digits: Sequence[I64], train: bool) -> list[F32]:
        if len(self.storages) > 1:
            return [table.rows(own, train=train) for table, own in zip(self.tables, digits, strict=True)]
        wanted = [(table.embedding, own) for table, own in zip(self.tables, digits, strict=True)]
        return self.storages[0].lookup(wanted, train=train)

    def _push(self, digits: Sequence[I64], grads: Sequence[F32], request: RequestId | None) -> bool:
        rejects = len(self.storages) > 1 and self.tables[0].config.not_finite == "reject"
        if rejects and not all(np.isfinite(own).all() for own in grads):
            raise GradientNotFinite(
                f"the gradient of multi-hash variable {self.name!r} holds NaN or Inf: nothing was applied, in any "
                "table or storage"
            )
        items: list[list[Any]] = [[] for _ in self.storages]
        for table, keys, own in zip(self.tables, digits, grads, strict=True):
            for i, at in table.placement.split(keys):
                items[i].append((table.embeddings[i], keys[at], own[at]))
        applied = all_of(
            storage.apply_gradients_async(share, request=request)
            for storage, share in zip(self.storages, items, strict=True)
            if share
        )
        return any(applied)

    def _put_together(self, rows: Sequence[F32]) -> F32:
        if self.operation == "concat":
            return np.concatenate(rows, axis=1)
        whole = rows[0].copy()
        for each in rows[1:]:
            (np.add if self.operation == "add" else np.multiply)(whole, each, out=whole)
        return whole

    def _divided(self, rows: Sequence[F32], grads: F32) -> list[F32]:
        """The gradient of each table's rows: the same for all, times the others' rows, or its own columns."""
        if self.operation == "add":
            return [grads] * len(self.tables)
        if self.operation == "concat":
            ends = np.cumsum([table.dim for table in self.tables])[:-1]
            return [np.ascontiguousarray(part) for part in np.split(grads, ends, axis=1)]
        return [grads * _product([*rows[:i], *rows[i + 1 :]]) for i in range(len(rows))]


class _Ids:
    """From ids to the digits that number the rows of the tables."""

    def __init__(self, name: str, kind: str, radices: list[int], vocabulary: int | None, modulus: int | None) -> None:
        self._name = name
        self._keys = Keys(name, kind)
        self.radices = radices
        self.modulus = modulus
        most = prod(radices)
        problems = []
        if vocabulary is not None:
            problems += whole_problems("vocabulary", vocabulary, 1, most)
        self.vocabulary = most if vocabulary is None or problems else int(vocabulary)
        if not problems and modulus is not None:
            problems += whole_problems("modulus", modulus, 1, self.vocabulary)
            self.modulus = modulus if problems else int(modulus)
        if kind == "string" and modulus is None:
            problems.append("ids are strings, and a modulus is missing that takes their hashes into the vocabulary")
        if problems:
            raise InvalidConfig(
                f"multi-hash variable {name!r}, whose tables tell {most} ids apart: {'; '.join(problems)}"
            )

    @property
    def kind(self) -> str:
        """The dtype of ids, as of KvVariable.key_dtype."""
        return self._keys.kind

    def about(self) -> dict[str, Any]:
        """What has to be the same at each opening, or rows would be those of other ids."""
        return {"radices": self.radices, "vocabulary": self.vocabulary, "modulus": self.modulus, "ids": self.kind}

    def digits(self, ids: Any) -> tuple[list[I64], tuple[int, ...]]:
        """int64[n] for each table, and the shape of ids. Raises WrongDtype, IdOutOfRange."""
        keys, shape = self._keys.of(ids)
        if self.modulus is not None:  # of the 64 bits: a negative int64 is a large number here
            keys = (keys.view(np.uint64) % np.uint64(self.modulus)).view(np.int64)
        else:
            outside = (keys < 0) | (keys >= self.vocabulary)
            if outside.any():
                at = int(outside.argmax())
                first = np.ravel(ids)[at]
                raise IdOutOfRange(
                    f"{int(outside.sum())} of {keys.size} ids, the first {first} at position {at}, lie outside of 0.."
                    f"{self.vocabulary - 1}, the range of multi-hash variable {self._name!r}: number the ids from 0, "
                    "or make the variable with a modulus that takes any id"
                )
        return digits_of(keys, self.radices), shape


def _product(rows: Sequence[F32]) -> F32:
    product: F32 = np.multiply.reduce(rows)
    return product


def _operation(given: Any) -> str:
    if not isinstance(given, str) or given not in OPERATIONS:
        raise InvalidConfig(f"operation is {given!r}, not one of {', '.join(map(repr, OPERATIONS))}")
    return OPERATIONS[given]


def _shapes(dims: Any, num_of_partitions: Any, operation: str) -> tuple[list[int], list[int]]:
    """The numbers of rows and of weights of the tables. Raises InvalidConfig with every problem."""
    problems = partition_problems(num_of_partitions)
    pairs = [list(pair) if isinstance(pair, Sequence | np.ndarray) else [pair] for pair in _sequence(dims)]
    if not problems and len(pairs) != num_of_partitions:
        problems.append(f"dims has {len(pairs)} tables, num_of_partitions is {num_of_partitions}")
    if not pairs or any(len(pair) != 2 for pair in pairs):
        problems.append(f"dims is {dims!r}, not [rows, weights a row] for each table")
    else:
        for i, (rows, width) in enumerate(pairs):
            problems += whole_problems(f"dims[{i}][0], its rows,", rows, 1, VOCABULARY_MAX)
            problems += whole_problems(f"dims[{i}][1], its weights,", width, 1, DIM_MAX)
    if not problems:
        widths = [int(width) for _, width in pairs]
        if operation != "concat" and len(set(widths)) > 1:
            problems.append(
                f"rows of {widths} weights cannot be combined by {operation!r}: give them as many, or concat"
            )
        if prod(int(rows) for rows, _ in pairs) > VOCABULARY_MAX:
            problems.append(f"the tables tell more than {VOCABULARY_MAX} ids apart: smaller ones suffice")
    if problems:
        raise InvalidConfig("multi-hash variable: " + "; ".join(problems))
    return [int(rows) for rows, _ in pairs], widths


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else []
