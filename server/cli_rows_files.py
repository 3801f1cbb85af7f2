"""Rows to be stored, from a file: JSON lines, or npz with the names that an export has."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.client.arrays import checked_keys, checked_rows
from rockbed.errors import InvalidConfig, RowNotFinite
from rockbed.requests import PutRows
from rockbed.server.cli_keys import array_of, checked, lines_of
from rockbed.types import F32

_DTYPES: dict[str, Any] = {
    "weights": np.float32,
    "slots": np.float32,
    "update_num": np.int64,
    "update_time": np.int64,  # ms since 1970
}


def rows_in(file: Path) -> PutRows:
    """The rows of FILE.npz, or of JSON lines; "-" is stdin. Every value is finite, no key stands there twice.

    Raises InvalidConfig, RowNotFinite, WrongDtype, WrongShape.
    """
    found = _arrays_in_npz(file) if file.suffix == ".npz" else _arrays_in_json(file)
    lacking = [name for name in ("key", "weights") if name not in found]
    unknown = sorted(set(found) - {"key", *_DTYPES})
    if lacking or unknown:
        raise InvalidConfig(
            f"{file} has {', '.join(map(repr, found)) or 'nothing'}: 'key' and 'weights' there must be, "
            f"{', '.join(map(repr, [*_DTYPES][1:]))} there may be"
        )
    keys = checked_keys(found["key"])
    rows = checked_rows(keys, found["weights"], found.get("slots"), found.get("update_num"), found.get("update_time"))
    _check(file, rows)
    return rows


def _check(file: Path, rows: PutRows) -> None:
    # what concerns all rows is checked here, because they are sent in several batches
    distinct, counts = np.unique(rows.keys, return_counts=True)
    if distinct.size < rows.keys.size:
        raise InvalidConfig(f"{file} has key {distinct[counts > 1][0]} more than once: a key has one row")
    for name in ("weights", "slots", "update_num", "update_time_ms"):
        array = getattr(rows, name)
        if array is None:
            continue
        if len(array) != rows.keys.size:
            raise InvalidConfig(f"{file} has {rows.keys.size} keys, and {len(array)} of {name}")
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if bad.size:
            raise RowNotFinite(f"{file}: the {name} of key {rows.keys[bad[0]]} hold NaN or Inf")


def _arrays_in_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidConfig(f"{file} is no .npz file that can be read: {error}") from None


def _arrays_in_json(file: Path) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    for number, line in lines_of(file):
        where = f"{file}, line {number}: "
        row = _row(where, line)
        columns = columns or {name: [] for name in row}
        if set(row) != set(columns):
            raise InvalidConfig(where + f"it has {', '.join(row)}, the lines before {', '.join(columns)}")
        for name, value in row.items():
            first = columns[name][0] if columns[name] else value
            if isinstance(value, list) and len(value) != len(first):
                raise InvalidConfig(where + f"{name} has {len(value)} values, those of the lines before {len(first)}")
            columns[name].append(value)
    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        if name == "key":
            arrays[name] = array_of(values)
        else:
            arrays[name] = floats_of(values) if _DTYPES[name] is np.float32 else np.array(values, np.int64)
    return arrays


def floats_of(rows: list[list[float]]) -> F32:
    """float32[n, width]; what is beyond float32 is infinite then, and refused as such."""
    with np.errstate(over="ignore"):
        return np.array(rows, np.float32)


def _row(where: str, line: str) -> dict[str, Any]:
    """One line's fields, each of its kind."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidConfig(where + f"it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidConfig(where + f"it is a JSON {type(row).__name__}, not an object with key and weights")
    for name, value in row.items():
        if name == "key":
            _must_be_key(where, value)
        elif name not in _DTYPES:
            raise InvalidConfig(where + f"unknown field {name!r}; known: key, {', '.join(_DTYPES)}")
        elif not _fits(name, value):
            kind = "a list of numbers" if _DTYPES[name] is np.float32 else "a whole number from 0 to 2^62"
            raise InvalidConfig(where + f"{name} is not {kind}")
    return row


def _must_be_key(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidConfig(where + f"key is {value!r}, not a whole number")
    try:
        checked(value)
    except ValueError as error:
        raise InvalidConfig(where + str(error)) from None


def _fits(name: str, value: Any) -> bool:
    if _DTYPES[name] is np.int64:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 62
    return isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
