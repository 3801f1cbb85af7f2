"""Runs a page that is written like a notebook, puts what its blocks print below them, and its figures beside it.

`python -m tests.notebook docs/walkthrough.md`. Every Python block is run, in order, as one program in a folder of its
own; a block's output becomes the `text` block after it. Figures are what the program leaves in `images/`.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CELL = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)


def executed(text: str, name: str) -> str:
    """The page with the output of its blocks, run here and now. What a block raises is raised."""
    namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(cell: re.Match[str]) -> str:
        code = "\n" * text.count("\n", 0, cell.start(1)) + cell[1]  # so that a traceback has the page's lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
        output = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"```python\n{cell[1]}```\n{output}"

    return CELL.sub(run, text)


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="rockbed-notebook-") as directory:
        os.chdir(directory)
        text = executed(page.read_text(), page.name)
        (page.parent / "images").mkdir(exist_ok=True)
        for figure in sorted(Path("images").glob("*.svg")):
            shutil.copyfile(figure, page.parent / "images" / figure.name)
        os.chdir(page.parent)
    page.write_text(text)


if __name__ == "__main__":
    main()
