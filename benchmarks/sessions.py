"""The parts of the benchmark: which contenders, at which size, go through which workloads."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.base import Settings
from benchmarks.processes import ContenderFailed, Worker
from benchmarks.workloads import FILL_ROUNDS, TABLES, Measured, Sizes

LOOKUPS = ("lookup uniform", "lookup zipf", "lookup 1,000 keys")
STEPS = ("apply uniform", "apply zipf", "train uniform", "train zipf")
# np.take only looks up; arrays, and an echo, have no rows to insert and nothing on disk.
OF_STORES = frozenset(
    ("fill", "close and open", "disk", "touch all", "lookup 1,000 keys in write-back", "grow journal", "first lookup")
)
ONCE = frozenset(("disk", "touch all", "memory"))
DIM = 16
ROW_OVERHEAD = 40  # bytes of a row besides weights and state, for the arithmetic of the memory budget


@dataclass(frozen=True, kw_only=True)
class Session:
    """Contenders opened at one size, and the workloads they go through, round by round, one after the other."""

    part: str
    rows: int
    contenders: tuple[str, ...]
    workloads: tuple[str, ...]
    dim: int = DIM
    tables: int = 1
    memory_budget: int | None = None
    rounds: int = 5

    def rounds_of(self, workload: str) -> int:
        if workload == "fill":
            return FILL_ROUNDS  # each round makes its part of the rows, and all are needed
        return 1 if workload in ONCE else self.rounds

    def settings(self, directory: Path) -> Settings:
        return Settings(
            directory=directory,
            rows=self.rows // self.tables,
            dim=self.dim,
            tables=self.tables,
            memory_budget=self.memory_budget,
        )


@dataclass(frozen=True, kw_only=True)
class Record:
    """One contender in one round of one workload. seconds, p50_s, p99_s: all calls together, and of a call."""

    part: str
    contender: str
    workload: str
    rows: int
    dim: int
    tables: int
    round: int
    calls: int
    keys: int
    seconds: float
    p50_s: float
    p99_s: float
    more: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Keys per second."""
        return self.keys / self.seconds if self.seconds else float("nan")

    @classmethod
    def of(cls, session: Session, contender: str, workload: str, round_: int, measured: Measured) -> "Record":
        seconds = np.array(measured.seconds or [0.0])
        return cls(
            part=session.part,
            contender=contender,
            workload=workload,
            rows=session.rows,
            dim=session.dim,
            tables=session.tables,
            round=round_,
            calls=len(measured.seconds),
            keys=measured.keys * len(measured.seconds),
            seconds=float(seconds.sum()),
            p50_s=float(np.percentile(seconds, 50)),
            p99_s=float(np.percentile(seconds, 99)),
            more=measured.more,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(parts: Sequence[str], rows: int, large_rows: int, rounds: int) -> list[Session]:
    """The sessions of the named parts, in order. rows: of most of them; large_rows: of those past the memory budget."""
    everyone = ("rockbed", "numpy", "torch", "damo")
    trained = ("rockbed", "torch", "damo")
    stores = ("rockbed", "damo")
    served = ("daemon", "daemon-socket", "rockbed", "echo", "damo-http")
    rest = ("lookup 1,000 keys in write-back", "memory", "close and open", "touch all", "disk")
    budget = large_rows * (2 * 4 * DIM + ROW_OVERHEAD) // 10
    made = {
        "memory": [Session(part="memory", rows=rows, contenders=everyone, workloads=("fill", *LOOKUPS, *STEPS, *rest))],
        "tables": [
            Session(
                part="tables",
                rows=rows,
                tables=TABLES,
                contenders=trained,
                workloads=("fill", "train uniform", "train zipf"),
            )
        ],
        "large": [
            Session(
                part="large",
                rows=large_rows,
                contenders=stores,
                memory_budget=budget,
                # memory before Zipf: to draw by Zipf's law the benchmark itself holds 16 bytes a row
                workloads=("fill", "lookup uniform", "train uniform", "memory", "lookup zipf", "train zipf"),
            )
        ],
        "daemon": [
            Session(
                part="daemon",
                rows=rows,
                contenders=served,
                workloads=("fill", "lookup uniform", "lookup 1,000 keys", "apply zipf"),
            ),
            Session(part="daemon", rows=rows, tables=TABLES, contenders=served, workloads=("fill", "train zipf")),
        ],
        "growth": [
            *(_growth(n, DIM, trained) for n in (rows // 10, rows, rows * 10)),
            *(_growth(rows, dim, trained) for dim in (8, 32, 64, 128)),
        ],
    }
    return [replace(session, rounds=rounds) for part in parts for session in made.get(part, ())]


def _growth(rows: int, dim: int, contenders: tuple[str, ...]) -> Session:
    workloads = ("fill", "lookup uniform", "apply uniform", "train zipf")
    return Session(part="growth", rows=rows, dim=dim, contenders=contenders, workloads=workloads)


def sizes_of(contender: str, quick: bool) -> Sizes:
    """damo takes tens of times as long for a call, so it is asked fewer times; the figures are per key."""
    few = contender.startswith("damo")
    return Sizes(
        batches=2 if few else 8,
        small_calls=100 if few else 500,
        pushing_s=1.5 if quick else 6.0,
    )


def run(
    session: Session, pythons: dict[str, Path], root: Path, quick: bool, say: Callable[[str], None]
) -> Iterator[Record]:
    """All rounds of all workloads. A contender that fails is left out from there on, with a message."""
    workers: dict[str, Worker] = {}
    try:
        for name in session.contenders:
            if name in pythons:
                workers[name] = Worker(name, pythons[name])
                workers[name].open(session.settings(root / name), sizes_of(name, quick))
        for workload in session.workloads:
            for round_ in range(session.rounds_of(workload)):
                for name in list(workers):
                    if takes_part(name, workload):
                        if workload == "fill":
                            _find_memory(session)
                        try:
                            yield Record.of(session, name, workload, round_, workers[name].run(workload, round_))
                        except ContenderFailed as problem:
                            say(str(problem))
                            workers.pop(name).kill()
    finally:
        for worker in workers.values():
            worker.kill()
        for name in session.contenders:
            shutil.rmtree(root / name, ignore_errors=True)


def _find_memory(session: Session) -> None:
    """Have free pages at hand for a round of `fill`. A virtual machine gives pages that nobody uses back to its host
    after some seconds, and waits for each that it needs again: by chance, one contender would and another would not."""
    row_bytes = 16 * session.dim + 256  # at least twice what a row takes in memory
    np.empty(session.rows // FILL_ROUNDS * row_bytes, np.uint8).fill(1)


def takes_part(contender: str, workload: str) -> bool:
    """Whether the workload means anything to the contender."""
    if contender == "numpy":
        return workload in LOOKUPS
    return contender not in ("torch", "echo") or workload not in OF_STORES


def crash(python: Path, rows: int, rounds: int, root: Path, say: Callable[[str], None]) -> Iterator[Record]:
    """Rockbed alone: push 256 MB that stay in the journal, kill -9, open again and look up."""
    session = Session(part="crash", rows=rows, contenders=("rockbed",), workloads=(), rounds=rounds)
    settings = replace(session.settings(root / "crash"), write_back=False)
    for round_ in range(rounds):
        writer, reader = Worker("rockbed", python), Worker("rockbed", python)
        try:
            writer.open(settings, sizes_of("rockbed", False))
            yield Record.of(session, "rockbed", "grow journal", round_, writer.run("grow journal", round_))
            journal = sum(file.stat().st_size for file in settings.directory.rglob("*") if file.is_file())
            writer.kill()
            opening = reader.open(replace(settings, write_back=True), sizes_of("rockbed", False))
            first = reader.run("first lookup", round_)
            measured = Measured(first.keys, [opening + first.seconds[0]], {"bytes": journal})
            yield Record.of(session, "rockbed", "open after kill -9", round_, measured)
        except ContenderFailed as problem:
            say(str(problem))
        finally:
            writer.kill()
            reader.kill()
            shutil.rmtree(settings.directory, ignore_errors=True)
