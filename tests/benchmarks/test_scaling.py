"""What more cores give: the workers answer, and the table has a row for each request."""

from pathlib import Path

import pytest

from benchmarks import scaling, scaling_worker


def test_threads_answer_look_ups_and_durable_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_worker, "ROWS", 2_000)
    workers = scaling_worker.Workers(tmp_path / "store")
    before = workers.storage.stats()
    assert workers.rate("lookup", 100, 2, 0.05) >= 2 * 100
    assert workers.rate("apply", 100, 2, 0.05) >= 2 * 100
    after = workers.storage.stats()
    assert after["groups"][0]["lookup_keys"] >= before["groups"][0]["lookup_keys"] + 300
    assert after["last_lsn"] >= before["last_lsn"] + 3
    workers.storage.close()


def test_the_table_says_what_each_count_of_cores_does() -> None:
    rates = {
        (what, keys, count): [1e6 * count * round_ for round_ in (1, 2, 3)]
        for what, keys in scaling.CASES
        for count in (1, 2)
    }
    lines = scaling._document(rates, [1, 2], 3, 60.0).splitlines()
    assert "| request | 1 core | 2 cores | gain |" in lines
    assert "| apply, 65,536 keys | 2.00 | 4.00 | 2.00 (2.00 to 2.00) |" in lines
    assert sum(line.startswith("| ") for line in lines) == 1 + len(scaling.CASES)
