"""What lookups count, on disk: one .npz a group for its admission rule, and one for an adaptive variable's counts,
replaced at a flush where they have changed."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rockbed.errors import StorageCorrupt
from rockbed.interrupts import Uninterrupted
from rockbed.server.group import Group
from rockbed.storage.files import os_errors, write_atomically
from rockbed.types import AnyArray


class _Counts(Protocol):
    def state(self) -> dict[str, AnyArray]: ...

    def restore(self, state: Mapping[str, AnyArray]) -> None: ...


def _files(directory: Path, number: int) -> tuple[Path, Path]:
    return directory / f"{number}.npz", directory / f"{number}.adaptive.npz"


def save(directory: Path, groups: Iterable[Group]) -> None:
    """Write the counts of each group that has counted since they were written last."""
    for group in groups:
        with Uninterrupted():
            _save(directory, group)


def _save(directory: Path, group: Group) -> None:
    with group.lock:
        admission = group.admission.state() if group.admission is not None and group.admission_changed else None
        adaptive = group.adaptive.state() if group.adaptive is not None and group.adaptive.changed else None
        _changed(group, admission is not None, adaptive is not None, to=False)
    try:
        for path, state in zip(_files(directory, group.number), (admission, adaptive), strict=True):
            if state is not None:
                buffer = io.BytesIO()
                np.savez(buffer, **dict[str, Any](state))
                write_atomically(path, buffer.getvalue())
    except BaseException:
        _changed(group, admission is not None, adaptive is not None, to=True)
        raise


def _changed(group: Group, admission: bool, adaptive: bool, *, to: bool) -> None:
    if admission:
        group.admission_changed = to
    if adaptive and group.adaptive is not None:
        group.adaptive.changed = to


def load(directory: Path, groups: Iterable[Group]) -> None:
    """Read what `save` wrote. Raises StorageCorrupt."""
    for group in groups:
        for path, counts in zip(_files(directory, group.number), (group.admission, group.adaptive), strict=True):
            if counts is not None and path.is_file():
                _load(path, counts)


def _load(path: Path, counts: _Counts) -> None:
    with os_errors(f"reading {path}"):
        content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as stored:
            counts.restore({name: stored[name] for name in stored.files})
    except MemoryError:
        raise
    except Exception as error:  # whatever zipfile and numpy stumble over: they have no error of their own for it
        raise StorageCorrupt(
            f"{path} is damaged ({error or type(error).__name__}): remove it to begin counting anew, or restore a "
            "checkpoint"
        ) from error


def remove(directory: Path, number: int) -> None:
    """Remove the files of a group that is gone."""
    for path in _files(directory, number):
        path.unlink(missing_ok=True)
