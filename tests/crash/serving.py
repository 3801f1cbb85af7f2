"""`rockbed serve` in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.source_tree import ROOT


class Process:
    """A server on a store, at a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "store"
        self.socket = folder / "s"
        self.target = f"grpc+unix://{self.socket}"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> str:
        """Returns its first line, when it serves."""
        command = [
            sys.executable,
            "-m",
            "rockbed",
            "serve",
            "--data",
            str(self.data),
            "--listen",
            f"unix:{self.socket}",
        ]
        self._process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        line = ""
        while "serves" not in line:
            line = self._process.stdout.readline()
            if not line:
                return f"ended with {self._process.wait()}"
        return line

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; returns the exit code and what the server said after it."""
        assert self._process is not None
        self._process.send_signal(number)
        said, _ = self._process.communicate(timeout=60)
        return self._process.returncode, said

    @property
    def memory_bytes(self) -> int:
        """What it has in memory now."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) << 10

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGKILL)
