"""`python -m benchmarks`: measures, prints the tables, and writes results.json, results.md and the plots."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import contenders, environments, report, report_served, serving, sessions, targets

PARTS = ("memory", "tables", "crash", "large", "growth", "daemon")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--contenders", default=",".join(contenders.NAMES), help="of %(default)s")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of most parts (%(default)s)")
    parser.add_argument("--large-rows", type=int, default=10_000_000, help="of the part `large` (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each workload (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of several trainers at once, and idle (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="--parts memory,crash --rounds 2, a tenth of the rows")
    parser.add_argument("--directory", type=Path, help="where the stores lie while they are measured (a temporary one)")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="for the results (%(default)s)")
    parser.add_argument("--add", action="store_true", help="keep the parts that OUTPUT holds and that are not run now")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds, options.parts = options.rows // 10, 2, "memory,crash"
    parts, names = options.parts.split(","), options.contenders.split(",")
    for what, given, known in (("parts", parts, PARTS), ("contenders", names, contenders.NAMES)):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"--{what}: {', '.join(unknown)} unknown, known are {', '.join(known)}")
    started = time.perf_counter()
    planned = list(sessions.plan(parts, options.rows, options.large_rows, options.rounds))
    needed = {"rockbed"}.union(*(session.contenders for session in planned))
    pythons = _pythons([name for name in names if name in needed])
    root = Path(tempfile.mkdtemp(prefix="rockbed-bench-", dir=options.directory))
    records: list[sessions.Record] = []
    try:
        if "crash" in parts and "rockbed" in pythons:
            records += sessions.crash(pythons["rockbed"], options.rows, options.rounds, root, _say)
        for session in planned:
            _say(f"{session.part}: {session.rows:,} rows of dim {session.dim}, {session.tables} table(s)")
            for record in sessions.run(session, pythons, root, options.quick, _say):
                records.append(record)
                _say_rate(record)
        if "daemon" in parts and "daemon" in pythons:
            sizes = sessions.sizes_of("daemon", options.quick)
            for record in serving.run(options.rows, options.rounds, options.seconds, sizes, root, _say):
                records.append(record)
                _say_rate(record)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.add:
        records = _others(options.output / "results.json", parts) + records
    outcomes = targets.judge(targets.TARGETS, records)
    text = _document(records, outcomes, machine(), time.perf_counter() - started)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stored = {"machine": machine(), "records": [record.as_json() for record in records]}
    (options.output / "results.json").write_text(json.dumps(stored) + "\n")
    (options.output / "results.md").write_text(text + "\n")
    try:
        for path in report.plots(records, options.output):
            _say(f"wrote {path}")
    except ImportError as problem:
        _say(f"no plots: {problem} (pip install 'rockbed[bench]')")
    return 0


def _others(path: Path, parts: list[str]) -> list[sessions.Record]:
    """The records of an earlier run, but for those of `parts`."""
    stored = json.loads(path.read_text())["records"] if path.is_file() else []
    return [sessions.Record(**each) for each in stored if each["part"] not in parts]


def _pythons(names: list[str]) -> dict[str, Path]:
    """The interpreter of each contender that can run here."""
    found = {}
    for name in names:
        try:
            found[name] = environments.python_for(name)
        except environments.Unavailable as problem:
            _say(f"{name} is left out: {problem}")
    return found


def _document(
    records: list[sessions.Record], outcomes: list[targets.Outcome], where: dict[str, Any], seconds: float
) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in where.items())
    embedded = [record for record in records if record.part != "daemon"]
    served = [record for record in records if record.part == "daemon"]
    crowds = [record for record in served if "server_cpu_s" in record.more]
    medians = "Rates: keys a second, the median of the rounds. Ratios: the median of the rounds' ratios."
    figures = "Keys a second, the median of the rounds; for calls of 1,000 keys also (p50; p99) in ms."
    text = [f"Written by `python -m benchmarks {' '.join(sys.argv[1:])}` in {seconds / 60:.0f} minutes. {facts}."]
    if embedded:
        text += [
            f"## Targets\n\n{medians}",
            report.outcome_table([outcome for outcome in outcomes if outcome.target.part != "daemon"]),
            f"## All figures\n\n{figures}",
            report.rate_table(embedded),
        ]
    if served:
        text += [
            f"## Daemon\n\nOver the loopback, server and clients on the same cores. {medians}",
            report.outcome_table([outcome for outcome in outcomes if outcome.target.part == "daemon"]),
            f"### One client\n\n{figures}",
            report.rate_table([record for record in served if record not in crowds]),
        ]
    if crowds:
        text += [
            f"### Several clients at once\n\n{report_served.CROWD_NOTE}",
            report_served.crowd_table(crowds),
            "### Before anybody calls\n\nFrom the start of the process until it serves; its memory when idle.",
            report_served.start_table([record for record in served if not record.calls]),
        ]
    return "\n\n".join(text)


def _say_rate(record: sessions.Record) -> None:
    if record.keys:
        rate = report.quantity(record.rate)
        _say(f"  {record.workload}, round {record.round + 1}: {record.contender} {rate}/s")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    versions = {}
    for package in ("numpy", "numba", "rocksdict", "grpcio"):
        versions[package] = importlib.metadata.version(package)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "CPU": model,
        "Python": platform.python_version(),
        **versions,
        "commit": commit or "none",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
