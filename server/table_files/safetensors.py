"""safetensors: a JSON header and the raw arrays, which training frameworks map into memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

from rockbed.server.table_files.base import Columns, library, register


@register
class Safetensors:
    """A tensor of the same name for each column."""

    name: ClassVar[str] = "safetensors"

    def __init__(self) -> None:
        self._numpy = library("safetensors.numpy", self.name)

    def write(self, file: BinaryIO, columns: Columns) -> None:
        # not save_file, which writes beside the path and hides what the disk said in an error of its own
        file.write(self._numpy.save(columns))

    def read(self, path: Path, names: Mapping[str, object]) -> Columns:
        with self._numpy.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
