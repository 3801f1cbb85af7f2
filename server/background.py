"""The store's own thread: syncs the journal, writes back, sweeps expired rows, shares memory between groups."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockbed.errors import RockbedError, StorageFull
from rockbed.server.opening import HOLD_COMPACTION_S
from rockbed.server.rebalancing import Rebalancer
from rockbed.server.sweeper import Sweeper
from rockbed.storage.row_options import FEW_FILES

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_log = logging.getLogger("rockbed")
_TICK_S = 0.2
_BALANCE_S = 1.0
_PAUSE_MAX_S = 5.0  # between two attempts at what keeps failing: each may write much before it finds the disk full
_CATCH_UP_S = 10.0  # at the most, to let compaction catch up before the next write-back begins
_BACKLOG = 8  # write-backs whose files may wait for it: with 40 files in all a cold read takes a fifth longer
_MERGED = 2  # write-backs whose files are merged at once
_MERGED_FILES = 64  # at the most: each takes up to 16 MB of disk, and some nanoseconds of every cold read
_DIRTY_SHARE = 0.5  # of the memory budget: above it write-back does not wait for its interval


@dataclass(slots=True)
class _Job:
    """A task of the thread. do: called at every turn with the time; returns whether it got as far as where it may
    fail. error: why it cannot work now."""

    name: str
    do: Callable[[float], bool]
    error: Exception | None = None
    pause_s: float = _TICK_S
    again_at: float = 0.0


class Background:
    """Runs until `stop`. A job that fails is logged, kept in `engine.background_error` and tried again, ever less
    often; the others go on meanwhile."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._wake = threading.Event()
        self._stopping = False
        self._room = threading.Condition()
        self._sweeper = Sweeper(engine)
        self._rebalancer = Rebalancer(engine)
        self._write_back = _Job("write-back", self._write_back_if_due)
        self._jobs = [
            _Job("syncing the journal", self._sync_if_due),
            self._write_back,
            _Job("pacing compaction", self._pace_compaction),
            _Job("sweeping", self._sweep),
            _Job("sharing memory between groups", self._balance_if_due),
        ]
        self._flush_files = 0  # that the last write-back wrote
        self._is_idle = True  # nothing has changed for an interval of write-back
        self._flushed_at = self._synced_at = self._swept_at = self._balanced_at = time.monotonic()
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
        if engine.journal.total_bytes < limit:
            return
        with engine.journal_stall.waiting(), self._room:
            while engine.journal.total_bytes >= limit and not self._stopping:
                error = self._write_back.error
                if error is not None:
                    raise StorageFull(
                        f"the journal has reached journal_bytes_max={limit} and cannot be written back: {error}"
                    ) from error
                self._room.wait(_TICK_S)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_TICK_S)
            self._wake.clear()
            if self._stopping:
                return
            for job in self._jobs:
                self._attempt(job)
            self._engine.background_error = next((job.error for job in self._jobs if job.error is not None), None)

    def _attempt(self, job: _Job) -> None:
        now = time.monotonic()
        if job.error is not None and now < job.again_at:
            return
        try:
            works = job.do(now)
        except Exception as error:  # also what nobody foresaw: without this thread pushes would wait for ever
            if job.error is None:
                trace = None if isinstance(error, RockbedError) else error
                message = "rockbed: %s of %s failed, it is tried again: %s"
                _log.error(message, job.name, self._engine.directory, error or repr(error), exc_info=trace)
            job.pause_s = min(2 * job.pause_s, _PAUSE_MAX_S)
            job.again_at = time.monotonic() + job.pause_s
            job.error = error
        else:
            if works and job.error is not None:
                _log.warning("rockbed: %s of %s works again", job.name, self._engine.directory)
                job.error, job.pause_s = None, _TICK_S

    # --- the jobs ---

    def _sync_if_due(self, now: float) -> bool:
        config = self._engine.config
        if config.fsync == "interval" and now - self._synced_at >= config.fsync_interval_s:
            self._engine.journal.sync()
            self._synced_at = now
        return True

    def _write_back_if_due(self, now: float) -> bool:
        late = now - self._flushed_at >= HOLD_COMPACTION_S
        self._engine.hold_compaction(late and self._engine.has_changed())
        overdue = now - self._flushed_at >= self._engine.config.write_back_interval_s
        pressing = self._pressing()
        if (pressing or overdue) and not self._compaction_is_behind(now):
            if pressing or self._engine.has_changed():
                before = self._engine.files.runs
                self._engine.flush()
                self._flush_files = self._engine.files.runs - before
                self._is_idle = False
            else:
                self._is_idle = True
                self._engine.write_back.clean_at = now
            self._flushed_at = time.monotonic()
            with self._room:
                self._room.notify_all()
        return True

    def _compaction_is_behind(self, now: float) -> bool:
        """Whether the next write-back waits, and memory fills meanwhile: reads would go through ever more files."""
        most = _BACKLOG * max(2, self._flush_files)
        return now - self._flushed_at < _CATCH_UP_S and self._engine.files.is_behind(most)

    def _pace_compaction(self, now: float) -> bool:
        most = 0 if self._is_idle else min(_MERGED * self._flush_files, _MERGED_FILES)
        self._engine.files.pace_compaction(max(most, FEW_FILES))
        return True

    def _sweep(self, now: float) -> bool:
        # the time that has passed, whatever woke the thread: a busy journal must not make the sweeper busier
        seconds, self._swept_at = now - self._swept_at, now
        self._sweeper.turn(seconds)
        return self._sweeper.was_on_disk

    def _balance_if_due(self, now: float) -> bool:
        if now - self._balanced_at < _BALANCE_S:
            return False
        self._balanced_at = now
        self._rebalancer.turn()
        return True

    def _pressing(self) -> bool:
        engine = self._engine
        if engine.journal.total_bytes >= engine.config.journal_bytes_max // 2:
            return True
        if engine.budget.used_bytes < _DIRTY_SHARE * engine.budget.limit_bytes:
            return False
        dirty = sum(g.table.dirty_count() * g.table.row_bytes for g in list(engine.groups.values()))
        return dirty >= _DIRTY_SHARE * engine.budget.limit_bytes
