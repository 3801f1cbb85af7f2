"""The table of compressed embeddings at a small size: who has how many rows, and which row is whose."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

from examples.compressed import KINDS, Compressed, Kind, Line, Options, Size, held, main, table_of, uniform  # noqa: E402
from examples.flights_data import split, synthetic  # noqa: E402
from examples.torch_comparison import RATE, InRockbed  # noqa: E402
from examples.trainer import Plan  # noqa: E402
from rockbed import PyStorage  # noqa: E402
from rockbed.client.hashing import hash_buckets  # noqa: E402

pytestmark = pytest.mark.torch

DATA = split(synthetic(3000), seed=1)  # features of 20, 50 and 200 values
OPTIONS = Options(threshold=40, collisions=4, frequent=20)
ADAPTIVE = [name for name in KINDS if name.startswith("adaptive")]
COUNTED = ["adaptive, counted", "adaptive, Bloom filter"]
QUOTIENT_REMAINDER = [name for name in KINDS if name.startswith("quotient")]


def compressing(name: str) -> Kind:
    kind = KINDS[name]
    assert kind is not None
    return kind


def test_the_table_tells_rows_memory_loss_and_auc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--synthetic", "3000", "--batch", "64", "--epochs", "2", "--threshold", "40"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert head.count("|") == 9
    assert list(cells) == list(KINDS)
    # a: 20 rows. b, c: 50 and 200 values, of which 4 share a remainder: 4 + 13 and 4 + 50 rows
    rows = dict.fromkeys(KINDS, 91) | {"full": 270} | dict.fromkeys(ADAPTIVE, 20)
    # And a row for each frequent value, beside the buckets of the others; or, counted in both epochs, for each that was
    # seen so often, beside the buckets of all until then.
    for place, buckets in ((1, 13), (2, 50)):
        occurrences = np.unique(DATA.train_keys[:, place], return_counts=True)[1]
        frequent, bucket = occurrences >= 20, hash_buckets(np.arange(len(occurrences)), buckets)
        rows["adaptive, by a mask"] += int(frequent.sum()) + len(np.unique(bucket[~frequent]))
        for name in COUNTED:
            rows[name] += int((2 * occurrences >= 20).sum()) + len(np.unique(bucket))
    assert {name: int(row[0]) for name, row in cells.items()} == rows
    per_row = 4 * 2 * 8  # float32 weights, and as many of Adagrad's state
    assert cells["full"][1] == f"{270 * per_row / 1e6:.2f}"
    assert cells["hashed"][2] == f"{1 - 91 / 270:.1%}"
    # exact counts are of up to 1024 values from the beginning, the filters of the 50 and 200 that there are
    assert float(cells["adaptive, counted"][1]) > float(cells["adaptive, Bloom filter"][1])
    assert cells["quotient-remainder, concat"][2] == f"{1 - (20 + 71 / 2) / 270:.1%}"
    assert all(float(row[5]) > 0.6 for row in cells.values())


@pytest.mark.parametrize("name", KINDS)
def test_every_feature_is_at_its_place_and_unknown_values_give_zeros(name: str, tmp_path: Path) -> None:
    keys = torch.from_numpy(DATA.train_keys[:500])
    with PyStorage(str(tmp_path / "store")) as storage:
        rows = Compressed(storage, DATA, Plan(seed=1), KINDS[name], OPTIONS)
        tables = rows.tables("m", DATA.features, 8, uniform(0.1))
        found = tables(keys)
        assert found.shape == (500, 3, 8)
        for i in range(3):
            alone = torch.full_like(keys, 7)  # a key of no feature
            alone[:, i] = keys[:, i]
            with torch.no_grad():
                seen = tables.eval()(alone)
            torch.testing.assert_close(seen[:, i], found[:, i].detach())
            assert not np.delete(seen.numpy(), i, axis=1).any()
        few = rows.group("m/a", 8, uniform(0.1)).lookup(DATA.train_keys[:500, 0], train=False)
        np.testing.assert_array_equal(found[:, 0].detach(), few)


@pytest.mark.parametrize("name", QUOTIENT_REMAINDER)
def test_embeddings_of_two_rows_are_all_distinct_and_begin_with_the_spread_of_one(name: str, tmp_path: Path) -> None:
    with PyStorage(str(tmp_path / "store")) as storage:
        size = Size(np.ones(4000, np.int64), dim=8, collisions=40, frequent=20)
        found = compressing(name)(InRockbed(storage, 1), "v", size)(torch.arange(4000), True).detach()
        assert len(np.unique(found.numpy(), axis=0)) == 4000
        assert float(found.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)
        rows, bytes_held = held(storage)
        assert rows == 40 + 100
        assert bytes_held == 140 * 4 * 2 * (4 if "concat" in name else 8)


def test_what_is_given_up_is_beside_the_full_table() -> None:
    lines = {"full": Line(100, 2_000_000, 0.5, 0.75), "less": Line(10, 500_000, 0.51, 0.74)}
    assert table_of(lines).splitlines()[2:] == [
        "| full | 100 | 2.00 |  | 0.5000 |  | 0.7500 |  |",
        "| less | 10 | 0.50 | 75.0% | 0.5100 | +2.00% | 0.7400 | +0.0100 |",
    ]


def test_without_examples_it_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--movielens", str(tmp_path / "u.data")]) == 2
    assert "u.data" in capsys.readouterr().out


def test_the_gradient_of_an_adaptive_embedding_updates_the_row_that_was_looked_up(tmp_path: Path) -> None:
    with PyStorage(str(tmp_path / "store")) as storage:
        size = Size(np.array([30, 2, 2, 2]), dim=8, collisions=4, frequent=20)  # one bucket, and 0 has a row of its own
        rows = compressing("adaptive, by a mask")(InRockbed(storage, 1), "v", size)
        ids = torch.arange(3)
        before = rows(ids, True)
        before[0].sum().backward()
        with torch.no_grad():
            after = rows(ids, False)
        assert torch.equal(before[1], before[0])  # it began as a copy of the bucket's
        assert torch.equal(after[1:], before[1:].detach())
        torch.testing.assert_close(after[0], before[0].detach() - RATE)  # Adagrad's first step is its rate
