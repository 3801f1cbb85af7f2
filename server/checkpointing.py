"""Taking a checkpoint of an open store while it is used."""

from pathlib import Path
from typing import TYPE_CHECKING

from rockbed.storage.checkpoint import PARTS, Draft, link_or_copy
from rockbed.storage.files import os_errors, sync_path

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def checkpoint(engine: "Engine", path: Path) -> None:
    """See PyStorage.checkpoint.

    rows/ after a flush, then the journal that was written meanwhile. Replaying that (each row's LSN says what it has
    seen) gives every row, weights and slots, as of the journal's last entry: one moment for the whole store.
    """
    engine.check_open()
    engine.must_be_writable("write a checkpoint (copy the directory of a store that nobody has open for writing)")
    with Draft(path) as draft, engine.quiet():
        engine.flush()
        engine.files.checkpoint(draft / PARTS[0])
        with os_errors(f"writing a checkpoint to {path}"):
            for part in PARTS[1:]:
                (draft / part).mkdir()
            for source in sorted((engine.directory / "admission").glob("*.npz")):
                link_or_copy(source, draft / "admission" / source.name, link=False)
            # first: a request that it says was applied must be among the entries copied
            catalog = engine.catalog(engine.flushed_lsn)
            engine.journal.copy_to(draft / "journal")
            sync_path(draft / "journal")
        catalog.write(draft)
