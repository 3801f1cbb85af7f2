"""A client in Node.js, made of npm's packages and our proto files or none: it trains rows, and checks the health."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from tests.source_tree import ROOT

SOURCE = Path(__file__).parent / "node"
NETWORK = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET")
KEYS = [7, -1, 2**62 + 1, 7]  # as in client.mjs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """client.mjs with what it needs installed beside it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed: Node.js 18 or newer runs this")
    folder = tmp_path_factory.mktemp("node")
    for name in ("client.mjs", "package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, folder)
    # what npm has downloaded before, it takes from its cache
    command = ["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode and NETWORK.search(done.stderr):
        pytest.skip(f"npm could not install: it does not reach its registry ({NETWORK.findall(done.stderr)[0]})")
    assert done.returncode == 0, done.stderr
    return folder / "client.mjs"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    engine = Engine(tmp_path / "store", StoreConfig())
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0"))
    yield daemon
    daemon.stop(0)
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("services_from", ["proto files", "reflection"])
def test_a_program_in_node_trains_rows_as_a_float64_model_says(
    program: Path, daemon: Daemon, services_from: str
) -> None:
    arguments = [f"127.0.0.1:{daemon.port}", *([str(ROOT / "proto")] if services_from == "proto files" else [])]
    done = subprocess.run(["node", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)

    before, gradients, after = (np.reshape(seen[name], (len(KEYS), 4)) for name in ("before", "gradients", "after"))
    sums = {key: np.sum(gradients[np.equal(KEYS, key)], axis=0) for key in KEYS}
    assert 0 < np.abs(before).max() <= 1
    # in float32 the sum of two gradients and the difference are rounded, each by at most 2^-24 of 2
    np.testing.assert_allclose(after, before - 0.5 * np.array([sums[key] for key in KEYS]), rtol=0, atol=2.0**-22)
    assert seen["applied"] == [True, False]
    assert seen["unknown"] == [5, "unknown_group"]  # 5 is NOT_FOUND
    assert seen["health"] == ["SERVING", "SERVING"]


def test_the_program_in_the_docs_is_made_of_lines_of_this_one() -> None:
    (shown,) = re.findall(r"^```js\n(.*?)^```$", (ROOT / "docs" / "daemon.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = iter((SOURCE / "client.mjs").read_text().splitlines())
    assert [line for line in shown.splitlines() if line and line not in lines] == []  # and in its order


def test_the_lock_file_names_no_registry() -> None:
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert {what.get("resolved") for what in packages.values()} == {None}
    assert all("integrity" in what for name, what in packages.items() if name)
