"""Criteo's click logs, in the two forms in which they go around."""

from pathlib import Path

import numpy as np
import pytest

from examples.criteo_data import CATEGORIES, COLUMNS, COUNTS, read_criteo
from examples.flights_data import Column

LINES = [
    ["1", "3", "", "260", "-2", *["0"] * 9, "68fd1e64", "", *["a"] * 24],
    ["0", "0", "7", "", "5", *["12"] * 9, "", "80e26c9b", *["b"] * 24],
]


def written(path: Path, lines: list[list[str]], *, names: bool) -> Path:
    separator = "," if names else "\t"
    text = [separator.join(line) + "\n" for line in ([list(COLUMNS)] if names else []) + lines]
    path.write_text("".join(text))
    return path


@pytest.mark.parametrize("names", [True, False])
def test_labels_counts_and_categories_of_both_forms(names: bool, tmp_path: Path) -> None:
    examples = read_criteo(written(tmp_path / "clicks", LINES, names=names))
    assert examples.labels.tolist() == [1, 0]
    assert examples.features == CATEGORIES
    assert tuple(examples.numbers) == COUNTS
    log = np.log
    np.testing.assert_allclose(examples.numbers["I1"], [log(4), 0], rtol=1e-6)
    np.testing.assert_allclose(examples.numbers["I2"], [np.nan, log(8)], rtol=1e-6)
    np.testing.assert_allclose(examples.numbers["I3"], [log(261), np.nan], rtol=1e-6)
    np.testing.assert_allclose(examples.numbers["I4"], [0, log(6)], rtol=1e-6)  # a negative count counts as 0
    np.testing.assert_array_equal(examples.keys[:, 0], Column.of(["68fd1e64", ""]).keys("C1"))
    np.testing.assert_array_equal(examples.keys[:, 1], Column.of(["", "80e26c9b"]).keys("C2"))
    assert examples.keys.shape == (2, 26)


@pytest.mark.parametrize("names", [True, False])
def test_a_line_of_another_length_is_named(names: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "clicks", [LINES[0], LINES[1][:-1]], names=names)
    with pytest.raises(ValueError, match=f"line {2 + names}: 39 columns, not 40"):
        read_criteo(path)


@pytest.mark.parametrize("text", ["", "1,2,3\n", "label;I1\n"])
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "clicks"
    path.write_text(text)
    with pytest.raises(ValueError, match="the first line is neither Kaggle's"):
        read_criteo(path)
