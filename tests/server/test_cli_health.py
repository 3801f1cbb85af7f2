"""`rockbed health`, and that commands which only ask a server do not load what serves one."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rockbed.errors import StorageFailed
from rockbed.server.cli import app
from tests.server.served import Server
from tests.source_tree import ROOT


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def _health(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["health", *arguments])


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/s"])
def test_a_server_that_serves_is_0(server: Server, tmp_path: Path, listen: str) -> None:
    target = server.start(listen=listen.format(tmp_path))
    plain = target.removeprefix("grpc://").replace("grpc+unix://", "unix:")
    for arguments in (["--server", plain], ["--server", target, "--service", "rockbed.v1.Admin"]):
        result = _health(*arguments)
        assert (result.exit_code, result.stdout) == (0, "SERVING\n")


def test_a_server_that_does_not_serve_is_1_and_the_reason(server: Server) -> None:
    address = server.start().removeprefix("grpc://")
    unknown = _health("--server", address, "--service", "rockbed")
    with pytest.raises(StorageFailed), server.engine.must_succeed(1):
        raise MemoryError
    failed = _health("--server", address)
    server.stop()
    gone = _health("--server", address)
    for result, said in (
        (unknown, "with NOT_FOUND: no service 'rockbed'; known: '', 'rockbed.v1.Admin', 'rockbed.v1.Embedding'"),
        (failed, f"the server at {address} is NOT_SERVING"),
        (gone, f"{address} cannot be reached"),
    ):
        assert result.exit_code == 1
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_server_that_does_not_answer_is_1_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        result = _health("--server", f"127.0.0.1:{mute.getsockname()[1]}", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "did not answer within 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--server", "7400"], "'7400' names no server"),
        (["--timeout", "0"], "timeout is 0 s, not above 0"),
        (["--timeout", "nan"], "timeout is nan s, not above 0"),
    ],
)
def test_what_cannot_be_asked_is_1(arguments: list[str], said: str) -> None:
    result = _health(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["health", "--server", "127.0.0.1:1"]])
def test_a_command_that_serves_nothing_loads_no_engine(arguments: list[str]) -> None:
    code = """
import sys
from rockbed.server.cli import app
try:
    app(sys.argv[1:])
finally:
    print({"numba", "numpy", "rocksdict"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


@pytest.mark.parametrize("library", ["grpc_health", "grpc_reflection"])
def test_a_library_of_the_extra_that_is_missing_is_named_with_the_remedy(library: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from rockbed.__main__ import main; main()"
    command = [sys.executable, "-c", code, "serve", "--data", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"rockbed: {library}")
    assert done.stderr.endswith("is not installed: pip install 'rockbed[server]'\n")
