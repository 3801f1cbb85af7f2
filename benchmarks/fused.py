"""Fused batches beside FBGEMM's table-batched embedding and beside one call a feature: `python -m benchmarks.fused`.

26 features of a table each, 2,048 samples, 1 and 20 ids a bag, summed; uniform ids. Rockbed's tables are filled first,
stay in memory, and every push is durable. FBGEMM (CPU) has dense tables in memory, and row numbers instead of ids.
One process at a time works, the others are stopped; contenders take turns in every round, which begins when all that
the train steps of the last one have put off (write-back, compaction) is done. Train steps go on for longer than
lookups, and their mean counts, so that what they put off comes due in their own time.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.environments import Unavailable, python_for
from benchmarks.processes import ContenderFailed, Worker

TRAIN_TIMES = 4  # as long as lookups
FEATURES, SAMPLES, ROWS = 26, 2048, 40_000  # ROWS: of each table


@dataclass(frozen=True)
class Case:
    """One size. keys: of a batch."""

    optimizer: str
    dim: int
    ids: int

    @property
    def keys(self) -> int:
        return FEATURES * SAMPLES * self.ids

    def __str__(self) -> str:
        return f"{self.optimizer}, dim {self.dim}, {self.ids} id{'s' * (self.ids > 1)} a bag"


CASES = [
    Case(optimizer, dim, ids) for optimizer in ("rowwise_adagrad", "adagrad") for dim in (16, 64) for ids in (1, 20)
]
LOCAL = ("lookup", "train")
CONTENDERS = {"fused": "rockbed", "unfused": "rockbed", "fbgemm": "fbgemm"}
"""What is measured, and in whose process."""
SERVED = ("fused", "unfused", "together")


@dataclass(frozen=True)
class Figure:
    """Seconds of a call, of each round: the median of lookups, the mean of train steps. bytes: that travelled for a
    call, where it went over the wire."""

    case: Case
    what: str
    who: str
    seconds: list[float]
    bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a contender's lookups in a round (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one case, two rounds")
    parser.add_argument("--output", type=Path, help="write the tables there, too: docs/benchmarks/fused.md")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    figures: list[Figure] = []
    began = time.perf_counter()
    for case in CASES[1:2] if options.quick else CASES:
        print(f"{case} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="rockbed-bench-") as folder:
            figures += _measured(case, options.rounds, options.seconds, Path(folder))
    text = _document(figures, options.rounds, time.perf_counter() - began)
    print(text)
    if options.output:
        options.output.write_text(text)


def _measured(case: Case, rounds: int, seconds: float, folder: Path) -> Iterator[Figure]:
    workers: dict[str, Worker] = {}
    try:
        for name in dict.fromkeys(CONTENDERS.values()):
            try:
                workers[name] = Worker(name, python_for(name), module="benchmarks.fused_worker")
            except Unavailable as problem:
                print(f"  without {name}: {problem}")
                continue
            sizes = {**asdict(case), "features": FEATURES, "samples": SAMPLES, "rows": ROWS, "folder": str(folder)}
            workers[name].ask({"do": "open", **sizes})
        here = [(who, name) for who, name in CONTENDERS.items() if name in workers]
        measured: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for worker in workers.values():  # or lookups would pay for the train steps of the round before
                worker.ask({"do": "settle"})
            for what in LOCAL:
                for who, name in here:
                    taking = seconds * (TRAIN_TIMES if what == "train" else 1)
                    answer = workers[name].ask({"do": what, "how": who, "seconds": taking})
                    measured.setdefault((what, who), []).append(answer["taken"])
            for who in SERVED:
                answer = workers["rockbed"].ask({"do": "served", "how": who, "seconds": seconds * TRAIN_TIMES / 2})
                measured.setdefault(("served", who), []).append(answer["taken"])
        travelled = {who: workers["rockbed"].ask({"do": "bytes", "how": who})["bytes"] for who in SERVED}
        for (what, who), taken in measured.items():
            yield Figure(case, what, who, taken, travelled[who] if what == "served" else 0)
    except ContenderFailed as problem:
        print(f"  {problem}")
    finally:
        for worker in workers.values():
            worker.kill()


# --- tables ---


def _document(figures: list[Figure], rounds: int, took_s: float) -> str:
    found = {(each.case, each.what, each.who): each for each in figures}
    lines = [
        f"Written by `python -m benchmarks.fused --output docs/benchmarks/fused.md`: {rounds} rounds, "
        f"{took_s / 60:.0f} minutes. {platform.machine()}, {_cores()} cores, Python {platform.python_version()}.",
        "",
        f"{FEATURES} features x {SAMPLES:,} samples, {ROWS:,} rows a table, uniform ids, summed. Times are those of "
        "one call for the whole batch, in ms: of each round the median of lookups and the mean of train steps, and of "
        "the rounds the median; ratios are the median of the rounds' ratios, lowest and highest round behind them. "
        "`unfused` is one lookup, one sum over bags in numpy and one push for each feature.",
        "",
    ]
    for what, title in (("lookup", "Lookup"), ("train", "Train step: lookup and push")):
        lines += [
            f"## {title}",
            "",
            "| | fused | M keys/s | unfused | fbgemm | unfused / fused | fbgemm / fused |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for case in dict.fromkeys(each.case for each in figures):
            mine = found[case, what, "fused"]
            others = [found.get((case, what, who)) for who in ("unfused", "fbgemm")]
            times = [f"{1e3 * other.median:.1f}" if other else "" for other in others]
            ratios = [_ratio(other, mine) if other else "" for other in others]
            rate = case.keys / mine.median / 1e6
            lines.append(f"| {case} | {1e3 * mine.median:.1f} | {rate:.2f} | {' | '.join(times + ratios)} |")
        lines.append("")
    lines += [
        "## Train step through a daemon on the same machine",
        "",
        "`fused` keeps the batch on the server between lookup and push. `unfused` is, as above, one lookup and one "
        "push for each feature; `together` one call for the lookups of all features and one for their pushes. Both sum "
        "over bags in the client. MB: both ways, for one step, where client and server share no memory; in the times "
        "they do.",
        "",
        "| | fused | MB | unfused | MB | together | MB | unfused / fused | together / fused |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in dict.fromkeys(each.case for each in figures):
        served = [found[case, "served", who] for who in SERVED]
        cells = [f"{1e3 * each.median:.1f} | {each.bytes / 1e6:.2f}" for each in served]
        cells += [_ratio(other, served[0]) for other in served[1:]]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(other: Figure, mine: Figure) -> str:
    each = [b / a for a, b in zip(mine.seconds, other.seconds, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def _cores() -> int:
    from rockbed.cores import cores

    return cores()


if __name__ == "__main__":
    main()
