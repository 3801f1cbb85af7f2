"""Tables and plots of the records."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import contenders
from benchmarks.sessions import Record
from benchmarks.targets import Outcome

COLOURS = {"rockbed": "#b5482a", "numpy": "#9a9a9a", "torch": "#d99a2b", "damo": "#3d6b8e"}


def quantity(value: float) -> str:
    """Three digits, with k or M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """Targets beside what was measured, as markdown."""
    lines = [
        "| what | Rockbed | reference | measured (lowest to highest round) | target | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for outcome in outcomes:
        target = outcome.target
        reference = ""
        if outcome.theirs is not None:
            reference = f"{target.against or target.over} {quantity(outcome.theirs)}"
        sign = "≥" if target.at_least else "≤"
        lines.append(
            f"| {target.what} | {quantity(outcome.ours)} | {reference} "
            f"| {quantity(outcome.result)} ({quantity(outcome.low)} to {quantity(outcome.high)}) "
            f"| {sign} {quantity(target.goal)} "
            f"| {'pass' if outcome.passed else 'short of'} |"
        )
    return "\n".join(lines)


def rate_table(records: Sequence[Record]) -> str:
    """Every workload's keys/s of every contender, the median of the rounds, as markdown."""
    names = [name for name in contenders.NAMES if any(record.contender == name for record in records)]
    groups: dict[tuple[str, str, int, int, int], dict[str, list[Record]]] = {}
    for record in records:
        if record.keys:
            where = (record.part, record.workload, record.rows, record.dim, record.tables)
            groups.setdefault(where, {}).setdefault(record.contender, []).append(record)
    lines = [
        f"| part | workload | rows | dim | {' | '.join(names)} |",
        f"|---|---|---:|---:|{'---:|' * len(names)}",
    ]
    for (part, workload, rows, dim, _), by_contender in groups.items():
        cells = []
        for name in names:
            found = by_contender.get(name)
            if not found:
                cells.append("")
                continue
            rate = quantity(statistics.median(record.rate for record in found))
            p50, p99 = (statistics.median(getattr(record, q) for record in found) for q in ("p50_s", "p99_s"))
            cells.append(f"{rate}/s ({p50 * 1e3:.3g}; {p99 * 1e3:.3g})" if "1,000" in workload else f"{rate}/s")
        lines.append(f"| {part} | {workload} | {quantity(rows)} | {dim} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """speed.png (bars) and growth.png (lines), as far as there is something to draw."""
    import matplotlib

    matplotlib.use("Agg")
    return [path for path in (_speed(records, folder / "speed.png"), _growth(records, folder / "growth.png")) if path]


def _median_rate(records: Sequence[Record], **where: object) -> float | None:
    rates = [r.rate for r in records if all(getattr(r, name) == value for name, value in where.items())]
    return statistics.median(rates) if rates else None


def _speed(records: Sequence[Record], path: Path) -> Path | None:
    import matplotlib.pyplot as plt

    workloads = ("fill", "lookup uniform", "lookup zipf", "apply uniform", "apply zipf", "train uniform", "train zipf")
    here = [record for record in records if record.part == "memory"]
    if not here:
        return None
    figure, axes = plt.subplots(figsize=(10, 4.5))
    width = 0.8 / len(COLOURS)
    for i, (name, colour) in enumerate(COLOURS.items()):
        rates = [_median_rate(here, contender=name, workload=workload) for workload in workloads]
        places = [place + i * width for place, rate in enumerate(rates) if rate]
        bars = axes.bar(places, [rate for rate in rates if rate], width, color=colour, label=name)
        axes.bar_label(bars, [quantity(rate) for rate in rates if rate], fontsize=6, rotation=90, padding=2)
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 4)
    axes.set_xticks([place + 1.5 * width for place in range(len(workloads))], workloads)
    axes.set_ylabel("keys a second (log scale)")
    axes.set_title(f"{quantity(here[0].rows)} rows of dim {here[0].dim}, Adagrad; median of the rounds", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _growth(records: Sequence[Record], path: Path) -> Path | None:
    import matplotlib.pyplot as plt

    here = [record for record in records if record.part == "growth"]
    if not here:
        return None
    base_rows = statistics.mode(record.rows for record in here)
    base_dim = statistics.mode(record.dim for record in here)
    workloads = ("fill", "lookup uniform", "apply uniform", "train zipf")
    figure, grid = plt.subplots(2, len(workloads), figsize=(13, 6), sharey="col")
    for column, workload in enumerate(workloads):
        for line, (axis, fixed, value) in enumerate((("rows", "dim", base_dim), ("dim", "rows", base_rows))):
            axes = grid[line][column]
            for name, colour in COLOURS.items():
                where = {"contender": name, "workload": workload, fixed: value}
                sizes = sorted({getattr(r, axis) for r in here if all(getattr(r, k) == v for k, v in where.items())})
                if sizes:
                    rates = [_median_rate(here, **where, **{axis: size}) for size in sizes]
                    axes.plot(sizes, rates, "o-", color=colour, label=name)
            axes.set_xscale("log", base=10 if axis == "rows" else 2)
            axes.set_yscale("log")
            axes.set_xlabel(f"{axis} ({fixed} {quantity(value)})")
            axes.spines[["top", "right"]].set_visible(False)
        grid[0][column].set_title(workload, fontsize=10)
    grid[0][0].set_ylabel("keys a second")
    grid[1][0].set_ylabel("keys a second")
    grid[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
