"""Reads Criteo's click logs: a label, 13 counts and 26 hashed categories a line.

Both the comma-separated samples that go around, which begin with the columns' names, and the files of the Kaggle
challenge of 2014 (train.txt), separated by tabs and without names. For a part of a large file: `head -n 1000000`.
"""

import csv
from pathlib import Path

import numpy as np

from examples.flights_data import Column, Examples, keys_of
from rockbed.types import F32

COUNTS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *COUNTS, *CATEGORIES)


def read_criteo(path: Path) -> Examples:
    """Counts become log(1 + count), negative ones count as 0 (as in Naumov et al.'s DLRM), those missing as NaN. A
    category that is missing is a value like any other. Raises ValueError for lines of another form."""
    with path.open(newline="") as lines:
        tabs = "\t" in lines.readline()
        lines.seek(0)
        rows = list(csv.reader(lines, delimiter="\t" if tabs else ","))
    first_line = 1
    if not tabs:
        if not rows or tuple(rows.pop(0)) != COLUMNS:
            raise ValueError(f"{path}: the first line is neither Kaggle's, with tabs, nor {','.join(COLUMNS)}")
        first_line = 2
    for number, row in enumerate(rows, first_line):
        if len(row) != len(COLUMNS):
            raise ValueError(f"{path}, line {number}: {len(row)} columns, not {len(COLUMNS)}")
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    categories = {name: Column.of(columns[name]) for name in CATEGORIES}
    return Examples(
        keys_of(categories),
        np.array(columns["label"], np.float32),
        CATEGORIES,
        "advertisements shown",
        "is clicked",
        numbers={name: log_counts(columns[name]) for name in COUNTS},
    )


def log_counts(cells: tuple[str, ...]) -> F32:
    """float32[n]: log(1 + count), at least 0; NaN for an empty cell."""
    counts = np.array([cell or "nan" for cell in cells], np.float32)
    logs: F32 = np.log1p(np.maximum(counts, 0))  # maximum keeps NaN
    return logs
