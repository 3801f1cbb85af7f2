"""Kinds of files that hold the columns of a table, each by name. Importing this loads none of their libraries."""

from rockbed.server.table_files import npz, parquet, safetensors  # noqa: F401  (each registers itself)
from rockbed.server.table_files.base import Columns, TableFormat, read_columns, table_format

__all__ = ["Columns", "TableFormat", "read_columns", "table_format"]
