"""The daemon's own tables: several clients at once, and a server that nobody has called yet."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.report import quantity
from benchmarks.sessions import Record

CROWD_NOTE = (
    "CPU: cores that were kept busy; in brackets the clients' part of all of it. Look-ups, pushes: p50; p99 of a call, "
    "in ms. Fairness: the keys of the client that got the fewest / of the one that got the most. Memory: the server's, "
    "in MB, at the start, at half time and at the end of the last round. Medians of the rounds; errors are summed."
)


def crowd_table(records: Sequence[Record]) -> str:
    """Several clients at once, as markdown."""
    lines = [
        "| workload | keys a second | server CPU | clients' CPU | keys a CPU second of the server | look-ups | pushes "
        "| errors | fairness | memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload, found in _by_workload(records).items():

        def median(value: Callable[[Record], float], found: list[Record] = found) -> float:
            return statistics.median(map(value, found))

        share = median(lambda r: r.more["client_cpu_s"] / (r.more["client_cpu_s"] + r.more["server_cpu_s"]))
        times = {
            kind: "; ".join(
                f"{statistics.median(r.more[name] for r in found) * 1e3:.3g}"
                for name in (f"{kind}_p50_s", f"{kind}_p99_s")
                if name in found[0].more
            )
            for kind in ("lookup", "push")
        }
        memory = "; ".join(f"{found[-1].more[f'resident_{at}'] / 1e6:.0f}" for at in ("start", "middle", "end"))
        lines.append(
            f"| {workload} | {quantity(median(lambda r: r.rate))} "
            f"| {median(lambda r: r.more['server_cpu_s'] / r.seconds):.2f} "
            f"| {median(lambda r: r.more['client_cpu_s'] / r.seconds):.2f} ({share:.0%}) "
            f"| {quantity(median(lambda r: r.keys / r.more['server_cpu_s']))} | {times['lookup']} | {times['push']} "
            f"| {sum(r.more['errors'] for r in found):.0f} | {median(lambda r: r.more['fairness']):.2f} | {memory} |"
        )
    return "\n".join(lines)


def start_table(records: Sequence[Record]) -> str:
    """A server that nobody has called, as markdown."""
    lines = ["| | rows | seconds | memory, MB |", "|---|---:|---:|---:|"]
    for workload, found in _by_workload(records).items():
        seconds = statistics.median(record.seconds for record in found)
        memory = "".join(f"{record.more['resident'] / 1e6:.0f}" for record in found if record.more)
        lines.append(f"| {workload} | {quantity(found[0].rows)} | {seconds:.3g} | {memory} |")
    return "\n".join(lines)


def _by_workload(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.workload, []).append(record)
    return found
