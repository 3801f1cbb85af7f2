"""Parquet, with a CRC for each page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from rockbed.server.table_files.base import TIME_COLUMN, Columns, library, register

ROW_GROUP_ROWS = 1 << 17  # readers take a row group at a time


@register
class Parquet:
    """int64; fixed_size_list<float32>[width]; timestamp[ms, UTC]. No column has nulls."""

    name: ClassVar[str] = "parquet"

    def __init__(self) -> None:
        self._arrow = library("pyarrow", self.name)
        self._parquet = library("pyarrow.parquet", self.name)

    def write(self, file: BinaryIO, columns: Columns) -> None:
        arrow = self._arrow
        arrays, fields = [], []
        for name, column in columns.items():
            array = arrow.array(column.reshape(-1))
            kind = array.type
            if column.ndim == 2:
                kind = arrow.list_(arrow.field("element", kind, nullable=False), column.shape[1])
                array = arrow.FixedSizeListArray.from_arrays(array, type=kind)
            elif name == TIME_COLUMN:
                kind = arrow.timestamp("ms", "UTC")
                array = array.cast(kind)
            arrays.append(array)
            fields.append(arrow.field(name, kind, nullable=False))
        self._parquet.write_table(
            arrow.Table.from_arrays(arrays, schema=arrow.schema(fields)),
            file,
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=False,  # neither keys nor weights repeat
            write_page_checksum=True,
        )

    def read(self, path: Path, names: Mapping[str, object]) -> Columns:
        with self._parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=list(names))
        return {name: self._to_numpy(table.column(name).combine_chunks()) for name in table.column_names}

    def _to_numpy(self, array: Any) -> NDArray[Any]:
        types = self._arrow.types
        if types.is_fixed_size_list(array.type):
            flat: NDArray[Any] = array.flatten().to_numpy()
            # fails where a list is null, which `flatten` leaves out
            return flat.reshape(len(array), array.type.list_size)
        if types.is_timestamp(array.type):
            array = array.cast(self._arrow.timestamp("ms", "UTC")).cast(self._arrow.int64())
        return np.asarray(array.to_numpy(zero_copy_only=False))
