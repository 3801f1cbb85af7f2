"""Table files: each format registers itself, and loads its library when it is asked for."""

import subprocess
import sys

import pytest

from rockbed import DuplicateName
from rockbed.server.table_files.base import register
from rockbed.server.table_files.npz import Npz
from tests.source_tree import ROOT


def test_the_formats_and_the_server_are_imported_without_their_libraries() -> None:
    code = "import sys, rockbed.server.admin; print(sorted({'pyarrow', 'safetensors'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_second_format_of_one_name_is_refused() -> None:
    with pytest.raises(DuplicateName, match="'npz' is registered twice"):
        register(Npz)
