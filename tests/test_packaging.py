"""The wheel holds, as real files, what the links of the working tree promise."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rockbed
from tests.source_tree import LINKED, ROOT, modules

INPUTS = ("LICENSE", "README.md", "pyproject.toml", "rockbed", *LINKED)


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_is_imported_without_the_checkout(tmp_path: Path) -> None:
    # Built from a copy, links and all, because a build leaves folders behind where it ran.
    tree, site = tmp_path / "tree", tmp_path / "site"
    tree.mkdir()
    for name in INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tree)], check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"rockbed-{rockbed.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert names >= {str(file.relative_to(ROOT)) for file in modules().values()}
    assert "rockbed/py.typed" in names
    kernels = {f"rockbed/storage/gpu/{file.name}" for file in (ROOT / "storage" / "gpu").glob("*.cu*")}
    assert names >= kernels
    assert len(kernels) > 5
    assert {name.split("/")[0] for name in names} == {"rockbed", f"rockbed-{rockbed.__version__}.dist-info"}

    imported = ", ".join(f"rockbed.{name}" for name in LINKED)
    code = f"import rockbed.kernels, {imported}; print(rockbed.storage.__file__, rockbed.PyStorage.__name__)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert out == f"{site / 'rockbed' / 'storage' / '__init__.py'} PyStorage\n"
