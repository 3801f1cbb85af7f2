"""A compiled kernel is dropped when, and only when, something that it was compiled from has changed."""

import os
from pathlib import Path

from tests.stale_kernels import delete_stale


def _tree(directory: Path) -> dict[str, Path]:
    sources = {
        "rockbed.helper": "",
        "rockbed.between": "from rockbed.helper import mix",
        "rockbed.uses": "from rockbed import between",
        "rockbed.apart": "import numpy",
    }
    files = {module: directory / f"{module.rpartition('.')[2]}.py" for module in sources}
    (directory / "__pycache__").mkdir()
    for module, file in files.items():
        file.write_text(sources[module])
        os.utime(file, (1_000, 1_000))
        index = directory / "__pycache__" / f"{file.stem}.step-12.py311.nbi"
        index.write_bytes(b"")
        os.utime(index, (2_000, 2_000))
    return files


def test_nothing_is_dropped_while_nothing_has_changed(tmp_path: Path) -> None:
    assert delete_stale(_tree(tmp_path)) == []


def test_a_changed_helper_drops_the_kernels_that_take_it_in_through_other_files(tmp_path: Path) -> None:
    files = _tree(tmp_path)
    os.utime(files["rockbed.helper"], (3_000, 3_000))
    dropped = {index.name.split(".")[0] for index in delete_stale(files)}
    assert dropped == {"helper", "between", "uses"}
    assert [index.name for index in (tmp_path / "__pycache__").iterdir()] == ["apart.step-12.py311.nbi"]
