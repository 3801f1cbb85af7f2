"""How many cores this process may use."""

import os


def cores() -> int:
    """Those it is bound to (taskset, a container's cpuset), not all that the machine has; at least 1."""
    return len(os.sched_getaffinity(0)) or 1
