"""Arrays that are lent to a store with a device: libraries that are odd, slow or wrong, streams that end, batches that
change while they are read."""

import gc
import sys
import threading
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rockbed import DeviceOutOfMemory, Feature, FusedEmbedding, Ragged, WrongDtype
from rockbed.device_arrays import on_device
from rockbed.storage.gpu.cupy_launcher import CupyLauncher
from rockbed.storage.gpu.fused import DeviceBags, FusedBatch
from tests.api.helpers import assert_sound, embedding, keys_of, ones, uniform
from tests.gpu.host_launcher import HostLauncher
from tests.gpu.lenders import ByDlpack, ByInterface, Stream, lent, results
from tests.gpu.stores import Open, assert_equal
from tests.gpu.tables import make_table

K, ENDS = keys_of(1, 2, 3), np.array([0, 2, 3])


@pytest.fixture
def launcher() -> HostLauncher:
    return HostLauncher()


def one_feature(open_storage: Open, combiner: str = "sum", name: str = "store", **options: Any) -> FusedEmbedding:
    return FusedEmbedding([Feature("x", embedding(open_storage(name), initializer=uniform(), **options), combiner)])


# --- libraries ---


class NoPlace:
    """What does not say where it is, as arrays that are on several devices, or deleted."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def __dlpack_device__(self) -> Any:
        if self._error is not None:
            raise self._error


class NoInterface:
    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("use detach() first")


@pytest.mark.parametrize(
    "array",
    [NoPlace(RuntimeError("Array has been deleted")), NoPlace(NotImplementedError()), NoPlace(None), NoInterface()],
)
def test_what_does_not_say_where_it_is_is_no_array_of_a_gpu(open_storage: Open, array: Any) -> None:
    assert not on_device(array)
    fused = one_feature(open_storage)
    kind = type(array).__name__
    with pytest.raises(WrongDtype, match=f"keys must be a numpy array .*, not a {kind}"):
        fused.lookup({"x": (array, ENDS)})
    with pytest.raises(WrongDtype, match=f"grad_pooled must be a numpy array of float32, not a {kind}"):
        fused.apply_gradients({"x": (K, ENDS)}, array)
    with pytest.raises(WrongDtype, match=f"keys must be a numpy array .*, not a {kind}"):
        fused.features[0].embedding.lookup(array)


def test_an_array_that_is_lent_as_another_dtype_or_shape_is_refused(open_storage: Open) -> None:
    class Says(ByInterface):
        dtype, shape = np.dtype(np.float32), (2, 4)

    fused = one_feature(open_storage)
    batch = {"x": lent(Ragged(K, ENDS))}
    for array in (np.ones((2, 4), np.float16), ones(3)):
        with pytest.raises(WrongDtype, match=r"grad_pooled: float32\[2, 4\] on a GPU is lent by its library as float"):
            fused.apply_gradients(batch, Says(array))  # type: ignore[arg-type]


def test_a_library_may_wait_for_a_thread_that_uses_the_store(open_storage: Open) -> None:
    fused = one_feature(open_storage)
    rows = fused.features[0].embedding

    class Lazy(ByDlpack):
        """As arrays that have yet to be computed, by something that looks rows up."""

        def __dlpack__(self, *, stream: int) -> Any:
            found = threading.Thread(target=lambda: rows.lookup(K), daemon=True)
            found.start()
            found.join(20)
            assert not found.is_alive(), "it waits for the device, which the caller keeps"
            return super().__dlpack__(stream=stream)

    assert fused.lookup({"x": (Lazy(K), ByDlpack(ENDS))}).pooled.shape == (2, 4)  # type: ignore[dict-item]


# --- streams ---


@pytest.mark.parametrize("given", [True, False])
def test_a_stream_stays_until_the_call_that_was_asked_for_is_done(
    open_storage: Open, launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    fused = one_feature(open_storage)
    stream: Stream | None = Stream(launcher, 50)
    launcher.streams.clear()  # where the stand-in is known, too
    alive, seen, real = weakref.ref(stream), [], launcher.let_go_on

    def let_go_on(handle: int) -> None:
        seen.append((handle, alive() is not None))
        real(handle)

    monkeypatch.setattr(launcher, "let_go_on", let_go_on)
    begin, blocked = threading.Event(), []
    for _ in range(4):  # the threads of lookups, so that what is asked for now has to wait
        blocked.append(fused.storage.ahead.lookup(begin.wait))
    if given:
        future = fused.lookup_async({"x": lent(Ragged(K, ENDS))}, stream=stream)
    else:  # `with stream:`
        launcher.thread_stream.handle, launcher.thread_stream.owner = 50, stream
        future = fused.lookup_async({"x": lent(Ragged(K, ENDS))})
        launcher.thread_stream.handle, launcher.thread_stream.owner = 0, None
    stream = None
    gc.collect()
    begin.set()
    future.result(20)
    assert seen[-1] == (50, True)


def test_a_push_that_was_applied_is_no_error_when_a_stream_is_gone(
    open_storage: Open, launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fused = one_feature(open_storage)
    batch = {"x": lent(Ragged(K, ENDS))}

    def gone(stream: int) -> None:
        raise RuntimeError("cudaErrorInvalidResourceHandle")

    monkeypatch.setattr(launcher, "let_go_on", gone)
    assert fused.apply_gradients(batch, ByDlpack(ones(2)), request=("trainer", 1))  # type: ignore[arg-type]
    assert "cudaErrorInvalidResourceHandle" in caplog.text
    assert not fused.apply_gradients(batch, ByDlpack(ones(2)), request=("trainer", 1))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="InvalidResourceHandle"):
        fused.lookup(batch)
    assert fused.storage.get_rows(0, K).update_num.tolist() == [1, 1, 1]


def test_columns_that_are_copied_to_memory_may_find_no_memory_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(Exception):
        pass

    def asnumpy(array: Any) -> Any:  # which copies what is not contiguous on the device
        raise OutOfMemoryError("out of memory allocating 512 bytes")

    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError),
        Device=lambda number: nullcontext(),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, asnumpy=asnumpy))
    with pytest.raises(DeviceOutOfMemory, match="cuda:0 has no 32 bytes left"):
        CupyLauncher().to_host(np.ones((4, 4), np.float32)[:, :2])


# --- weights, and batches that change while they are read ---


@pytest.mark.parametrize("where", ["lent", "in memory"])
@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
@pytest.mark.parametrize("pruned", [-1, 8])
def test_weights_of_keys_that_do_not_count_change_nothing(
    open_storage: Open, where: str, combiner: str, pruned: int
) -> None:
    found = []
    for weight in (1.0, 1e30):
        fused = one_feature(open_storage, combiner, f"{weight}", padding_key=8)
        bags = Ragged(keys_of(pruned, 5, 6), np.array([0, 3]), np.array([weight, 1, 1e-8], np.float32))
        batch = {"x": lent(bags) if where == "lent" else bags}
        out = fused.lookup(batch)
        pooled = results(fused, out)[0] if where == "lent" else out.pooled
        fused.apply_gradients(batch, ones(1))
        found.append([pooled, fused.features[0].embedding.lookup(keys_of(5, 6), train=False)])
    for pair in zip(*found, strict=True):
        assert_equal(pair)


def test_keys_that_change_while_they_are_read_make_no_kernel_write_elsewhere(
    open_storage: Open, launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = one_feature(open_storage)
    fused.lookup({"x": Ragged(keys_of(1), np.array([0, 1]))})
    keys, real = ByDlpack(np.array([9] + [1] * 199)), launcher.launch

    def launch(module: Any, kernel: str, threads: int, *arguments: Any) -> None:
        if kernel == "mark_absent":  # one key was absent when they were counted
            keys.array[:] = np.arange(100, 300)
        real(module, kernel, threads, *arguments)

    monkeypatch.setattr(launcher, "launch", launch)  # the launcher looks at what lies beside each array
    fused.lookup({"x": (keys, ByDlpack(np.array([0, 200])))})  # type: ignore[dict-item]
    assert_sound(fused.storage)


def test_offsets_that_lead_nowhere_give_no_gradient_a_row_that_is_none(
    launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, up = make_table(launcher), launcher.to_device
    table.insert(up(K), 1, 1)
    offsets = up(np.array([0, 1, 2]))  # the last key is in no bag
    batch = FusedBatch(launcher, [DeviceBags("x", table, up(K), offsets, combiner="sum", checked=False)])
    monkeypatch.setattr(FusedBatch, "_absent", lambda *_: [])  # as if they had been right when they were checked
    ((gradients,), _) = batch.gradients(up(ones(2)), [])
    assert launcher.to_host(gradients.rows).tolist() == [0, 1]
    assert launcher.to_host(gradients.grads).tolist() == ones(2).tolist()
