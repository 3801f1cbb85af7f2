"""The store's own thread: syncs the journal, writes back, sweeps expired rows, shares memory between groups."""

import logging
import threading
import time
from typing import TYPE_CHECKING

from rockbed.errors import RockbedError, StorageFull
from rockbed.server.rebalancing import Rebalancer
from rockbed.server.sweeper import Sweeper

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_log = logging.getLogger("rockbed")
_TICK_S = 0.2
_BALANCE_S = 1.0
_DIRTY_SHARE = 0.5  # of the memory budget: above it write-back does not wait for its interval


class Background:
    """Runs until `stop`. An error is logged, kept in `engine.background_error` and tried again at the next turn."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._wake = threading.Event()
        self._stopping = False
        self._room = threading.Condition()
        self._sweeper = Sweeper(engine)
        self._rebalancer = Rebalancer(engine)
        self._flushed_at = self._synced_at = self._balanced_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="rockbed-background", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wait_for_journal_room(self) -> None:
        """Hold a push back while the journal is at its limit. Raises StorageFull where write-back cannot make room."""
        engine = self._engine
        limit = engine.config.journal_bytes_max
        if engine.journal.total_bytes < limit // 2:
            return
        self._wake.set()
        with self._room:
            while engine.journal.total_bytes >= limit and not self._stopping:
                if engine.background_error is not None:
                    raise StorageFull(
                        f"the journal has reached journal_bytes_max={limit} and cannot be written back: "
                        f"{engine.background_error}"
                    ) from engine.background_error
                self._room.wait(_TICK_S)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_TICK_S)
            self._wake.clear()
            if self._stopping:
                return
            try:
                self._turn(time.monotonic())
                self._engine.background_error = None
            except RockbedError as error:
                if self._engine.background_error is None:
                    _log.error("rockbed: %s (background work on %s; tried again)", error, self._engine.directory)
                self._engine.background_error = error
                time.sleep(_TICK_S)

    def _turn(self, now: float) -> None:
        engine, config = self._engine, self._engine.config
        if config.fsync == "interval" and now - self._synced_at >= config.fsync_interval_s:
            engine.journal.sync()
            self._synced_at = now
        overdue = now - self._flushed_at >= config.write_back_interval_s
        if overdue or self._pressing():
            if engine.journal.last_lsn > engine.flushed_lsn or self._pressing():
                engine.flush()
            self._flushed_at = time.monotonic()
            with self._room:
                self._room.notify_all()
        self._sweeper.turn(_TICK_S)
        if now - self._balanced_at >= _BALANCE_S:
            self._rebalancer.turn()
            self._balanced_at = now

    def _pressing(self) -> bool:
        engine = self._engine
        if engine.journal.total_bytes >= engine.config.journal_bytes_max // 2:
            return True
        if engine.budget.used_bytes < _DIRTY_SHARE * engine.budget.limit_bytes:
            return False
        dirty = sum(g.table.dirty_count() * g.table.row_bytes for g in list(engine.groups.values()))
        return dirty >= _DIRTY_SHARE * engine.budget.limit_bytes
