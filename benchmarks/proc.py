"""What Linux knows of a process."""

import os
from pathlib import Path


def resident(pid: int | str = "self") -> dict[str, float]:
    """A process' resident memory, bytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: 1024 * float(lines[key].split()[0]) for name, key in (("now", "VmRSS"), ("highest", "VmHWM"))}


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, in user and in system mode, all threads together."""
    # what follows the name, which may hold anything, are the fields from the third on (proc(5)); utime is the 14th
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
