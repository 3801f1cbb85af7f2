"""The examples of docs/cli.md and of every command's help run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockbed import PyStorage
from rockbed.server.cli_commands import _PANELS
from tests.cli.helpers import fill, make_store, run
from tests.server.served import Server
from tests.source_tree import ROOT

BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "<!-- not run -->"
SHORTER = {"bench": ["--seconds", "0.05", "--keys", "500"], "top": ["--count", "1"], "drop": ["--yes"]}
"""What is added to commands that would take long, or ask."""


def _of_the_page() -> Iterator[str]:
    text = (ROOT / "docs" / "cli.md").read_text()
    for block in BLOCK.finditer(text):
        if not text[: block.start()].rstrip().endswith(NOT_RUN):
            yield from (line for line in block[1].splitlines() if line)


def _of_the_help() -> Iterator[str]:
    for commands in _PANELS.values():
        for command in commands:
            yield from re.findall(r"Example: (rockbed .*)", command.__doc__ or "")


@pytest.mark.parametrize("source", ["page", "help"])
def test_the_examples_run(source: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = list(_of_the_page() if source == "page" else _of_the_help())
    assert len(examples) > 8
    for folder in ("checkpoints", "exports"):
        (tmp_path / folder).mkdir()
    target = server.start(checkpoints=tmp_path / "checkpoints", exports=tmp_path / "exports")
    with PyStorage(target) as storage:
        fill(storage)
    make_store(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for example in examples:
        program, command, *arguments = shlex.split(example.replace("127.0.0.1:7400", target), comments=True)
        assert program == "rockbed"
        result = run(command, *arguments, *SHORTER.get(command, []))
        assert result.exit_code == 0, f"{example}: {result.output}"
