"""Batches, results and gradients in the memory of a device: taken without copies, in the order of streams."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    DeviceOutOfMemory,
    Feature,
    FusedEmbedding,
    GradientNotFinite,
    InvalidConfig,
    PyEmbedding,
    PyOptimizer,
    PyStorage,
    Ragged,
    WrongDtype,
    WrongShape,
)
from rockbed.device_arrays import on_device
from rockbed.errors import BatchTooLarge, RockbedError, UnknownGroup
from tests.api.helpers import QUIET, Served, adagrad, assert_sound, embedding, keys_of, ones, uniform
from tests.fused.cases import every_feature, random_batch, random_gradients, two_tables
from tests.gpu.host_launcher import HostLauncher
from tests.gpu.lenders import ByDlpack, ByInterface, Lend, Lent, Stream, lent, lent_batch, results
from tests.gpu.stores import Open, assert_equal, assert_same_rows, stats_of

LENDERS = pytest.mark.parametrize("lend", [ByDlpack, ByInterface])
K, ENDS = keys_of(1, 2, 3), np.array([0, 2, 3])


@pytest.fixture
def launcher() -> HostLauncher:
    return HostLauncher()


def two_features(storage: PyStorage, **options: Any) -> FusedEmbedding:
    """A pooled feature "a" of group 1, and a sequence "s" of group 2, both of dim 4."""
    options = {"initializer": uniform(), **options}
    groups = [embedding(storage, group=number, **options) for number in (1, 2)]
    return FusedEmbedding([Feature("a", groups[0], "sum"), Feature("s", groups[1], None)])


def tables_of(fused: FusedEmbedding) -> list[PyEmbedding]:
    return [each.embedding for each in fused.features]


# --- what comes out ---


@LENDERS
@pytest.mark.parametrize("unsigned", [False, True])
def test_every_setting_gives_the_bits_that_arrays_of_memory_give(
    open_storage: Open, lend: Lend, unsigned: bool
) -> None:
    options: dict[str, Any] = {"optimizer": adagrad(), "miss_value": 0.25}
    fused = [FusedEmbedding(every_feature(two_tables(open_storage(name), **options))) for name in ("lent", "in memory")]
    random = np.random.default_rng(3)
    for step in range(3):
        batch = random_batch(random, fused[0].features, 6, unsigned=unsigned)
        out = fused[0].lookup(lent_batch(batch, lend), train=step > 0)
        expected = fused[1].lookup(batch, train=step > 0)
        assert not out.kept
        assert on_device(out.pooled)
        assert_equal([results(fused[0], out)[0], expected.pooled])
        for found, wanted in zip(results(fused[0], out)[1:], expected.sequences.values(), strict=True):
            np.testing.assert_array_equal(found, wanted)
        pooled, sequences = random_gradients(random, expected)
        again = out if step % 2 else lent_batch(batch, lend)
        fused[0].apply_gradients(again, lend(pooled), {name: lend(each) for name, each in sequences.items()})
        fused[1].apply_gradients(expected, pooled, sequences)
    pair = zip(tables_of(fused[0]), tables_of(fused[1]), strict=True)
    for groups in {groups[0].group: groups for groups in pair}.values():
        assert_same_rows(groups, np.arange(-2, 6))


def test_an_output_lends_its_arrays_as_a_gpu_does(open_storage: Open) -> None:
    fused = two_features(open_storage())
    out = fused.lookup({"a": lent(Ragged(K, ENDS)), "s": lent(Ragged(K, ENDS))})
    for array, shape in ((out.pooled, (2, 4)), (out["s"], (3, 4)), (out["a"], (2, 4))):
        interface = array.__cuda_array_interface__  # type: ignore[attr-defined]
        assert (interface["shape"], interface["version"], interface["stream"]) == (shape, 3, 1)
        assert array.__dlpack_device__() == (2, 0)
    assert repr(out) == "FusedOutput(pooled: float32[2, 4], s: float32[3, 4])"
    assert len(out) == 2


def test_what_was_looked_up_is_lent_to_the_next_lookup_and_push(open_storage: Open) -> None:
    fused = two_features(open_storage())
    out = fused.lookup({"a": lent(Ragged(K, ENDS)), "s": lent(Ragged(K, ENDS))}, train=True)
    before = results(fused, out)[0].copy()
    fused.apply_gradients(out, out.pooled, {"s": out["s"]})  # sgd at 0.5: each row of "a" loses half of its bag's sum
    found = tables_of(fused)[0].lookup(K, train=False)
    np.testing.assert_array_equal(found[2], before[1] - np.float32(0.5) * before[1])


# --- without copies ---


@LENDERS
def test_kernels_read_the_callers_arrays_and_write_the_output_itself(
    open_storage: Open, launcher: HostLauncher, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = two_features(open_storage())
    batch = {"a": Ragged(K, ENDS, np.ones(3, np.float32)), "s": Ragged(K, ENDS)}
    fused.lookup(batch)  # makes the rows
    mine = lent_batch(batch, lend)
    grads = [lend(ones(2)), lend(ones(3))]
    read, copied, down = set(), [], []
    real_address, real_up, real_down = launcher.address, launcher.to_device, launcher.to_host

    def address(array: Any) -> int:
        read.add(real_address(array))
        return real_address(array)

    def up(array: Any) -> Any:
        copied.append(array.dtype)
        return real_up(array)

    def to_host(array: Any) -> Any:
        down.append(array.nbytes)
        return real_down(array)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "address", address)
        patch.setattr(launcher, "to_device", up)
        patch.setattr(launcher, "to_host", to_host)
        out = fused.lookup(mine)
        assert down == [2 * 12]  # the counts: the only thing for which the host waits
        assert {dtype.name for dtype in copied} == {"uint8"}  # the table of features, none of their arrays
        fused.apply_gradients(out, grads[0], {"s": grads[1]})
    sent = [array for bags in mine.values() for array in (bags.keys, bags.offsets, bags.weights) if array is not None]
    pointers = {each.array.ctypes.data for each in [*sent, *grads] if isinstance(each, Lent)}
    assert len(pointers) == 7
    assert pointers <= read
    assert {real_address(out.pooled), real_address(out["s"])} <= read


def test_arrays_stay_as_long_as_the_output_does(open_storage: Open) -> None:
    fused = two_features(open_storage())
    out = fused.lookup({"a": lent(Ragged(K, ENDS), ByInterface), "s": lent(Ragged(K, ENDS), ByInterface)})
    filler = [np.full(3, -1) for _ in range(1000)]  # which would take the place of what was let go of
    fused.apply_gradients(out, ones(2), {"s": ones(3)})
    assert tables_of(fused)[0].storage.get_rows(1, K).update_num.tolist() == [1, 1, 1]
    assert len(filler) == 1000


def test_offsets_of_int32_are_widened_there(open_storage: Open) -> None:
    fused = two_features(open_storage())
    bags = lent(Ragged(K, ENDS))
    narrow = Ragged(bags.keys, ByDlpack(ENDS.astype(np.int32)))  # type: ignore[arg-type]
    assert_equal(results(fused, fused.lookup({"a": each, "s": bags}))[0] for each in (bags, narrow))


# --- the order of streams ---


def on_stream(launcher: HostLauncher, handle: int, lend: Lend) -> tuple[Stream, dict[str, Ragged]]:
    """A batch that its library has yet to fill, on a stream."""
    stream = Stream(launcher, handle)
    return stream, {name: lent(Ragged(K, ENDS), lend, stream) for name in "as"}


@LENDERS
def test_what_the_arrays_library_has_queued_is_waited_for(
    open_storage: Open, launcher: HostLauncher, lend: Lend
) -> None:
    fused = two_features(open_storage())
    expected = fused.lookup({name: Ragged(K, ENDS) for name in "as"})
    _, batch = on_stream(launcher, 40, lend)
    out = fused.lookup(batch)
    np.testing.assert_array_equal(results(fused, out)[0], expected.pooled)
    stream = Stream(launcher, 41)
    grads = [lend(ones(n), stream) for n in (2, 3)]
    fused.apply_gradients(out, grads[0], {"s": grads[1]})
    np.testing.assert_array_equal(tables_of(fused)[0].lookup(K, train=False)[2], expected.pooled[1] - np.float32(0.5))


@pytest.mark.parametrize("as_handle", [True, False])
def test_a_call_takes_its_place_in_the_stream_that_is_given(
    open_storage: Open, launcher: HostLauncher, as_handle: bool
) -> None:
    fused = two_features(open_storage())
    expected = fused.lookup({name: Ragged(K, ENDS) for name in "as"})
    stream = Stream(launcher, 50)
    batch = lent_batch({name: Ragged(K, ENDS) for name in "as"}, ByInterface, stream)
    arrays: list[Any] = [each for bags in batch.values() for each in (bags.keys, bags.offsets)]
    for each in arrays:
        each.changes = {"stream": None}  # as torch's, of version 2
    launcher.order.clear()
    out = fused.lookup(batch, stream=50 if as_handle else stream)
    assert launcher.order == ["waits for 0", "waits for 50", "pool", "check_offsets", "0 goes on", "50 goes on"]
    np.testing.assert_array_equal(results(fused, out)[0], expected.pooled)
    launcher.order.clear()
    fused.apply_gradients(out, ones(2), {"s": ones(3)}, stream=50 if as_handle else stream)
    assert launcher.order[:2] == ["waits for 0", "waits for 50"]
    assert launcher.order[-2:] == ["0 goes on", "50 goes on"]
    assert launcher.order.index("update") < launcher.order.index("50 goes on")


def test_without_one_it_is_the_threads_own_of_the_launchers_library(open_storage: Open, launcher: HostLauncher) -> None:
    fused = two_features(open_storage())
    batch = lent_batch({name: Ragged(K, ENDS) for name in "as"})
    launcher.thread_stream.handle = 60
    launcher.order.clear()
    future: Future[Any] = fused.lookup_async(batch)  # its thread has another
    out = future.result()
    assert (launcher.order[0], launcher.order[-1]) == ("waits for 60", "60 goes on")
    launcher.order.clear()
    assert fused.apply_gradients_async(out, ones(2), {"s": ones(3)}).result()
    assert (launcher.order[0], launcher.order[-1]) == ("waits for 60", "60 goes on")


def test_arrays_are_borrowed_in_the_callers_thread_before_a_future_is_given(
    open_storage: Open, launcher: HostLauncher
) -> None:
    fused = two_features(open_storage())
    stream, batch = on_stream(launcher, 70, ByDlpack)
    expected = fused.lookup({name: Ragged(K, ENDS) for name in "as"})
    with fused.storage.backend.device.queue():  # type: ignore[union-attr]  # nothing is done on the device meanwhile
        future = fused.lookup_async(batch)
        stream.queue(lambda: pytest.fail("queued after the call, which must not wait for it"))
    np.testing.assert_array_equal(results(fused, future.result())[0], expected.pooled)


def test_a_call_that_fails_lets_the_callers_stream_go_on(open_storage: Open, launcher: HostLauncher) -> None:
    fused = two_features(open_storage())
    launcher.order.clear()
    with pytest.raises(WrongShape):
        fused.lookup(
            {"a": lent(Ragged(K, ENDS)), "s": lent(Ragged(K, np.array([0, 2, 3])), stream=None)} | BAD, stream=80
        )
    assert launcher.order[-1] == "80 goes on"


# --- mixed batches ---


@pytest.mark.parametrize("where", ["a", "s", "as", ""])
@pytest.mark.parametrize("in_memory", [(), (1,), (2,), (1, 2)], ids=str)
def test_features_and_groups_in_memory_beside_those_on_the_device(
    open_storage: Open, where: str, in_memory: tuple[int, ...]
) -> None:
    found = []
    for name, lend in (("lent", where), ("in memory", "")):
        storage = open_storage(name)
        groups = [
            embedding(
                storage,
                dim=dim,
                group=number,
                initializer=uniform(),
                duplicates="sequential" if number in in_memory else "sum",
            )
            for number, dim in ((1, 4), (2, 6))
        ]
        assert [stats_of(rows)["device"] for rows in groups] == [n not in in_memory for n in (1, 2)]
        fused = FusedEmbedding(
            [
                Feature("a", groups[0], "mean", default_key=9),
                Feature("s", groups[1], "sum"),
                Feature("b", groups[1], None),
                Feature("c", groups[0], None, max_norm=0.5),
                Feature("d", groups[0], "sqrtn"),
            ],
            missing="empty",
        )
        plain = {
            "a": Ragged(keys_of(1, 2, -1, 5), np.array([0, 2, 3, 4])),
            "s": Ragged(keys_of(7, 7, 8), np.array([0, 1, 1, 3]), np.array([1, 0.5, 2], np.float32)),
            "b": Ragged(keys_of(8, 9), np.array([0, 0, 1, 2])),
            "c": Ragged(keys_of(1, 2), np.array([0, 0, 1, 2])),
        }
        batch = {key: lent(bags) if key in lend or (key == "c" and lend) else bags for key, bags in plain.items()}
        out = fused.lookup(batch)
        random = np.random.default_rng(5)
        grads = [random.integers(-4, 4, shape).astype(np.float32) for shape in ((3, 14), (2, 6), (2, 4))]
        assert on_device(out.pooled) == bool(lend)
        arrays = results(fused, out)
        sent: list[Any] = [ByDlpack(each) if i % 2 or lend == "as" else each for i, each in enumerate(grads)]
        fused.apply_gradients(out, sent[0], {"b": sent[1], "c": sent[2]})
        assert_sound(storage)
        found.append([*arrays, *(rows.lookup(np.arange(10), train=False) for rows in groups)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_that_is_wrong_makes_no_rows_in_memory_either(open_storage: Open) -> None:
    storage = open_storage()
    above, below = embedding(storage, group=1), embedding(storage, group=2, duplicates="sequential")
    fused = FusedEmbedding([Feature("b", below, "sum"), Feature("a", above, "sum")])
    good, bad = Ragged(K, ENDS), (ByDlpack(K), ByDlpack(np.array([0, 3, 2])))
    for batch in ({"a": bad, "b": lent(good)}, {"a": lent(good), "b": bad}):
        with pytest.raises(WrongShape, match=r"offsets run from 0 to 2, with 3 keys"):
            fused.lookup(batch)  # type: ignore[arg-type]
        with pytest.raises(WrongShape, match=r"offsets run from 0 to 2, with 3 keys"):
            fused.apply_gradients(batch, ones(2, 8))  # type: ignore[arg-type]
    assert [stats_of(rows)["rows"] for rows in (above, below)] == [0, 0]


def test_host_batches_with_gradients_of_the_device_find_what_was_kept(open_storage: Open) -> None:
    fused = two_features(open_storage())
    out = fused.lookup({name: Ragged(K, ENDS) for name in "as"})
    assert out.kept
    fused.apply_gradients(out, ByDlpack(ones(2)), {"s": ByInterface(ones(3))})  # type: ignore[arg-type, dict-item]
    assert not fused.storage.stats()["kept_batches"]
    assert fused.storage.get_rows(2, K).update_num.tolist() == [1, 1, 1]


# --- what calls that are repeated, and crashes, make of it ---


def test_a_request_is_applied_once_and_is_there_after_a_reopen(open_storage: Open) -> None:
    storage = open_storage()
    fused = two_features(storage)
    batch = lent_batch({name: Ragged(K, ENDS) for name in "as"})
    arguments: Any = (batch, ByDlpack(ones(2)), {"s": ByDlpack(ones(3))})
    assert fused.apply_gradients(*arguments, request=("trainer", 1))
    assert not fused.apply_gradients(*arguments, request=("trainer", 1))
    before = [rows.lookup(K, train=False) for rows in tables_of(fused)]
    storage.close()
    again = two_features(open_storage(device=None))
    for rows, wanted in zip(tables_of(again), before, strict=True):
        np.testing.assert_array_equal(rows.lookup(K, train=False), wanted)
    assert again.storage.get_rows(1, K).update_num.tolist() == [1, 1, 1]


def test_a_batch_of_more_rows_than_there_is_room_for_changes_nothing(open_storage: Open) -> None:
    rows = embedding(open_storage(rows=64))
    fused = FusedEmbedding([Feature("x", rows, "sum")])
    batch = {"x": lent(Ragged(np.arange(65), np.array([0, 65])))}
    with pytest.raises(DeviceOutOfMemory):
        fused.lookup(batch)
    with pytest.raises(DeviceOutOfMemory):
        fused.apply_gradients(batch, ByDlpack(ones(1)))  # type: ignore[arg-type]
    assert stats_of(rows)["push_keys"] == 0
    assert_sound(rows.storage)


def test_a_group_made_anew_is_found_out(open_storage: Open) -> None:
    fused = two_features(open_storage())
    fused.storage.drop_group(1)
    embedding(fused.storage, dim=6, group=1)
    with pytest.raises(UnknownGroup, match="another one than was opened"):
        fused.lookup(lent_batch({name: Ragged(K, ENDS) for name in "as"}))


# --- weights ---


@pytest.mark.parametrize("combiner", ["mean", "sqrtn", "sum"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e18, 1e30])
def test_weights_far_from_1_are_combined_as_those_of_memory(open_storage: Open, combiner: str, scale: float) -> None:
    weights = (np.array([1, 2, 0.5, -1, 3], np.float32) * np.float32(scale)).astype(np.float32)
    weights[4] = 1.0
    bags = Ragged(keys_of(1, 2, 3, 4, 5), np.array([0, 3, 5]), weights)
    grads, found = np.full((2, 4), 2.0**-60 if combiner == "sum" else 1, np.float32), []
    for name in ("lent", "in memory"):
        rows = embedding(open_storage(name), initializer=uniform(), optimizer=PyOptimizer(name="sgd", gamma=0.5))
        fused = FusedEmbedding([Feature("x", rows, combiner)])
        batch: dict[str, Any] = {"x": lent(bags) if name == "lent" else bags}
        out = fused.lookup(batch)
        pooled = results(fused, out)[0]
        fused.apply_gradients(batch, grads)
        found.append([pooled, rows.lookup(np.arange(6), train=False)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


# --- what cannot be ---

NAN = np.array([1, np.nan, 1], np.float32)
BAD: dict[str, Any] = {"a": (ByDlpack(K), ByDlpack(np.array([0, 1, 4])))}
Wrong = tuple[Any, type[RockbedError], str]
ARRAYS: list[Wrong] = [
    ((K, np.array([0, 4, 3])), WrongShape, r"offsets\[2\] = 3 after 4|offsets run"),
    ((K, np.array([0, 2, 1, 3])), WrongShape, r"offsets\[2\] = 1 after 2: offsets never fall"),
    ((K, np.array([0, 1, 2])), WrongShape, "offsets run from 0 to 2, with 3 keys"),
    ((K, np.array([1, 2, 3])), WrongShape, "offsets run from 1 to 3"),
    ((K, np.array([0])), WrongShape, "offsets run from 0 to 0, with 3 keys"),
    ((K[:0], np.array([7])), WrongShape, "offsets run from 7 to 7"),
    ((K, np.empty(0, np.int64)), WrongShape, "offsets are empty"),
    ((K, ENDS, np.ones(2, np.float32)), WrongShape, "2 weights for 3 keys"),
    ((K, ENDS, NAN), InvalidConfig, r"weights\[1\] is nan"),
    ((K, ENDS, np.array([1, 1, np.inf], np.float32)), InvalidConfig, r"weights\[2\] is inf"),
    ((K.astype(np.int32), ENDS), WrongDtype, "keys must be"),
    ((K.astype(np.float32), ENDS), WrongDtype, "keys must be"),
    ((K, ENDS.astype(np.float64)), WrongDtype, "offsets must be"),
    ((K, ENDS, np.ones(3)), WrongDtype, "weights must be"),
    ((K.reshape(1, 3), ENDS), WrongShape, "keys must have one axis"),
    ((K, ENDS.reshape(1, 3)), WrongShape, "offsets must have one axis"),
]


@LENDERS
@pytest.mark.parametrize("place", ["lent", "in memory"])
@pytest.mark.parametrize(("arrays", "error", "said"), ARRAYS, ids=[said for _, _, said in ARRAYS])
def test_arrays_that_do_not_fit_are_the_same_error_wherever_they_are(
    open_storage: Open, arrays: Any, error: type[RockbedError], said: str, lend: Lend, place: str
) -> None:
    rows = embedding(open_storage())
    fused = FusedEmbedding([Feature("x", rows)])
    sent: Any = tuple(lend(each) for each in arrays) if place == "lent" else arrays
    with pytest.raises(error, match=f"feature 'x': ({said})"):
        fused.lookup({"x": sent})
    gradient = ones(max(arrays[1].size - 1, 0))
    with pytest.raises(error, match=f"feature 'x': ({said})"):
        fused.apply_gradients({"x": sent}, lend(gradient) if place == "lent" else gradient)
    assert stats_of(rows)["rows"] == 0


@pytest.mark.parametrize("offsets", [[1, 3], [0, 2], [0, 2, 1, 3], [0, 4, 3], [7]])
def test_the_offsets_of_a_sequence_are_looked_at_too(open_storage: Open, offsets: list[int]) -> None:
    fused = FusedEmbedding([Feature("x", embedding(open_storage()), None)])
    for batch in ({"x": (ByDlpack(K), ByDlpack(np.array(offsets)))}, {"x": (K, np.array(offsets))}):
        with pytest.raises(WrongShape, match="feature 'x': offsets"):
            fused.lookup(batch)  # type: ignore[arg-type]
        with pytest.raises(WrongShape, match="feature 'x': offsets"):
            fused.apply_gradients(batch, None, {"x": ones(3)})  # type: ignore[arg-type]


def test_an_empty_batch_is_none_and_is_checked(open_storage: Open) -> None:
    fused = two_features(open_storage())
    none = np.empty(0, np.int64)
    for lend in (ByDlpack, ByInterface):
        out = fused.lookup({name: lent(Ragged(none, np.zeros(1, np.int64)), lend) for name in "as"})
        assert (out.pooled.shape, out["s"].shape) == ((0, 4), (0, 4))
        assert fused.apply_gradients(out, lend(ones(0)), {"s": lend(ones(0))})  # type: ignore[arg-type, dict-item]


@pytest.mark.parametrize(
    ("array", "error", "said"),
    [
        (ByInterface(np.arange(6)[::2]), WrongShape, r"int64\[3\] on a GPU is not contiguous.*tensor.contiguous\(\)"),
        (ByDlpack(np.arange(6)[::2]), WrongShape, "is not contiguous"),
        (ByInterface(K, data=(K.ctypes.data + 4, True)), WrongShape, "does not begin at a multiple"),
        (ByInterface(K, mask=K), WrongDtype, "has a mask"),
        (ByInterface(K, data=((2 << 60) + 8, True)), WrongDtype, "in the memory of cuda:2, .* in that of cuda:0"),
        (ByDlpack(K, device=(2, 1)), WrongDtype, "in the memory of cuda:1, .* in that of cuda:0: copy it there"),
    ],
)
def test_arrays_that_cannot_be_read_where_they_lie(
    open_storage: Open, array: Any, error: type[RockbedError], said: str
) -> None:
    if isinstance(array, Lent) and array.array.size == 3 and "contiguous" in said:
        array.array = np.arange(6)[::2]  # the stand-in keeps a copy, which is contiguous
    fused = FusedEmbedding([Feature("x", embedding(open_storage()))])
    with pytest.raises(error, match=f"feature 'x': keys: .*{said}"):
        fused.lookup({"x": (array, ByDlpack(ENDS))})  # type: ignore[dict-item]


def test_memory_that_all_gpus_reach_is_taken_whatever_number_it_has(open_storage: Open) -> None:
    fused = FusedEmbedding([Feature("x", embedding(open_storage()))])
    out = fused.lookup({"x": (ByDlpack(K, device=(13, 4)), ByDlpack(ENDS))})  # type: ignore[dict-item]
    assert out.pooled.shape == (2, 4)


def test_a_library_that_does_not_lend_is_quoted(open_storage: Open) -> None:
    class Unlent(ByDlpack):
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    fused = two_features(open_storage())
    out = fused.lookup(lent_batch({name: Ragged(K, ENDS) for name in "as"}))
    with pytest.raises(WrongDtype, match=r"grad_pooled: float32\[2, 4\] on a GPU is not lent .*tensor.detach\(\)"):
        fused.apply_gradients(out, Unlent(ones(2)), {"s": ones(3)})  # type: ignore[arg-type]


GRADIENTS: list[Wrong] = [
    (ones(3), WrongShape, r"grad_pooled must be float32\[2, 4\], not float32\[3, 4\]"),
    (ones(2).astype(np.float64), WrongDtype, r"grad_pooled must be .*float32, not float64\[2, 4\]"),
    (np.full((2, 4), np.nan, np.float32), GradientNotFinite, "gradients hold NaN or Inf, the first for key"),
]


@pytest.mark.parametrize("lend", [ByDlpack, ByInterface, np.copy])
@pytest.mark.parametrize(("gradient", "error", "said"), GRADIENTS, ids=[error.__name__ for _, error, _ in GRADIENTS])
def test_gradients_that_do_not_fit_are_the_same_error_wherever_they_are(
    open_storage: Open, lend: Any, gradient: Any, error: type[RockbedError], said: str
) -> None:
    fused = two_features(open_storage())
    out = fused.lookup(lent_batch({name: Ragged(K, ENDS) for name in "as"}))
    with pytest.raises(error, match=said):
        fused.apply_gradients(out, lend(gradient), {"s": lend(ones(3))})
    with pytest.raises(WrongShape, match=r"the gradient of 's' must be float32\[3, 4\]"):
        fused.apply_gradients(out, lend(ones(2)), {"s": lend(ones(2))})
    assert fused.storage.get_rows(1, K).update_num.tolist() == [0, 0, 0]


def test_the_arrays_of_a_ragged_lie_in_one_place() -> None:
    with pytest.raises(WrongDtype, match="offsets are a ndarray that is on no GPU, while keys are on one"):
        Ragged(ByDlpack(K), ENDS)  # type: ignore[arg-type]
    with pytest.raises(WrongDtype, match="keys are a ndarray that is on no GPU, while weights are on one"):
        Ragged(K, ENDS, ByInterface(np.ones(3, np.float32)))  # type: ignore[arg-type]


def test_a_ragged_of_a_gpu_says_what_it_is() -> None:
    for lend in (ByDlpack, ByInterface):
        bags = lent(Ragged(K.astype(np.uint64), ENDS, np.ones(3, np.float32)), lend)
        assert repr(bags) == "Ragged(2 bags, 3 uint64 keys, weighted on a GPU)"
        assert (len(bags), bags.nnz, bags.unsigned, bags.on_device) == (2, 3, True, True)


def test_too_many_keys_of_a_gpu_are_counted_before_anything_is_made_of_them() -> None:
    class Huge(ByDlpack):
        shape = (2**31,)

    with pytest.raises(BatchTooLarge, match="2147483648 keys"):
        Ragged(Huge(K), ByDlpack(ENDS))  # type: ignore[arg-type]
    with pytest.raises(BatchTooLarge, match="2147483647 bags"):
        Ragged(ByDlpack(K), Huge(ENDS))  # type: ignore[arg-type]


def test_arrays_of_the_cpu_that_can_be_lent_are_none_of_a_gpu() -> None:
    with pytest.raises(WrongDtype, match="keys must be a numpy array"):
        Ragged(ByDlpack(K, device=(1, 0)), ENDS)  # type: ignore[arg-type]
    assert not on_device(None)
    assert not on_device(K)

    class Nowhere(ByDlpack):
        def __dlpack_device__(self) -> Any:
            raise ValueError("Unknown device type meta for Dlpack")

    assert not on_device(Nowhere(K))


def test_other_constructors_say_what_to_make_of_arrays_of_a_gpu() -> None:
    padded: Any = ByDlpack(np.array([[1, -1]]))
    with pytest.raises(WrongDtype, match=r"from_padded takes numpy arrays, not int64\[1, 2\] on a GPU: .*make keys"):
        Ragged.from_padded(padded)
    with pytest.raises(WrongDtype, match="from_coo takes numpy arrays"):
        Ragged.from_coo(padded, padded, [1, 2])


@pytest.mark.parametrize("stream", ["default", -1, True, 2.5])
def test_a_stream_that_is_none(open_storage: Open, stream: Any) -> None:
    fused = two_features(open_storage())
    with pytest.raises(WrongDtype, match="not a CUDA stream"):
        fused.lookup(lent_batch({name: Ragged(K, ENDS) for name in "as"}), stream=stream)


def test_a_stream_without_arrays_of_a_gpu_has_no_meaning(open_storage: Open) -> None:
    fused = two_features(open_storage())
    batch = {name: Ragged(K, ENDS) for name in "as"}
    with pytest.raises(InvalidConfig, match="stream is for arrays of a GPU"):
        fused.lookup(batch, stream=0)
    with pytest.raises(InvalidConfig, match="stream is for arrays of a GPU"):
        fused.apply_gradients(fused.lookup(batch), ones(2), {"s": ones(3)}, stream=0)


@pytest.mark.parametrize("kind", ["directory", "grpc"])
def test_storages_without_a_device_in_reach_say_what_to_send(tmp_path: Path, kind: str) -> None:
    storage = PyStorage(tmp_path / "store", **QUIET) if kind == "directory" else Served(tmp_path / "store", **QUIET)
    with storage:
        fused = two_features(storage)
        batch = {name: Ragged(K, ENDS) for name in "as"}
        said = r"keeps no rows on a GPU of this process: send numpy arrays .*device='cuda:0'"
        with pytest.raises(WrongDtype, match=r"feature 'a': int64\[3\] on a GPU was sent, and PyStorage.* " + said):
            fused.lookup(lent_batch(batch))
        with pytest.raises(WrongDtype, match="feature 's'.*" + said):
            fused.lookup_async({**batch, "s": lent(batch["s"])})
        out = fused.lookup(batch)
        with pytest.raises(WrongDtype, match=r"grad_pooled: float32\[2, 4\] on a GPU was sent.*" + said):
            fused.apply_gradients(out, ByDlpack(ones(2)), {"s": ones(3)})  # type: ignore[arg-type]
        with pytest.raises(WrongDtype, match=r"the gradient of 's': float32\[3, 4\] on a GPU was sent.*" + said):
            fused.apply_gradients(out, ones(2), {"s": ByDlpack(ones(3))})  # type: ignore[dict-item]
        with pytest.raises(
            WrongDtype, match=r"must be a numpy array .*, not int64\[3\] on a GPU: .* a FusedEmbedding can"
        ):
            tables_of(fused)[0].lookup(ByDlpack(K))  # type: ignore[call-overload]
