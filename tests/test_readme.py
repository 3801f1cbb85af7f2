"""The Python of the README and of pages that teach by example runs, and the commands that pages name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebook import executed
from tests.source_tree import ROOT

README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "<!-- not run -->"


def runnable(text: str) -> str:
    """The Python blocks of a page as one program, each line at its number in the page so that tracebacks fit.

    A block straight after the comment `<!-- not run -->` is left out.
    """
    program = ""
    for block in BLOCK.finditer(text):
        if text[: block.start()].rstrip().endswith(NOT_RUN):
            continue
        first_line = text.count("\n", 0, block.start(1))
        program += "\n" * (first_line - program.count("\n")) + block.group(1)
    return program


def run(page: Path, directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a page's blocks, in order, as one program in `directory`. settings: variables of its environment."""
    text = page.read_text()
    code = f"exec(compile({runnable(text)!r}, {page.name!r}, 'exec'), {{'__name__': '__main__'}})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


PAGES = [
    README,
    ROOT / "docs" / "adaptive.md",
    ROOT / "docs" / "fused.md",
    ROOT / "docs" / "multihash.md",
    ROOT / "docs" / "variables.md",
    pytest.param(ROOT / "docs" / "torch.md", marks=pytest.mark.torch),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    assert runnable(page.read_text()).strip(), f"{page.name} has no Python that runs"
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.torch
def test_the_walk_through_runs_and_draws_its_figures(tmp_path: Path) -> None:
    page = ROOT / "docs" / "walkthrough.md"
    done = run(page, tmp_path, FLIGHTS="3000")
    assert done.returncode == 0, done.stderr
    figures = re.findall(r"\]\((images/.+?\.svg)\)", page.read_text())
    assert sorted(figures) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("images/*"))
    # the page has an output below each block that prints, with as many lines
    printed = "".join(re.findall(r"^```text\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
    assert len(done.stdout.splitlines()) == len(printed.splitlines())


def test_a_notebook_has_the_output_of_its_blocks_below_them() -> None:
    page = (
        "# A\n```python\nx = 1\nprint(x)\n```\nText.\n\n```python\nx += 1\n```\n\n"
        "```python\nprint(x)\n```\n\n```text\nold\n```\n"
    )
    done = page.replace("print(x)\n```\nText", "print(x)\n```\n\n```text\n1\n```\nText").replace("old", "2")
    assert executed(page, "page.md") == done
    assert executed(done, "page.md") == done


def test_every_make_target_named_in_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # `make test` in a sentence, or a line of its own in a block.
    command = re.compile(r"\bmake ([a-z-]+)`|^(?:\w+=\S+ )*make ([a-z-]+) *(?:#.*)?$", re.MULTILINE)
    pages = [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {(page.name, name) for page in pages for names in command.findall(page.read_text()) for name in names}
    assert {(page, name) for page, name in named if name and name not in targets} == set()


def test_blocks_run_in_order_and_those_marked_not_run_are_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n<!-- not run -->\n\n```python\nraise SystemExit(3)\n```\n```bash\nexit "
        "4\n```\n```python\nassert x == 2\n```\n"
    )
    done = run(page, tmp_path)
    assert done.returncode == 1
    assert 'File "page.md", line 14' in done.stderr
