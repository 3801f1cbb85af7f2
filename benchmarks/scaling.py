"""What more cores give the daemon's worker threads: `python -m benchmarks.scaling`.

Threads answer requests from bytes to bytes, with no client and no gRPC beside them, which would need the cores for
themselves. A process bound to one core and one bound to two (and four, eight, where the machine has them) take turns.
1 M rows of dim 16 in memory, Adagrad, uniform keys, pushes durable.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

from benchmarks.processes import Worker

THREADS = 4  # that answer
CASES = [("lookup", 1_000), ("lookup", 65_536), ("apply", 1_000), ("apply", 65_536)]
"""What a request is, and how many keys it has."""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement in a round (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the table there, too: docs/benchmarks/scaling.md")
    options = parser.parse_args()
    here = len(os.sched_getaffinity(0))
    counts = [count for count in (1, 2, 4, 8) if count <= here]
    began = time.perf_counter()
    rates: dict[tuple[str, int, int], list[float]] = {}
    workers = {count: Worker(str(count), module="benchmarks.scaling_worker") for count in counts}
    try:
        for round_ in range(options.rounds + 1):
            for what, keys in CASES:
                for count, worker in workers.items():
                    asked = {"do": what, "keys": keys, "threads": THREADS, "seconds": options.seconds}
                    rate = worker.ask(asked)["rate"]
                    if round_:  # the first one compiles, and makes the journal's files
                        rates.setdefault((what, keys, count), []).append(rate)
    finally:
        for worker in workers.values():
            worker.kill()
    text = _document(rates, counts, options.rounds, time.perf_counter() - began)
    print(text)
    if options.output:
        options.output.write_text(text)


def _document(rates: dict[tuple[str, int, int], list[float]], counts: list[int], rounds: int, took_s: float) -> str:
    lines = [
        f"Written by `python -m benchmarks.scaling --output docs/benchmarks/scaling.md`: {rounds} rounds, "
        f"{took_s / 60:.0f} minutes. {platform.machine()}, {counts[-1]} cores or more, Python "
        f"{platform.python_version()}.",
        "",
        f"{THREADS} threads answer requests as the daemon's worker threads do, from bytes to bytes. M keys a second, "
        "the median of the rounds; the gain on one core is the median of the rounds' ratios, lowest and highest behind "
        "it.",
        "",
        "| request | " + " | ".join(_cores(count) for count in counts) + " |" + " gain |" * (len(counts) - 1),
        "|---|" + "---:|" * (2 * len(counts) - 1),
    ]
    for what, keys in CASES:
        found = [rates[what, keys, count] for count in counts]
        cells = [f"{statistics.median(each) / 1e6:.2f}" for each in found]
        for each in found[1:]:
            gains = [many / one for many, one in zip(each, found[0], strict=True)]
            cells.append(f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})")
        lines.append(f"| {what}, {keys:,} keys | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


if __name__ == "__main__":
    main()
