"""How the C library's malloc treats large blocks."""

import numpy as np

_BLOCK = (32 << 20) - (1 << 16)  # just below the largest that glibc learns from (DEFAULT_MMAP_THRESHOLD_MAX)


def keep_large_blocks() -> None:
    """Let blocks of up to 32 MB be used again rather than given back to the system each time they are freed.

    A message of some MB is several such blocks, and so is what a batch gives; new pages for them took longer than
    anything else about it. glibc raises its thresholds to the size of a block that it maps and that is freed: this one,
    which is never touched. Up to 64 MB for each of malloc's arenas then stay with the process. Other C libraries are
    as they were.
    """
    np.empty(_BLOCK, np.uint8)
