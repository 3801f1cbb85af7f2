"""The counters of admission rules on disk: one .npz a group, replaced at every flush."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.errors import StorageCorrupt
from rockbed.server.group import Group
from rockbed.storage.files import os_errors, write_atomically


def save(directory: Path, groups: Iterable[Group]) -> None:
    """Write the counters of each group that has an admission rule."""
    for group in groups:
        if group.admission is None:
            continue
        with group.lock:
            state = group.admission.state()
        buffer = io.BytesIO()
        np.savez(buffer, **dict[str, Any](state))
        write_atomically(directory / f"{group.number}.npz", buffer.getvalue())


def load(directory: Path, groups: Iterable[Group]) -> None:
    """Read what `save` wrote. Raises StorageCorrupt."""
    for group in groups:
        path = directory / f"{group.number}.npz"
        if group.admission is None or not path.is_file():
            continue
        try:
            with os_errors(f"reading {path}"), np.load(path, allow_pickle=False) as stored:
                group.admission.restore({name: stored[name] for name in stored.files})
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StorageCorrupt(
                f"{path} is damaged ({error}): remove it to begin counting anew, or restore a checkpoint"
            ) from error
