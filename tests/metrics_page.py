"""The tables of docs/metrics.md, from what a daemon exports: `python -m tests.metrics_page` writes them anew."""

import tempfile
from pathlib import Path

from prometheus_client import Metric

from tests.scraping import busy_daemon, scraped
from tests.source_tree import ROOT

PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- python -m tests.metrics_page -->\n", "<!-- end -->\n"


def page(text: str) -> str:
    """The page with its tables as they should be."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "\n" + _tables() + "\n" + END + tail


def _tables() -> str:
    with tempfile.TemporaryDirectory() as folder, busy_daemon(Path(folder)) as daemon:
        found = scraped(daemon)
    sections: dict[str, list[str]] = {"Requests": [], "A group": [], "The store": [], "The process": []}
    for name, family in found.items():
        labels = _labels(family)
        sections[_section(name, labels)].append(
            f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"
        )
    head = "| name | type | labels | what it is |\n|---|---|---|---|\n"
    return "\n".join(f"### {title}\n\n{head}" + "\n".join(lines) + "\n" for title, lines in sections.items())


def _labels(family: Metric) -> list[str]:
    return [label for label in family.samples[0].labels if label != "le"]


def _section(name: str, labels: list[str]) -> str:
    if name.startswith("process_"):
        return "The process"
    if "method" in labels:
        return "Requests"
    return "A group" if "group" in labels else "The store"


def main(path: Path = PAGE) -> None:
    """Write the tables."""
    path.write_text(page(path.read_text()))


if __name__ == "__main__":
    main()
