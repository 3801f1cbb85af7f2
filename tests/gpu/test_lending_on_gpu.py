"""Arrays of CuPy and torch, and streams that nothing but events orders, on a GPU: what the shim's stand-ins mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import Feature, FusedEmbedding, PyStorage, Ragged
from rockbed.types import F32
from tests.api.helpers import QUIET, embedding, uniform

pytestmark = pytest.mark.gpu

BAGS, IDS, KEYS, DIM = 20_000, 5, 5_000, 16
OFFSETS = np.arange(BAGS + 1, dtype=np.int64) * IDS
LAST = np.concatenate([np.zeros(BAGS, np.int64), [50]])  # 50 keys, all in the last bag
BUSY = 6_000  # the side of a matrix whose square takes a GPU some milliseconds


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[PyStorage]:
    with PyStorage(tmp_path / "store", device="cuda:0", device_memory=1 << 24, **QUIET) as opened:
        yield opened


@pytest.fixture
def fused(storage: PyStorage) -> FusedEmbedding:
    rows = embedding(storage, DIM, initializer=uniform())
    rows.lookup(np.arange(KEYS))
    return FusedEmbedding([Feature("x", rows, "sum"), Feature("s", rows, None)])


@pytest.fixture
def keys() -> Any:
    return np.random.default_rng(1).integers(0, KEYS, BAGS * IDS)


def expected(fused: FusedEmbedding, keys: Any) -> tuple[F32, F32]:
    out = fused.lookup({"x": Ragged(keys, OFFSETS), "s": Ragged(keys[:50], LAST)})
    return out.pooled, out["s"]


def test_cupys_arrays_on_a_stream_of_its_own(fused: FusedEmbedding, keys: Any) -> None:
    import cupy

    pooled, sequence = expected(fused, keys)
    for explicit in (False, True):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            busy = cupy.ones((BUSY, BUSY), np.float32)
            sent, ends, last = cupy.zeros_like(cupy.asarray(keys)), cupy.asarray(OFFSETS), cupy.asarray(LAST)
            source = cupy.asarray(keys)
            stream.synchronize()
            busy @ busy
            sent[...] = source  # not done yet when the lookup is asked for
            batch = {"x": Ragged(sent, ends), "s": Ragged(sent[:50], last)}
            if not explicit:
                out = fused.lookup(batch)
        if explicit:
            out = fused.lookup(batch, stream=stream)
        with stream:
            twice: Any = out.pooled * np.float32(2)
        assert out.batch[0].keys.data.ptr == sent.data.ptr  # type: ignore[attr-defined]
        np.testing.assert_array_equal(cupy.asnumpy(twice), 2 * pooled)
        np.testing.assert_array_equal(cupy.asnumpy(out["s"]), sequence)
        assert out.pooled.__cuda_array_interface__["stream"]  # type: ignore[attr-defined]


def test_arrays_that_have_the_older_interface_alone(fused: FusedEmbedding, keys: Any) -> None:
    import cupy

    class Interface:
        """As numba's, whose stream stands in the interface."""

        def __init__(self, array: Any) -> None:
            self._array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__

    pooled, _ = expected(fused, keys)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        sent, source = cupy.zeros(keys.shape, np.int64), cupy.asarray(keys)
        ends, last = cupy.asarray(OFFSETS), cupy.asarray(LAST)
        busy = cupy.ones((BUSY, BUSY), np.float32)
        stream.synchronize()
        busy @ busy
        sent[...] = source
        arrays: list[Any] = [Interface(sent), Interface(ends), Interface(sent[:50]), Interface(last)]
    out = fused.lookup({"x": Ragged(arrays[0], arrays[1]), "s": Ragged(arrays[2], arrays[3])})
    np.testing.assert_array_equal(cupy.asnumpy(out.pooled), pooled)


@pytest.mark.torch
def test_tensors_of_a_side_stream_and_back(fused: FusedEmbedding, keys: Any) -> None:
    import torch

    pooled, _ = expected(fused, keys)
    side = torch.cuda.Stream()  # does not wait for the default one
    with torch.cuda.stream(side):
        source, sent = torch.from_numpy(keys).cuda(), torch.zeros(keys.size, dtype=torch.int64, device="cuda")
        ends, last = torch.from_numpy(OFFSETS).cuda(), torch.from_numpy(LAST).cuda()
        busy = torch.ones((BUSY, BUSY), device="cuda")
        side.synchronize()
        _ = busy @ busy
        sent.copy_(source)
        batch: Any = {"x": (sent, ends), "s": (sent[:50], last)}
        out = fused.lookup(batch)
        found = torch.from_dlpack(out.pooled)
        assert found.data_ptr() == out.pooled.data.ptr  # type: ignore[attr-defined]
        assert out.batch[0].keys.data.ptr == sent.data_ptr()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found.cpu().numpy(), pooled)
        _ = busy @ busy
        gradient: Any = torch.full((BAGS, 2 * DIM), 2.0, device="cuda")[:, :DIM].contiguous()
        fused.apply_gradients(out, gradient, {"s": torch.zeros((50, DIM), device="cuda")})
    counts = np.bincount(keys, minlength=KEYS)
    rows = fused.features[0].embedding
    np.testing.assert_array_equal(rows.storage.get_rows(rows.group, np.arange(KEYS)).update_num, counts > 0)


@pytest.mark.torch
def test_a_collection_trains_where_its_rows_are(storage: PyStorage, keys: Any, tmp_path: Path) -> None:
    import torch

    import rockbed.torch

    with PyStorage(tmp_path / "other", **QUIET) as other:
        found = []
        for opened, device in ((storage, "cuda"), (other, "cpu")):
            rows = embedding(opened, DIM, initializer=uniform())
            module = rockbed.torch.EmbeddingCollection([Feature("x", rows, "sum"), Feature("s", rows, None)])
            sent = torch.from_numpy(keys[: 4 * IDS]).to(device)
            ends = torch.from_numpy(OFFSETS[:5]).to(device)
            for _ in range(3):
                out = module({"x": (sent, ends), "s": (sent, ends)})
                assert out.pooled.device.type == device
                rows_there, mask = out.padded("s", IDS // 2, keep="last")
                assert rows_there.device.type == mask.device.type == device
                ((out.pooled**2).sum() + out["s"].sum() + (rows_there**2).sum()).backward()
            found.append(rows.lookup(np.arange(KEYS), train=False))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
