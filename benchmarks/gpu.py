"""The device tier on a GPU: pooled lookups and training steps beside the GPU's own copy bandwidth and torch.

    python -m benchmarks.gpu [--dims 64 128] [--features 26] [--samples 65536] [--ids 20] [--rows 1000000]

All rows are resident, each feature has a table of its own, keys are drawn evenly. Bytes are counted as if every use of
a row read it once from memory: for a lookup, the weights of all uses and the results; for a training step those, the
results' gradients once, and each distinct row, with its state, read and written. Probes, keys and the sort are not
counted. A copy counts what it reads and what it writes. Times are those of the GPU (events), medians of the repeats;
the last column is the whole call, from Python and back. Then the same work through a store with a device, whose pushes
are durable: keys, results and gradients are numpy arrays, and then arrays of the device.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rockbed import (
    Feature,
    FusedEmbedding,
    FusedOutput,
    PyEmbedding,
    PyInitializer,
    PyOptimizer,
    PyStorage,
    Ragged,
)
from rockbed.config import GroupConfig
from rockbed.errors import DeviceUnavailable, MissingPackage
from rockbed.optimizers import make_initializer, make_optimizer
from rockbed.storage.gpu.fused import DeviceBags, FusedBatch
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.storage.gpu.rules import limits_of
from rockbed.storage.gpu.table import DeviceTable, row_bytes
from rockbed.types import F32, I64, U8

COPY_BYTES = 4 << 30
SPREAD = 0x9E3779B97F4A7C15  # an odd number: row numbers times it are keys all over the 64 bits


@dataclass(frozen=True)
class Sizes:
    """features, each with `samples` bags of `ids` keys out of `rows`."""

    features: int
    samples: int
    ids: int
    rows: int


@dataclass
class Case:
    """What a measurement works on: numbers[f] are feature f's row numbers, int64[samples * ids]."""

    sizes: Sizes
    dim: int
    tables: list[DeviceTable]
    numbers: list[I64]
    batch: FusedBatch
    out: DeviceArray
    grads: DeviceArray

    def lookup(self) -> None:
        """One pooled lookup of all features."""
        absent = self.batch.pool(self.out, [])
        assert not any(each.keys for each in absent)

    def train(self) -> None:
        """A lookup, and one step of the optimizer with the results' gradients."""
        self.lookup()
        for each in self.batch.gradients(self.grads, [])[0]:
            each.table.update(each.rows, each.grads, 0.01, step=-1, now_ms=1, lsn=1)
        self.batch.unpin()

    def lookup_bytes(self) -> int:
        uses = self.sizes.features * self.sizes.samples * self.sizes.ids
        return 4 * self.dim * (uses + self.sizes.features * self.sizes.samples)

    def train_bytes(self) -> int:
        distinct = sum(np.unique(numbers).size for numbers in self.numbers)
        grads = 4 * self.dim * self.sizes.features * self.sizes.samples
        return self.lookup_bytes() + grads + 2 * 4 * distinct * self.tables[0].width


def keys_of(numbers: I64) -> I64:
    """The keys of row numbers."""
    return (numbers.astype(np.uint64) * np.uint64(SPREAD)).view(np.int64)


def refuse(records: U8) -> None:
    """Nothing leaves these tables."""
    raise AssertionError(f"{len(records)} rows had to leave")


def prepare(launcher: Launcher, sizes: Sizes, dim: int, optimizer: str = "rowwise_adagrad") -> Case:
    """Tables filled with every row, and a batch of random uses."""
    rule, rng = make_optimizer(optimizer), np.random.default_rng(0)
    recipe = make_initializer("random_normal", stddev=0.1).recipe(dim)
    tables, features, numbers = [], [], []
    for f in range(sizes.features):
        config = GroupConfig(group=f, dim=dim, optimizer={"name": optimizer}, initializer={"name": "random_normal"})
        table = DeviceTable(
            launcher,
            group=f,
            dim=dim,
            rule=rule,
            limits=limits_of(config),
            recipe=recipe,
            seed=0,
            budget_bytes=(sizes.rows + 64) * row_bytes(dim + rule.state_width(dim)),
            write_back=refuse,
        )
        table.insert(launcher.to_device(keys_of(np.arange(sizes.rows))), 1, 1)
        chosen = rng.integers(0, sizes.rows, sizes.samples * sizes.ids)
        offsets = launcher.to_device(np.arange(sizes.samples + 1, dtype=np.int64) * sizes.ids)
        keys = launcher.to_device(keys_of(chosen))
        features.append(DeviceBags(str(f), table, keys, offsets, combiner="sum", negative=True))
        tables.append(table)
        numbers.append(chosen)
    shape = (sizes.samples, sizes.features * dim)
    grads = launcher.to_device(rng.normal(size=shape).astype(np.float32))
    batch = FusedBatch(launcher, features)
    return Case(sizes, dim, tables, numbers, batch, launcher.empty(shape, np.float32), grads)


@dataclass
class Store:
    """The same work through an open store."""

    storage: PyStorage
    fused: FusedEmbedding
    batch: dict[str, Ragged]
    grads: F32

    @classmethod
    def open(cls, folder: Path, sizes: Sizes, dim: int) -> "Store":
        """A new store in a folder, with a device that has room for all rows."""
        optimizer = PyOptimizer(name="rowwise_adagrad", gamma=0.01)
        memory = sizes.features * (sizes.rows + 64) * row_bytes(dim + 1)
        storage = PyStorage(folder, device="cuda:0", device_memory=memory, memory_budget=max(1 << 20, memory))
        initializer, rng = PyInitializer(name="random_normal", stddev=0.1), np.random.default_rng(0)
        features, batch = [], {}
        for f in range(sizes.features):
            rows = PyEmbedding(storage, optimizer, initializer, dim, f)
            features.append(Feature(str(f), rows, "sum", prune_negative=False))
            chosen = rng.integers(0, sizes.rows, sizes.samples * sizes.ids)
            batch[str(f)] = Ragged(keys_of(chosen), np.arange(sizes.samples + 1) * sizes.ids)
        grads = rng.normal(size=(sizes.samples, sizes.features * dim)).astype(np.float32)
        return cls(storage, FusedEmbedding(features), batch, grads)

    def on_device(self) -> "Store":
        """The same with keys, offsets and gradients in the device's memory."""
        device = self.storage.backend.device
        assert device is not None
        with device.queue():
            batch = {name: Ragged(device.up(bags.keys), device.up(bags.offsets)) for name, bags in self.batch.items()}
            return replace(self, batch=batch, grads=device.up(self.grads))

    def lookup(self) -> FusedOutput:
        """One pooled lookup of all features."""
        return self.fused.lookup(self.batch)

    def train(self) -> None:
        """A lookup, and a durable push of its results' gradients."""
        self.fused.apply_gradients(self.lookup(), self.grads)


def store_lines(sizes: Sizes, dim: int, repeats: int) -> Iterator[tuple[str, float]]:
    """(what, whole ms) of the engine above the device."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store", sizes, dim)
        with store.storage:
            for each, arrays in ((store, "numpy arrays"), (store.on_device(), "device arrays")):
                yield f"pooled lookup through a store, {arrays}", timed(each.lookup, repeats)[1]
                yield f"lookup and push through a store, {arrays}", timed(each.train, repeats)[1]


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of the GPU and of the whole call."""
    import cupy

    call()
    call()
    on_gpu, whole = [], []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        begin.record()
        call()
        end.record()
        end.synchronize()
        whole.append(1e3 * (time.perf_counter() - start))
        on_gpu.append(cupy.cuda.get_elapsed_time(begin, end))
    return statistics.median(on_gpu), statistics.median(whole)


def copy(repeats: int) -> float:
    """Bytes a millisecond that a copy within the device's memory reads and writes."""
    import cupy

    source = cupy.zeros(COPY_BYTES // 2, cupy.uint8)
    target = cupy.empty_like(source)
    return COPY_BYTES / timed(lambda: cupy.copyto(target, source), repeats)[0]


def torch_rows(case: Case, launcher: Any, repeats: int) -> Iterator[tuple[str, float, float]]:
    """(what, GPU ms, whole ms) of torch.nn.EmbeddingBag, one call per feature; nothing where torch sees no GPU."""
    try:
        import torch
    except ModuleNotFoundError:
        print("torch is not installed, so nothing is compared with it")
        return
    if not torch.cuda.is_available():
        print("torch sees no CUDA device, so nothing is compared with it")
        return
    bags, ids = [], []
    offsets = torch.arange(case.sizes.samples, device="cuda") * case.sizes.ids
    for table, numbers in zip(case.tables, case.numbers, strict=True):
        rows, _ = table.find(launcher.to_device(keys_of(np.arange(case.sizes.rows))))
        weights = torch.as_tensor(launcher.to_host(table.gather(rows)), device="cuda")
        bags.append(torch.nn.EmbeddingBag.from_pretrained(weights, freeze=True, mode="sum"))
        ids.append(torch.as_tensor(numbers, device="cuda"))

    def lookup() -> Any:
        return [bag(own, offsets) for bag, own in zip(bags, ids, strict=True)]

    case.lookup()
    ours = launcher.to_host(case.out)
    theirs = torch.cat(lookup(), dim=1).cpu().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # the same work
    yield ("torch.nn.EmbeddingBag, a call per feature", *timed(lookup, repeats))


def main(given: list[str] | None = None) -> int:
    """Print the table. Returns 1 where there is no GPU, or no CuPy."""
    parser = argparse.ArgumentParser(description="The device tier on a GPU.")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--samples", type=int, default=65_536)
    parser.add_argument("--ids", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each feature's table")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--store-rows", type=int, default=100_000, help="of each feature, through a store")
    args = parser.parse_args(given)
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    try:
        launcher = CupyLauncher()
    except (MissingPackage, DeviceUnavailable) as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 1
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    speed = copy(args.repeats)
    print(f"{name}: a copy moves {speed / 1e9:.2f} TB/s\n")
    sizes = Sizes(args.features, args.samples, args.ids, args.rows)
    print(f"{sizes.features} features x {sizes.samples} samples x {sizes.ids} ids of {sizes.rows} rows each\n")
    print("| dim | what | GPU ms | TB/s | of a copy | whole call ms |\n|---:|---|---:|---:|---:|---:|")
    for dim in args.dims:
        case = prepare(launcher, sizes, dim)
        lines = [("pooled lookup", case.lookup_bytes(), *timed(case.lookup, args.repeats))]
        for what, on_gpu, whole in torch_rows(case, launcher, args.repeats):
            lines.append((what, case.lookup_bytes(), on_gpu, whole))
        lines += [("lookup and optimizer step", case.train_bytes(), *timed(case.train, args.repeats))]
        for what, size, on_gpu, whole in lines:
            rate = size / on_gpu
            print(f"| {dim} | {what} | {on_gpu:.3f} | {rate / 1e9:.2f} | {rate / speed:.0%} | {whole:.3f} |")
        del case
        small = Sizes(args.features, args.samples, args.ids, args.store_rows)
        for what, whole in store_lines(small, dim, args.repeats):
            print(f"| {dim} | {what}, {args.store_rows} rows each | | | | {whole:.3f} |")
        cupy.get_default_memory_pool().free_all_blocks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
