"""Rockbed's daemon with several clients at once, on one core and on two, and when it has just been started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.contenders.base import Settings
from benchmarks.contenders.rockbed_contender import memory_budget
from benchmarks.servers import ROOT, on_cores, rockbed_server
from benchmarks.sessions import DIM, Record
from benchmarks.trainer import Report, Task
from benchmarks.workloads import TABLES, Sizes

TRAINERS = 8  # at once, for `seconds`
CLIENTS = 4  # at once, where the server's cores are counted: enough that one always waits for the server
KINDS = {"lookup": "lookup uniform", "apply": "apply zipf"}

Say = Callable[[str], None]


class Crew:
    """A server and its clients, each a process. They stand still (SIGSTOP) except while they run."""

    def __init__(
        self, directory: Path, kind: str, clients: int, rows: int, tables: int, sizes: Sizes, cores: set[int]
    ) -> None:
        """Returns when the rows are there. cores: the server's; the clients have the others, if there are any."""
        settings = Settings(directory=directory, rows=rows // tables, dim=DIM, tables=tables)
        self._clients: list[subprocess.Popen[str]] = []
        with on_cores(cores):
            self.server = rockbed_server(directory, "--memory-budget", str(memory_budget(settings)))
        try:
            target, _ = self.server.address()
            with on_cores(os.sched_getaffinity(0) - cores or cores):
                for number in range(clients):
                    task = Task(
                        target=target,
                        kind=kind,
                        rows=settings.rows,
                        dim=DIM,
                        tables=tables,
                        number=number,
                        clients=clients,
                        sizes=sizes,
                    )
                    self._clients.append(_client(task))
            for client in self._clients:
                _line(client)  # it is ready
        except BaseException:
            self.kill()
            raise
        self._signal(signal.SIGSTOP)

    def train(self, seconds: float) -> tuple[list[Report], dict[str, float]]:
        """Let every client go on for so long. Also returns the server's memory, bytes, and the seconds of CPU used."""
        self._signal(signal.SIGCONT)
        more = {"resident_start": self.server.resident}
        before = self.server.cpu_s
        for client in self._clients:
            assert client.stdin is not None
            print(seconds, file=client.stdin, flush=True)
        time.sleep(seconds / 2)
        more["resident_middle"] = self.server.resident
        reports = [Report(**json.loads(_line(client))) for client in self._clients]
        more["resident_end"] = self.server.resident
        more["server_cpu_s"] = self.server.cpu_s - before
        more["client_cpu_s"] = sum(report.cpu_s for report in reports)
        self._signal(signal.SIGSTOP)
        return reports, more

    def close(self) -> None:
        """Let the clients go, and the server write back and end."""
        self._signal(signal.SIGCONT)
        for client in self._clients:
            client.communicate()  # its input ends, and so does it
        self.server.stop()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        for client in self._clients:
            client.communicate()
        self.server.stop()

    def _signal(self, number: signal.Signals) -> None:
        self.server.send_signal(number)
        for client in self._clients:
            client.send_signal(number)


def _client(task: Task) -> subprocess.Popen[str]:
    client = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.trainer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert client.stdin is not None
    print(json.dumps(asdict(task)), file=client.stdin, flush=True)
    return client


def _line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise RuntimeError(f"a client of the daemon ended with {client.wait()}")
    return line


def run(rows: int, rounds: int, seconds: float, sizes: Sizes, root: Path, say: Say) -> Iterator[Record]:
    """rows: of a store; rounds: of each workload; seconds: that the trainers train, and that a new server is idle."""
    store = root / "trainers"
    yield _trainers(store, rows, seconds, sizes, say)
    yield from _starts({"new store": (root / "new", 0), "rows on disk": (store, rows)}, rounds, seconds)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("daemon: one core here, so the server is not measured on two")
        return
    for kind in KINDS:
        yield from _on_cores(kind, {n: set(cores[:n]) for n in (1, 2)}, rows, rounds, sizes, root, say)


def _trainers(store: Path, rows: int, seconds: float, sizes: Sizes, say: Say) -> Record:
    say(f"daemon: {TRAINERS} trainers at once for {seconds:g} s")
    crew = Crew(store, "train", TRAINERS, rows, TABLES, sizes, os.sched_getaffinity(0))
    try:
        reports, more = crew.train(seconds)
        crew.close()
    finally:
        crew.kill()
    return _record(f"{TRAINERS} trainers", 0, rows, TABLES, reports, more, say)


def _on_cores(
    kind: str, cores: dict[int, set[int]], rows: int, rounds: int, sizes: Sizes, root: Path, say: Say
) -> Iterator[Record]:
    with ExitStack() as opened:
        crews = {}
        for n, those in cores.items():
            crews[n] = Crew(root / f"{kind}-{n}", kind, CLIENTS, rows, 1, sizes, those)
            opened.callback(crews[n].kill)
        for round_ in range(rounds):
            for n, crew in crews.items():
                reports, more = crew.train(sizes.pushing_s)
                workload = f"{KINDS[kind]}, {CLIENTS} clients, server on {n} core{'s' * (n > 1)}"
                yield _record(workload, round_, rows, 1, reports, more, say)


def _record(
    workload: str, round_: int, rows: int, tables: int, reports: list[Report], more: dict[str, float], say: Say
) -> Record:
    calls = {kind: [second for report in reports for second in report.calls[kind]] for kind in ("lookup", "push")}
    together = [second for seconds in calls.values() for second in seconds] or [0.0]
    found = dict(more)
    for kind, seconds in calls.items():
        if seconds:
            found[f"{kind}_p50_s"], found[f"{kind}_p99_s"] = map(float, np.percentile(seconds, (50, 99)))
    errors = [error for report in reports for error in report.errors]
    for error in sorted(set(errors))[:3]:
        say(f"{workload}: {error}")
    keys = [report.keys for report in reports]
    found.update(errors=len(errors), fairness=min(keys) / max(*keys, 1))
    return Record(
        part="daemon",
        contender="daemon",
        workload=workload,
        rows=rows,
        dim=DIM,
        tables=tables,
        round=round_,
        calls=len(together),
        keys=sum(keys),
        seconds=max(report.seconds for report in reports),
        p50_s=float(np.percentile(together, 50)),
        p99_s=float(np.percentile(together, 99)),
        more=found,
    )


def _starts(stores: dict[str, tuple[Path, int]], rounds: int, seconds: float) -> Iterator[Record]:
    """From the start of the process until it serves; and once its memory after `seconds` in which nobody calls."""
    for round_ in range(rounds):
        for name, (store, rows) in stores.items():
            server = rockbed_server(store)
            try:
                _, ready_s = server.address()
                yield _uncalled(f"start, {name}", round_, rows, ready_s, {})
                if round_ == 0:
                    time.sleep(seconds)
                    yield _uncalled(f"idle, {name}", round_, rows, seconds, {"resident": server.resident})
            finally:
                server.stop()
            if rows == 0:
                shutil.rmtree(store)  # new again in the next round


def _uncalled(workload: str, round_: int, rows: int, seconds: float, more: dict[str, float]) -> Record:
    return Record(
        part="daemon",
        contender="daemon",
        workload=workload,
        rows=rows,
        dim=DIM,
        tables=TABLES if rows else 0,
        round=round_,
        calls=0,
        keys=0,
        seconds=seconds,
        p50_s=seconds,
        p99_s=seconds,
        more=more,
    )
