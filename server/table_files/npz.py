"""npz: arrays in an uncompressed zip, with a CRC each. numpy alone reads and writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from rockbed.server.table_files.base import Columns, register


@register
class Npz:
    """An array of the same name for each column."""

    name: ClassVar[str] = "npz"

    def write(self, file: BinaryIO, columns: Columns) -> None:
        np.savez(file, allow_pickle=False, **columns)

    def read(self, path: Path, names: Mapping[str, object]) -> Columns:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays}
