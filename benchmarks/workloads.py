"""What is measured: each workload is a function of a contender, run for one round, that returns what the calls took.

Keys, orders and gradients are made before the clock starts. A round begins with one call that is not counted: it wakes
a process that stood still while the others were measured, and compiles what must be compiled. What pushes goes on for
seconds, so that what is put off (write-back, flushes, compactions, syncs) comes due in the time that is counted: as
often as it does in a trainer, where after each standstill a short round would meet all that came due meanwhile.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender, Settings
from benchmarks.data import F32, Batch, draw, gradients, hashed_keys, run_of
from benchmarks.proc import resident

TABLES = 26  # features of a train step, as in the Criteo data
STEP_KEYS = 2048  # keys of one feature in a train step
SMALL_KEYS = 1000  # keys of a small call: one request of a ranking service


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much one round does."""

    batch_keys: int = 65_536
    batches: int = 8  # large lookups a round
    pushes: int = 16  # different large pushes a round
    steps: int = 64  # different train steps a round
    small_calls: int = 500  # small calls a round
    pushing_s: float = 6.0  # seconds of a round that pushes


@dataclass
class Bench:
    """One contender, opened, in its process. rows: of each table, all of which are there once `fill` has run."""

    contender: Contender
    settings: Settings
    sizes: Sizes
    filled: int = 0
    resident_at_open: float = 0.0  # bytes of the process once the empty store was open: libraries, caches, this program
    batch_bytes: int = 0  # of the most keys that a round of pushes drew before its clock started

    def random(self, name: str, round_: int) -> np.random.Generator:
        """The same draws for every contender; others in each round."""
        return np.random.default_rng([round_, *name.encode()])


@dataclass(frozen=True)
class Measured:
    """keys: of one call; seconds: of each call; more: other figures of this round."""

    keys: int
    seconds: list[float]
    more: dict[str, float] = field(default_factory=dict)


Workload = Callable[[Bench, int], Measured]


def clock(call: Callable[..., None], *arguments: Any) -> float:
    """The seconds that call(*arguments) takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


# --- one table, large and small calls ---


def fill(bench: Bench, round_: int) -> Measured:
    """Look up keys never seen, so that their rows are made: one part of the rows a round, FILL_ROUNDS rounds."""
    rows, size = bench.settings.rows, bench.sizes.batch_keys
    stop = min(rows, -(-rows // FILL_ROUNDS) * (round_ + 1))
    seconds = []
    done = 0
    for table in range(bench.settings.tables):
        for start in range(bench.filled, stop, size):
            batch = run_of(start, min(stop, start + size), table)
            seconds.append(clock(bench.contender.lookup, batch))
            done += len(batch.keys)
    bench.filled = stop
    return Measured(round(done / max(1, len(seconds))), seconds)


FILL_ROUNDS = 5


def _draws(bench: Bench, name: str, round_: int, n: int, calls: int, zipf: bool) -> list[Batch]:
    random = bench.random(name, round_)
    return [draw(bench.settings.rows, n, zipf, random) for _ in range(calls + 1)]


def _lookups(name: str, zipf: bool) -> Workload:
    def run(bench: Bench, round_: int) -> Measured:
        n = bench.sizes.batch_keys
        first, *batches = _draws(bench, name, round_, n, bench.sizes.batches, zipf)
        bench.contender.lookup(first)
        return Measured(n, [clock(bench.contender.lookup, batch) for batch in batches])

    return run


def small_lookups(bench: Bench, round_: int) -> Measured:
    """Calls of 1,000 keys, one after the other: the time of a call is what counts."""
    first, *batches = _draws(bench, "small", round_, SMALL_KEYS, bench.sizes.small_calls, False)
    bench.contender.lookup(first)
    return Measured(SMALL_KEYS, [clock(bench.contender.lookup, batch) for batch in batches])


def _for_seconds(bench: Bench, keys: int, call: Callable[[Any], None], batches: Sequence[Any]) -> Measured:
    """Call with one batch after the other, again and again; `more`: how far the contender's own counters moved."""
    drawn = [part for batch in batches for part in (batch if isinstance(batch, list) else [batch])]
    bench.batch_bytes = max(bench.batch_bytes, sum(part.keys.nbytes + part.at.nbytes for part in drawn))
    call(batches[-1])
    before = bench.contender.facts()
    seconds: list[float] = []
    end = time.perf_counter() + bench.sizes.pushing_s
    while time.perf_counter() < end:
        seconds.append(clock(call, batches[len(seconds) % len(batches)]))
    return Measured(keys, seconds, _moved(before, bench.contender.facts()))


def _moved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after if name in before and after[name] != before[name]}


def _applies(name: str, zipf: bool) -> Workload:
    def run(bench: Bench, round_: int) -> Measured:
        n = bench.sizes.batch_keys
        batches = _draws(bench, name, round_, n, bench.sizes.pushes, zipf)
        grads = gradients(n, bench.settings.dim, bench.random(name, round_))
        return _for_seconds(bench, n, lambda batch: bench.contender.apply(batch, grads), batches)

    return run


# --- train steps ---


def _steps(bench: Bench, name: str, round_: int, steps: int, zipf: bool) -> list[list[Batch]]:
    """Each step: 2,048 keys of each of 26 features. In one table each feature has a 26th of its rows."""
    random = bench.random(name, round_)
    rows, tables = bench.settings.rows, bench.settings.tables
    if tables > 1:
        return [[draw(rows, STEP_KEYS, zipf, random, table) for table in range(tables)] for _ in range(steps)]
    share = rows // TABLES
    made = []
    for _ in range(steps):
        at = np.concatenate([draw(share, STEP_KEYS, zipf, random).at + feature * share for feature in range(TABLES)])
        made.append([Batch(0, at, hashed_keys(at))])
    return made


def _step_grads(bench: Bench, step: Sequence[Batch], random: np.random.Generator) -> list[F32]:
    return [gradients(len(batch.keys), bench.settings.dim, random) for batch in step]


def _train(name: str, zipf: bool) -> Workload:
    def run(bench: Bench, round_: int) -> Measured:
        steps = _steps(bench, name, round_, bench.sizes.steps, zipf)
        grads = _step_grads(bench, steps[0], bench.random(name, round_))
        keys = sum(len(batch.keys) for batch in steps[0])
        return _for_seconds(bench, keys, lambda step: bench.contender.train_step(step, grads), steps)

    return run


def small_calls_in_write_back(bench: Bench, round_: int) -> Measured:
    """Lookups of 1,000 keys with a large push between every ten of them; only the lookups are counted.

    The pushes make rows dirty faster than anything else does, so write-back (in damo: flushes and compactions) has
    work all the time; `more` holds how far the contender's own counters moved.
    """
    random = bench.random("write-back", round_)
    small = [draw(bench.settings.rows, SMALL_KEYS, False, random) for _ in range(200)]
    large = [draw(bench.settings.rows, bench.sizes.batch_keys, False, random) for _ in range(8)]
    grads = gradients(bench.sizes.batch_keys, bench.settings.dim, random)
    before = bench.contender.facts()
    seconds: list[float] = []
    end = time.perf_counter() + bench.sizes.pushing_s
    while time.perf_counter() < end:
        calls = len(seconds)
        if calls % 10 == 0:
            bench.contender.apply(large[calls // 10 % len(large)], grads)
        seconds.append(clock(bench.contender.lookup, small[calls % len(small)]))
    return Measured(SMALL_KEYS, seconds, _moved(before, bench.contender.facts()))


# --- the life of a store ---


def touch_all(bench: Bench, round_: int) -> Measured:
    """Push to every row once, so that each has its optimizer state."""
    random = bench.random("touch", round_)
    rows, size, seconds = bench.settings.rows, bench.sizes.batch_keys, []
    for table in range(bench.settings.tables):
        for start in range(0, rows, size):
            batch = run_of(start, min(rows, start + size), table)
            grads = gradients(len(batch.keys), bench.settings.dim, random)
            seconds.append(clock(bench.contender.apply, batch, grads))
    return Measured(round(rows * bench.settings.tables / len(seconds)), seconds)


def grow_journal(bench: Bench, round_: int) -> Measured:
    """Push until the gradients sent are JOURNAL_BYTES, as many as the journal then holds at the least."""
    n, random = bench.sizes.batch_keys, bench.random("journal", round_)
    grads = gradients(n, bench.settings.dim, random)
    pushes = -(-JOURNAL_BYTES // (n * (8 + 4 * bench.settings.dim)))
    batches = [draw(bench.settings.rows, n, False, random) for _ in range(pushes)]
    return Measured(n, [clock(bench.contender.apply, batch, grads) for batch in batches], bench.contender.facts())


JOURNAL_BYTES = 256 << 20


def first_lookup(bench: Bench, round_: int) -> Measured:
    """1,000 keys looked up once: what the first request after opening waits for."""
    return Measured(
        SMALL_KEYS,
        [clock(bench.contender.lookup, draw(bench.settings.rows, SMALL_KEYS, False, bench.random("first", round_)))],
    )


def close_and_open(bench: Bench, round_: int) -> Measured:
    """Push a little, close, open, look 1,000 keys up. seconds: to open and look up; more: to close."""
    n, random = bench.sizes.batch_keys, bench.random("close", round_)
    for _ in range(bench.sizes.batches):
        bench.contender.apply(draw(bench.settings.rows, n, False, random), gradients(n, bench.settings.dim, random))
    closing = clock(bench.contender.close)
    first = draw(bench.settings.rows, SMALL_KEYS, False, bench.random("open", round_))

    def reopen() -> None:
        bench.contender.open(bench.settings)
        bench.contender.lookup(first)

    return Measured(SMALL_KEYS, [clock(reopen)], {"close_s": closing})


def disk(bench: Bench, round_: int) -> Measured:
    """Bytes on disk after everything was brought there: settled, closed, and opened again."""
    bench.contender.settle()
    seconds = clock(bench.contender.close)
    size = sum(file.stat().st_size for file in bench.settings.directory.rglob("*") if file.is_file())
    bench.contender.open(bench.settings)
    return Measured(0, [seconds], {"bytes": size, "bytes_a_row": size / bench.settings.rows / bench.settings.tables})


STATED_BYTES = 256 << 20  # what docs/operations.md says that a busy store takes beside its budget


def memory(bench: Bench, round_: int) -> Measured:
    """The process' resident memory, now and at its highest, bytes; of_budget: its growth, less what the documentation
    states beside the budget, and less the benchmark's own keys, as a part of the budget.
    """
    found = {**resident(), "at_open": bench.resident_at_open}
    if bench.settings.memory_budget is not None:
        grown = found["highest"] - bench.resident_at_open - STATED_BYTES - bench.batch_bytes
        found["of_budget"] = grown / bench.settings.memory_budget
    return Measured(0, [], found)


WORKLOADS: dict[str, Workload] = {
    "fill": fill,
    "lookup uniform": _lookups("lookup uniform", False),
    "lookup zipf": _lookups("lookup zipf", True),
    "lookup 1,000 keys": small_lookups,
    "apply uniform": _applies("apply uniform", False),
    "apply zipf": _applies("apply zipf", True),
    "train uniform": _train("train uniform", False),
    "train zipf": _train("train zipf", True),
    "lookup 1,000 keys in write-back": small_calls_in_write_back,
    "touch all": touch_all,
    "close and open": close_and_open,
    "grow journal": grow_journal,
    "first lookup": first_lookup,
    "disk": disk,
    "memory": memory,
}
