"""What a kind of table file can do, and the kinds by name."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from rockbed.errors import DuplicateName, MissingPackage, StorageCorrupt, UnknownName
from rockbed.storage.files import error_of

Columns = dict[str, NDArray[Any]]
"""Name -> int64[n] or float32[n, width >= 1], C-contiguous, all of the same n."""

TIME_COLUMN = "update_time"
"""int64[n] as well, milliseconds since 1970: for formats that have a type for a moment."""


class TableFormat(Protocol):
    """A kind of file that holds columns. Building one raises MissingPackage where its library is not installed."""

    name: ClassVar[str]
    """What users call it, and the ending of its files."""

    def write(self, file: BinaryIO, columns: Columns) -> None:
        """Write a whole file. Errors of the disk are OSErrors."""

    def read(self, path: Path, names: Mapping[str, object]) -> Columns:
        """Those of the named columns that the file has, as they are in it. Damaged bytes may raise anything."""


_formats: dict[str, type[TableFormat]] = {}


def register(cls: type[TableFormat]) -> type[TableFormat]:
    """Make a format known by its name. Raises DuplicateName."""
    if cls.name in _formats:
        raise DuplicateName(f"table format {cls.name!r} is registered twice")
    _formats[cls.name] = cls
    return cls


def table_format(name: str) -> TableFormat:
    """The format of that name. Raises UnknownName, MissingPackage."""
    if name not in _formats:
        raise UnknownName(f"format {name!r} is unknown. Known: {', '.join(sorted(_formats))}")
    return _formats[name]()


def library(name: str, format: str) -> Any:
    """A module of the extra `export`. Raises MissingPackage."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"format {format!r} needs {name.split('.')[0]}, which cannot be imported ({error}): "
            "pip install 'rockbed[export]', or choose format 'npz', which needs nothing more"
        ) from error


def read_columns(format: TableFormat, path: Path, rows: int, widths: Mapping[str, int | None]) -> Columns:
    """Columns of a file, each as it should be.

    widths: name -> None for int64[rows], w for float32[rows, w]. Raises StorageCorrupt, and the disk's errors.
    """
    try:
        found = format.read(path, widths)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise error_of(error, f"reading {path}") from error
        # what a library makes of bytes that are not a file of its own is as various as the damage
        raise StorageCorrupt(f"{path} cannot be read as {format.name}: {error}. Copy or export it again") from error
    for name, width in widths.items():
        wanted = ("int64", (rows,)) if width is None else ("float32", (rows, width))
        column = found.get(name)
        has = None if column is None else (str(column.dtype), column.shape)
        if has != wanted:
            raise StorageCorrupt(
                f"{path}: column {name!r} should be {_typed(*wanted)}, the file has "
                f"{'none' if has is None else _typed(*has)}. Copy or export it again"
            )
    return {name: np.ascontiguousarray(found[name]) for name in widths}


def _typed(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
