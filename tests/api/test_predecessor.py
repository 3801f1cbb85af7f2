"""What users of damo-embedding 1.1.12 ran into, one test for each trap that no other file here has a test for.

Elsewhere: outputs of a wrong dtype, size or layout, unknown options and names, negative rates, NaN, unknown groups
(test_bad_input.py); another dim or optimizer at reopening (test_bad_input.py); a second handle on a directory
(test_opening.py); expired rows (test_ttl.py); kill -9 (test_durability.py).
"""

import importlib
import struct
from pathlib import Path

import numpy as np
from numba.core.registry import CPUDispatcher

import rockbed
from tests.api.helpers import OpenStorage, adagrad, assert_sound, embedding, keys_of, ones, uniform


def test_key_0_is_a_key_and_three_copies_of_a_new_key_get_one_vector(open_storage: OpenStorage) -> None:
    rows = embedding(open_storage(), initializer=uniform())
    out = np.full((4, 4), 9, np.float32)
    rows.lookup(keys_of(0, 0, 0, 5), out)
    assert (out != 9).all()
    np.testing.assert_array_equal(out[[0, 0]], out[1:3])
    np.testing.assert_array_equal(rows.lookup(keys_of(0), train=False), out[:1])
    assert out[0].any()


def test_a_push_to_keys_never_looked_up_is_in_every_copy_of_the_store(
    open_storage: OpenStorage, tmp_path: Path
) -> None:
    storage = open_storage()
    looked_up, pushed = embedding(storage, 2, 1), embedding(storage, 2, 2)
    looked_up.lookup(np.arange(999))
    pushed.apply_gradients(np.arange(5), ones(5, 2))
    storage.checkpoint(tmp_path / "checkpoint")
    type(storage).restore(tmp_path / "checkpoint", tmp_path / "restored")
    restored = open_storage("restored")
    assert restored.check().rows == {1: 999, 2: 5}
    assert restored.dump(tmp_path / "dump") == storage.dump(tmp_path / "other") == 1004
    assert struct.unpack_from("<qq", (tmp_path / "dump").read_bytes(), 4 + 8 + 8) == (999, 5)
    np.testing.assert_array_equal(embedding(restored, 2, 2).lookup(np.arange(5), train=False), np.full((5, 2), -0.5))


def test_two_stores_begin_alike_only_where_their_seeds_are(open_storage: OpenStorage) -> None:
    first = [
        embedding(open_storage(name), initializer=uniform(), seed=seed).lookup(np.arange(100))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    np.testing.assert_array_equal(first[0], first[1])
    assert not (first[0] == first[2]).any()


def test_no_kernel_holds_the_interpreter_while_it_runs() -> None:
    modules = [importlib.import_module(f"rockbed.{folder}.{file.stem}") for folder, file in _sources()]
    kernels = [value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)]
    assert len(kernels) > 50
    assert [kernel.py_func.__name__ for kernel in kernels if not kernel.targetoptions.get("nogil")] == []


def _sources() -> list[tuple[str, Path]]:
    root = Path(rockbed.__file__).parent
    return [
        (folder, file) for folder in ("storage", "server", "optimizers") for file in (root / folder).glob("[a-z]*.py")
    ]


def test_groups_of_different_dims_never_read_each_others_rows(open_storage: OpenStorage) -> None:
    storage = open_storage()
    for group, dim in enumerate((1, 4, 7, 64)):
        embedding(storage, dim, group, optimizer=adagrad()).apply_gradients(np.arange(50), ones(50, dim))
    storage.close()
    again = open_storage()
    for group, dim in enumerate((1, 4, 7, 64)):
        got = embedding(again, dim, group, optimizer=adagrad()).lookup(np.arange(60), train=False)
        np.testing.assert_allclose(got, np.repeat([[-0.5]] * 50 + [[0.0]] * 10, dim, axis=1), rtol=1e-6)
    assert_sound(again)
