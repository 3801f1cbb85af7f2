"""The files of an open store as a crash at this moment would leave them."""

import contextlib
import shutil
from pathlib import Path


def _listing(store: Path) -> list[tuple[str, int]]:
    # RocksDB's own log is text that nobody reads back
    files = [p for p in store.rglob("*") if p.is_file() and not p.name.startswith("LOG")]
    return sorted((str(p), p.stat().st_size) for p in files)


def crash_image(store: Path, to: Path) -> Path:
    """Copy a store. A copy takes time, a crash does not: it is made again until no compaction came in between.

    Nobody may push meanwhile. Returns `to`.
    """
    while True:
        with contextlib.suppress(OSError, shutil.Error):  # a file that went away under the copy
            before = _listing(store)
            shutil.copytree(store, to, ignore=shutil.ignore_patterns("LOCK"))
            if _listing(store) == before:
                return to
        shutil.rmtree(to, ignore_errors=True)
