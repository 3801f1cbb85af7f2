"""Saver: checkpoints and saved models of variables, whole and since another one, onto any number of storages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    GroupConflict,
    InvalidConfig,
    KvVariable,
    PyStorage,
    Saver,
    StorageClosed,
    StorageCorrupt,
    StoreExists,
    StoreNotFound,
    WrongDtype,
    fixed_size_partitioner,
    get_multihash_variable,
)
from rockbed.types import F32
from tests.api.helpers import Clock, OpenStorage, adagrad, ones, run_python
from tests.api.tables import stored
from tests.api.variables import initial, names_of_one_number, variable

Rows = dict[int, tuple[bytes, int, int]]


def made(where: Any, parts: int, name: str = "test/rows", **options: Any) -> KvVariable:
    return variable(where, name, optimizer=adagrad(), partitioner=fixed_size_partitioner(parts), **options)


def trained(rows: KvVariable, seed: int = 1) -> Rows:
    """Some pushes, and what is stored then."""
    random = np.random.default_rng(seed)
    for _ in range(3):
        ids = random.integers(-300, 300, 150)
        rows.apply_gradients(ids, random.normal(size=(150, 4)).astype(np.float32))
    return all_rows(rows)


def all_rows(rows: KvVariable) -> Rows:
    """What all storages have of a variable; and each row is on the one where its key belongs."""
    found: Rows = {}
    for i, storage in enumerate(rows.storages):
        here = stored(storage, rows.config.group)
        keys = np.array(list(here), np.int64)
        assert [at for at, _ in rows.placement.split(keys)] == ([i] if here else [0])
        found |= here
    return found


def fresh(open_storage: OpenStorage, count: int, name: str, **options: Any) -> list[PyStorage]:
    return [open_storage(f"{name}{i}", **options) for i in range(count)]


@pytest.mark.parametrize("format", ["npz", "parquet"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_was_saved_comes_back_bit_for_bit(
    open_storage: OpenStorage, tmp_path: Path, count: int, format: str
) -> None:
    places = fresh(open_storage, count, "s")
    rows, words = made(places, 5), made(places, 5, "test/words")
    wanted, other = trained(rows), trained(words, 2)
    reports = Saver([rows, words]).save(tmp_path / "saved", format=format)
    assert sum(report.rows_written[rows.config.group] for report in reports) == len(wanted)
    trained(rows, 3)
    trained(words, 4)
    Saver([rows, words]).restore(tmp_path / "saved")
    assert (all_rows(rows), all_rows(words)) == (wanted, other)
    np.testing.assert_array_equal(rows.lookup([1000]), initial(rows, 1000))


@pytest.mark.parametrize(
    ("before", "after"), [((1, 1), (7, 3)), ((2, 2), (3, 3)), ((7, 3), (5, 2)), ((7, 3), (2, 1)), ((3, 2), (7, 2))]
)
def test_variables_are_restored_in_other_parts_on_other_storages(
    open_storage: OpenStorage, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    rows = made(fresh(open_storage, before[1], "old"), before[0])
    wanted = trained(rows)
    Saver([rows]).save(tmp_path / "whole")
    rows.apply_gradients(np.arange(50), ones(50))
    rows.storages[0].shrink(group=rows.config.group, min_count=2)
    changed = all_rows(rows)
    assert wanted.keys() - changed.keys()
    Saver([rows]).save(tmp_path / "changes", since=tmp_path / "whole")
    new = made(fresh(open_storage, after[1], "new"), after[0])
    trained(new, 9)
    Saver([new]).restore(tmp_path / "whole", shards=before[1])
    assert all_rows(new) == wanted
    Saver([new]).restore(tmp_path / "changes", shards=before[1])
    assert all_rows(new) == changed
    for ids in ([5000], np.arange(5000, 5040)):
        np.testing.assert_array_equal(new.lookup(ids), rows.lookup(ids))


def test_a_storage_reads_its_own_shard_unless_rows_belong_elsewhere_now(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    rows = made(fresh(open_storage, 2, "old"), 2)
    wanted = trained(rows)
    Saver([rows]).save(tmp_path / "saved")
    trained(rows, 3)
    assert len(Saver([rows]).restore(tmp_path / "saved")) == 2
    assert all_rows(rows) == wanted
    other = made(fresh(open_storage, 2, "new"), 3)
    assert len(Saver([other]).restore(tmp_path / "saved")) == 4
    assert all_rows(other) == wanted


def test_variables_that_have_each_others_numbers_are_not_mixed_up(open_storage: OpenStorage, tmp_path: Path) -> None:
    one, other = names_of_one_number()
    (here,), (there,) = fresh(open_storage, 1, "here"), fresh(open_storage, 1, "there")
    saved = [variable(here, name) for name in (one, other)]
    mine, theirs = [variable(there, name) for name in (other, one)][::-1]
    assert (mine.config.group, theirs.config.group) == (saved[1].config.group, saved[0].config.group)
    wanted, kept = trained(saved[0]), trained(theirs, 5)
    trained(saved[1], 2)
    trained(mine, 3)
    Saver(saved).save(tmp_path / "saved")
    Saver([mine]).restore(tmp_path / "saved")
    assert (all_rows(mine), all_rows(theirs)) == (wanted, kept)


def test_a_multi_hash_variable_is_saved_with_all_tables(open_storage: OpenStorage, tmp_path: Path) -> None:
    (storage,) = fresh(open_storage, 1, "s")
    films = get_multihash_variable("films", [[10, 4], [10, 4]], storage=storage)
    films.apply_gradients(np.arange(50), ones(50))
    wanted = np.array(films.lookup(np.arange(50)))
    Saver([films]).save(tmp_path / "saved")
    films.apply_gradients(np.arange(50), ones(50))
    Saver([films]).restore(tmp_path / "saved")
    np.testing.assert_array_equal(films.lookup(np.arange(50)), wanted)


def test_rows_of_keys_of_another_dtype_are_not_restored(open_storage: OpenStorage, tmp_path: Path) -> None:
    (here,), (there,) = fresh(open_storage, 1, "here"), fresh(open_storage, 1, "there")
    words = variable(here, key_dtype=str)
    words.apply_gradients(["a"], ones(1))
    Saver([words]).save(tmp_path / "saved")
    numbers = variable(there)
    kept = trained(numbers)
    with pytest.raises(GroupConflict, match=r"int64.*string"):
        Saver([numbers]).restore(tmp_path / "saved")
    assert all_rows(numbers) == kept


def test_a_checkpoint_replaces_or_is_merged(open_storage: OpenStorage, tmp_path: Path) -> None:
    rows = made(fresh(open_storage, 2, "s"), 2)
    rows.apply_gradients(np.arange(20), ones(20))
    saved = all_rows(rows)
    Saver([rows]).save(tmp_path / "saved")
    rows.apply_gradients(np.arange(10, 30), ones(20))
    later = all_rows(rows)
    Saver([rows]).restore(tmp_path / "saved", mode="merge")
    assert all_rows(rows) == {**later, **saved}
    Saver([rows]).restore(tmp_path / "saved")
    assert all_rows(rows) == saved


def test_changes_alone_are_merged_into_a_store_that_follows(open_storage: OpenStorage, tmp_path: Path) -> None:
    (here,), (there,) = fresh(open_storage, 1, "here"), fresh(open_storage, 1, "there")
    rows, following = made(here, 1), made(there, 1)
    rows.apply_gradients(np.arange(20), ones(20))
    Saver([rows]).save(tmp_path / "0")
    Saver([following]).restore(tmp_path / "0")
    for i in range(1, 4):
        rows.apply_gradients(np.arange(i, 20 + i), ones(20))
        here.shrink(group=rows.config.group, min_count=2)
        (report,) = Saver([rows]).save(tmp_path / f"{i}", since=tmp_path / f"{i - 1}")
        (read,) = Saver([following]).restore(tmp_path / f"{i}", mode="merge", chain=False)
        assert read.rows_read == report.rows_written
        assert read.rows_removed == report.rows_removed
        assert all_rows(following) == all_rows(rows)


def test_a_saved_model_leaves_out_what_serving_does_not_need(open_storage: OpenStorage, tmp_path: Path) -> None:
    (storage,), (server,) = fresh(open_storage, 1, "train"), fresh(open_storage, 1, "serve")
    lasso = {"name": "group_adam", "gamma": 0.1, "lambda21": 10.0}
    rows = variable(storage, optimizer=lasso)
    rows.lookup([1, 2, 3])
    rows.apply_gradients([1], ones(1, value=1e-3))
    assert not rows.lookup([1]).any()  # group lasso has set it to zero
    storage.put_rows(rows.config.group, np.array([4, 5]), np.array([[1e-21] * 4, [1e-3] * 4], np.float32))
    found = {}
    models: list[tuple[str, dict[str, Any]]] = [
        ("default", {}),
        ("all", {"cutoff": 0.0, "blacklist": False}),
        ("no_zeros", {"cutoff": 0.0}),
        ("cut", {"cutoff": 0.01}),
        ("trained", {"cutoff": 0.0, "blacklist": False, "min_count": 1}),
    ]
    for name, options in models:
        Saver([rows]).export_saved_model(tmp_path / name, **options)
        found[name] = _saved(open_storage(f"read-{name}"), tmp_path / name, rows)
    assert {name: sorted(each) for name, each in found.items()} == {
        "default": [2, 3, 5],
        "all": [1, 2, 3, 4, 5],
        "no_zeros": [2, 3, 4, 5],
        "cut": [2, 3],
        "trained": [1],
    }
    np.testing.assert_array_equal(found["default"][2], initial(rows, 2)[0])
    serving = variable(server, optimizer=lasso, trainable=False, miss_value=0.0)
    Saver([serving]).restore(tmp_path / "default")
    np.testing.assert_array_equal(serving.lookup([1, 2, 3, 5]), rows.lookup([1, 2, 3, 5]))


def _saved(storage: PyStorage, path: Path, rows: KvVariable) -> dict[int, F32]:
    storage.import_(path)
    return {key: np.frombuffer(row[0], np.float32)[:4] for key, row in stored(storage, rows.config.group).items()}


def test_rows_that_group_lasso_sets_to_zero_are_gone_from_a_model_and_come_back(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    rows = variable(fresh(open_storage, 1, "train"), optimizer={"name": "group_adam", "gamma": 0.1, "lambda21": 0.01})
    (serving,) = fresh(open_storage, 1, "serve")
    saver = Saver([rows])
    rows.lookup([1, 2])
    saver.export_saved_model(tmp_path / "0")
    rows.apply_gradients([1], ones(1, value=1e-6))
    assert not rows.lookup([1]).any()
    (report,) = saver.export_saved_model(tmp_path / "1", since=tmp_path / "0")
    assert (report.rows_written, report.rows_removed) == ({rows.config.group: 0}, {rows.config.group: 1})
    assert sorted(_saved(serving, tmp_path / "1", rows)) == [2]
    for _ in range(5):
        rows.apply_gradients([1], ones(1, value=5.0))
    assert rows.lookup([1]).any()
    saver.export_saved_model(tmp_path / "2", since=tmp_path / "1")
    np.testing.assert_array_equal(_saved(serving, tmp_path / "2", rows)[1], rows.lookup([1])[0])


def test_a_restore_that_was_interrupted_is_repeated(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made(fresh(open_storage, 3, "old"), 7)
    wanted = trained(rows)
    Saver([rows]).save(tmp_path / "saved")
    new = made(fresh(open_storage, 2, "new"), 5)
    trained(new, 9)
    import_, calls = type(new.storages[1]).import_, []

    def failing(self: PyStorage, path: Any, **options: Any) -> Any:
        calls.append(path)
        if len(calls) == 6 + 5:  # after the six checks
            raise StoreNotFound("the disk was taken away")
        return import_(self, path, **options)

    monkeypatch.setattr(type(new.storages[1]), "import_", failing)
    with pytest.raises(StoreNotFound, match="taken away"):
        Saver([new]).restore(tmp_path / "saved", shards=3)
    assert all_rows(new) != wanted
    Saver([new]).restore(tmp_path / "saved", shards=3)
    assert all_rows(new) == wanted


@pytest.mark.embedded
@pytest.mark.parametrize("puts", [0, 2, 4])
def test_a_restore_that_was_killed_is_repeated(tmp_path: Path, puts: int) -> None:
    script = """
import rockbed
from rockbed.server import importing
importing.BATCH_BYTES_MAX = 2000
put, left = importing.put, int(sys.argv[2])
def dying(*args, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    return put(*args, **options)
def opened(name, count, parts):
    places = [PyStorage(f"{sys.argv[1]}/{name}{i}") for i in range(count)]
    return rockbed.get_kv_variable(
        "rows", 4, storage=places, partitioner=rockbed.fixed_size_partitioner(parts), optimizer="adagrad"
    )
ids = np.arange(300)
path = sys.argv[1] + "/saved"
if not os.path.exists(path + "-00000-of-00003"):
    old = opened("old", 3, 7)
    old.apply_gradients(ids, np.repeat(ids[:, None], 4, axis=1).astype(np.float32))
    rockbed.Saver([old]).save(path)
    importing.put = dying
    new = opened("new", 2, 5)
    new.apply_gradients(ids + 200, np.ones((300, 4), np.float32))
    rockbed.Saver([new]).restore(path, shards=3)
else:
    old, new = opened("old", 3, 7), opened("new", 2, 5)
    rockbed.Saver([new]).restore(path, shards=3)
    assert sum(place.stats()["rows"] for place in new.storages) == 300
    assert (new.lookup(ids) == old.lookup(ids)).all()
    assert all(place.check().ok for place in new.storages)
    print("well")"""
    killed = run_python(script, tmp_path, puts)
    assert killed.returncode == -9, killed.stderr
    done = run_python(script, tmp_path, 1000)
    assert done.stdout.strip() == "well", done.stderr


def test_a_damaged_shard_changes_nothing(open_storage: OpenStorage, tmp_path: Path) -> None:
    rows = made(fresh(open_storage, 2, "s"), 2)
    trained(rows)
    Saver([rows]).save(tmp_path / "saved")
    wanted = trained(rows, 3)
    file = next((tmp_path / "saved-00001-of-00002").glob("*0.npz"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(StorageCorrupt):
        Saver([rows]).restore(tmp_path / "saved")
    assert all_rows(rows) == wanted


@pytest.mark.parametrize("failing", [0, 2])
def test_a_save_that_fails_on_one_storage_leaves_nothing_of_itself(
    open_storage: OpenStorage, tmp_path: Path, failing: int
) -> None:
    rows = made(fresh(open_storage, 3, "s"), 3)
    wanted = trained(rows)
    saver = Saver([rows])
    saver.save(tmp_path / "old")
    shards = [f"{name}-{i:05d}-of-00003" for name in ("old", "saved") for i in range(3)]
    taken = tmp_path / shards[3 + failing]
    taken.mkdir()
    (taken / "note").write_text("not an export")
    with pytest.raises(StoreExists):
        saver.save(tmp_path / "saved", since=tmp_path / "old")
    with pytest.raises(StoreExists):
        saver.save(tmp_path / "old")  # what an earlier call has written stays
    left = sorted(path.name for path in tmp_path.iterdir() if not (path / "catalog.json").exists())
    assert left == [*shards[:3], taken.name]
    (taken / "note").unlink()
    later = trained(rows, 3)
    saver.save(tmp_path / "saved", since=tmp_path / "old")
    for name, had in (("old", wanted), ("saved", later)):
        saver.restore(tmp_path / name)
        assert all_rows(rows) == had


def test_what_cannot_be_removed_of_a_save_that_failed_is_said(
    open_storage: OpenStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = made(fresh(open_storage, 2, "s"), 2)
    (tmp_path / "saved-00001-of-00002").write_text("a file")

    def fails(*_: Any) -> None:
        raise StorageClosed("the server is away")

    monkeypatch.setattr(rows.storages[0].backend, "remove_export", fails)
    with pytest.raises(StoreExists):
        Saver([rows]).save(tmp_path / "saved")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "rockbed"]
    assert "saved-00000-of-00002 is left of a save that failed, remove it: the server is away" in said


def test_a_saver_takes_all_variables_that_are_open(open_storage: OpenStorage, tmp_path: Path) -> None:
    (storage,) = fresh(open_storage, 1, "s")
    with pytest.raises(InvalidConfig, match="no variable"):
        Saver()
    rows, words = variable(storage), variable(storage, "words", key_dtype=str, collections=["mine"])
    assert Saver().variables == (rows, words)
    words.apply_gradients(["a", "b"], ones(2))
    Saver().save(tmp_path / "saved")
    words.apply_gradients(["a", "c"], ones(2))
    Saver().restore(tmp_path / "saved")
    np.testing.assert_array_equal(words.lookup("a"), words.lookup(["a"])[0])
    assert storage.stats()["rows"] == 2


def test_what_a_saver_cannot_do_is_an_error(open_storage: OpenStorage, tmp_path: Path, clock: Clock) -> None:
    a, b = fresh(open_storage, 2, "s", clock=clock)
    rows, elsewhere = variable(a), variable(b)
    for given, error in (
        ([], InvalidConfig),
        ([rows, elsewhere], InvalidConfig),
        ([rows.embedding], WrongDtype),
        (rows, WrongDtype),
    ):
        with pytest.raises(error):
            Saver(given)  # type: ignore[arg-type]
    saver = Saver([rows])
    saver.save(tmp_path / "saved")
    with pytest.raises(StoreExists):
        saver.save(tmp_path / "saved")
    with pytest.raises(StoreNotFound):
        saver.restore(tmp_path / "saved", shards=2)
    wrong: list[dict[str, Any]] = [{"mode": "keep"}, {"shards": 0}, {"chain": False}]
    for options in wrong:
        with pytest.raises(InvalidConfig):
            saver.restore(tmp_path / "saved", **options)
    wrong = [{"cutoff": -1.0}, {"blacklist": "yes"}, {"min_count": -1}]
    for options in wrong:
        with pytest.raises(InvalidConfig):
            saver.export_saved_model(tmp_path / "model", **options)
    elsewhere.drop()
    with pytest.raises(StorageClosed, match="was dropped"):
        Saver([elsewhere])
    a.close()
    with pytest.raises(StorageClosed):
        saver.save(tmp_path / "more")
