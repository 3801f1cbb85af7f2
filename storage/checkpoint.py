"""Checkpoints: a directory that is itself a store, sharing its table files with the original by hard links.

    rows/ (RocksDB checkpoint) | journal/ (what rows/ may lack) | catalog.json | admission/
Opening one replays its journal, which brings every row to the moment of the checkpoint's last entry.
"""

import os
import shutil
import uuid
from pathlib import Path

from rockbed.errors import StoreExists, StoreNotFound
from rockbed.storage.catalog import FILE, Catalog
from rockbed.storage.files import DirectoryLock, os_errors, sync_path

PARTS = ("rows", "journal", "admission")


def is_store(directory: Path) -> bool:
    """Whether the directory holds a store or a checkpoint."""
    return (directory / FILE).is_file()


def must_be_new(path: Path) -> None:
    """Raise StoreExists unless `path` is free, or an empty directory."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreExists(f"{path} is there already: choose a new path, or remove it first")


def draft_of(path: Path) -> Path:
    """A name beside `path` for what is not complete, or not any more."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


class Draft:
    """A directory under construction: it has its real name only once it is complete, or it leaves nothing behind."""

    def __init__(self, target: Path) -> None:
        must_be_new(target)
        self.target = target
        self.path = draft_of(target)

    def __enter__(self) -> Path:
        with os_errors(f"creating {self.path}"):
            self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with os_errors(f"creating {self.target}"):
            sync_path(self.path)
            if self.target.exists():
                self.target.rmdir()
            os.rename(self.path, self.target)
            sync_path(self.target.parent)


def link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """Copy a file, durably; or link it where that is asked for and possible."""
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)
    sync_path(target)


def restore(checkpoint: Path, directory: Path) -> None:
    """Make a store at `directory` from a checkpoint, which stays as it is.

    Table files, which are never changed in place, are linked where possible; the rest is copied.
    Raises StoreNotFound, StoreExists, StoreLocked (a store that is open for writing), StorageCorrupt, FormatTooNew.
    """
    if not is_store(checkpoint):
        raise StoreNotFound(
            f"{checkpoint} is no checkpoint (it has no {FILE}): give the path that checkpoint() was given"
        )
    Catalog.read(checkpoint)
    with (
        DirectoryLock(checkpoint, shared=True),  # a store that somebody writes changes while it is copied
        Draft(directory) as draft,
        os_errors(f"restoring {checkpoint} to {directory}"),
    ):
        link_or_copy(checkpoint / FILE, draft / FILE, link=False)
        for part in PARTS:
            if not (checkpoint / part).is_dir():
                continue
            (draft / part).mkdir()
            for source in sorted((checkpoint / part).iterdir()):
                if source.is_file() and source.name != "LOCK":
                    link_or_copy(source, draft / part / source.name, link=source.suffix == ".sst")
            sync_path(draft / part)
