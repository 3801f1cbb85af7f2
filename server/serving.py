"""An open store that a checkpoint can take the place of while it is served."""

import shutil
import threading
from datetime import datetime, timezone
from pathlib import Path

from rockbed.server.engine import Engine
from rockbed.storage import checkpoint as checkpoints
from rockbed.storage.files import exchange, os_errors, sync_path


class Serving:
    """`engine` is the one that is served now. While a checkpoint takes its place it is closed, and calls get
    StorageClosed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()

    def restore(self, checkpoint: Path) -> Path:
        """Put a checkpoint in the place of the store. Returns where the store of before is kept: a directory beside it,
        which nobody needs any more.

        The two directories change places in one step, so whatever is killed and when, there is one or the other.
        Raises StoreNotFound, StorageCorrupt, FormatTooNew (the checkpoint), ReadOnlyStorage, StorageFull,
        StorageFailed (the directory is a mount point, say); then the store is as it was.
        """
        with self._lock:
            old = self.engine
            old.check_open()
            old.must_be_writable("be replaced by a checkpoint")
            directory = old.directory.absolute()
            stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
            kept = directory.with_name(f"{directory.name}.before-{stamp}")
            checkpoints.restore(checkpoint, kept)
            exchanged = False
            try:
                old.close()
                exchange(directory, kept)
                exchanged = True
                with os_errors(f"restoring {checkpoint} to {directory}"):
                    sync_path(directory.parent)
                self.engine = old.reopened()
            except BaseException:
                if exchanged:
                    exchange(directory, kept)  # fails only together with everything else: both are there then
                self.engine = old.reopened()
                shutil.rmtree(kept, ignore_errors=True)
                raise
            return kept
