"""Every relative link of the pages leads to a file, and every #anchor to a heading, that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.source_tree import ROOT

FENCED = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
TARGET = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?[^)]*\)"  # [text](target "title")
    r"|^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)"  # [name]: target
    r"|\b(?:href|src)=\"([^\"]+)\"",
    re.MULTILINE,
)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$", re.MULTILINE)
NAMED = re.compile(r"\b(?:id|name)=\"([^\"]+)\"")


def pages() -> list[Path]:
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page: its headings in lower case, letters, digits, "_" and "-" kept, a space
    becomes "-"; the second heading of a name has "-1" at its end.
    """
    text = FENCED.sub("", text)
    found = set(NAMED.findall(CODE.sub("", text)))
    for heading in HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link's text
        shown = re.sub(r"(?<![\w`])_([^_`]+)_(?![\w`])", r"\1", shown)  # emphasis
        name = anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = 0
        while anchor in found:
            again += 1
            anchor = f"{name}-{again}"
        found.add(anchor)
    return found


def dead_links(page: Path) -> Iterator[str]:
    text = FENCED.sub("", page.read_text())
    for match in TARGET.findall(CODE.sub("", text)):
        link = next(filter(None, match))
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.IGNORECASE):
            continue  # another site's: a test does not ask the network
        path, _, anchor = link.partition("#")
        target = page.parent / unquote(path) if path else page
        if not target.exists():
            yield f"{link}: there is no such file"
        elif anchor and target.suffix == ".md" and unquote(anchor) not in anchors(target.read_text()):
            yield f"{link}: {target.name} has no such heading"


def test_every_relative_link_leads_somewhere() -> None:
    dead = [f"{page.relative_to(ROOT)}: {problem}" for page in pages() for problem in dead_links(page)]
    assert dead == []


def test_anchors_are_githubs() -> None:
    page = """# One heading, `two_words()` & _more_
Text.
## [Unreleased]
## A [link](there.md#x) in it ##
### Again
### Again
```bash
# no heading
```
<a id="by-hand"></a>
#nor this
"""
    assert anchors(page) == {
        "one-heading-two_words--more",
        "unreleased",
        "a-link-in-it",
        "again",
        "again-1",
        "by-hand",
    }


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[a](other.md) [b](other.md#there) [c](#here) [d](sub/) [e](https://example.org/x.md#y)\n# Here", []),
        ("[a](others.md)", ["others.md: there is no such file"]),
        ("![a](plot.png 'title')", ["plot.png: there is no such file"]),
        ("[a](other.md#nowhere)", ["other.md#nowhere: other.md has no such heading"]),
        ("[a](#there)", ["#there: page.md has no such heading"]),
        ("[a][b]\n\n[b]: lost.md", ["lost.md: there is no such file"]),
        ('<img src="plot.svg">', ["plot.svg: there is no such file"]),
        ("`[a](lost.md)`\n\n```md\n[a](lost.md)\n```\n[b](lost.md)", ["lost.md: there is no such file"]),
    ],
)
def test_a_dead_link_is_found(tmp_path: Path, text: str, dead: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "other.md").write_text("# There\n")
    (tmp_path / "page.md").write_text(text)
    assert list(dead_links(tmp_path / "page.md")) == dead
