"""The counters of admission rules on disk: one .npz a group, replaced at a flush where they have changed."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.errors import StorageCorrupt
from rockbed.interrupts import Uninterrupted
from rockbed.server.group import Group
from rockbed.storage.files import os_errors, write_atomically


def save(directory: Path, groups: Iterable[Group]) -> None:
    """Write the counters of each group that has an admission rule and counted since they were written last."""
    for group in groups:
        with Uninterrupted():
            _save(directory, group)


def _save(directory: Path, group: Group) -> None:
    with group.lock:
        if group.admission is None or not group.admission_changed:
            return
        state = group.admission.state()
        group.admission_changed = False
    try:
        buffer = io.BytesIO()
        np.savez(buffer, **dict[str, Any](state))
        write_atomically(directory / f"{group.number}.npz", buffer.getvalue())
    except BaseException:
        group.admission_changed = True
        raise


def load(directory: Path, groups: Iterable[Group]) -> None:
    """Read what `save` wrote. Raises StorageCorrupt."""
    for group in groups:
        path = directory / f"{group.number}.npz"
        if group.admission is None or not path.is_file():
            continue
        with os_errors(f"reading {path}"):
            content = io.BytesIO(path.read_bytes())
        try:
            with np.load(content, allow_pickle=False) as stored:
                group.admission.restore({name: stored[name] for name in stored.files})
        except MemoryError:
            raise
        except Exception as error:  # whatever zipfile and numpy stumble over: they have no error of their own for it
            raise StorageCorrupt(
                f"{path} is damaged ({error or type(error).__name__}): remove it to begin counting anew, or restore a "
                "checkpoint"
            ) from error
