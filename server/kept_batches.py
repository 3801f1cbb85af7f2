"""Batches that were looked up and are remembered for the push that follows, so that their keys travel once."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockbed.errors import UnknownHandle
from rockbed.requests import Request
from rockbed.server.limits import Limits

if TYPE_CHECKING:
    from rockbed.server.engine import Engine
    from rockbed.server.fused import Plan

_HANDLE_BYTES = 16  # random ones: nobody guesses another's
_OBJECT_BYTES = 512  # of Python's objects for a batch and for each of its features, about


@dataclass(slots=True)
class _Kept:
    plan: "Plan"
    size: int
    owner: str
    until_s: float
    users: int = 0


class KeptBatches:
    """Of one engine. Thread-safe. The oldest make room for new ones; those that are being pushed stay."""

    def __init__(self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """limits: kept_bytes_max and kept_s of them. clock: seconds that never go backwards."""
        self._limits = limits or Limits()
        self._clock = clock
        self._kept: dict[bytes, _Kept] = {}  # the oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, plan: "Plan", owner: str) -> bytes | None:
        """A handle for it, None where there is no room. owner: the only one for whom it stands for something."""
        size = plan.nbytes + _OBJECT_BYTES * (1 + len(plan.batch))
        most = self._limits.kept_bytes_max
        if size > most:
            return None
        handle = secrets.token_bytes(_HANDLE_BYTES)
        with self._lock:
            self._let_go(most - size)
            if self._bytes + size > most:
                return None
            self._kept[handle] = _Kept(plan, size, owner, self._clock() + self._limits.kept_s)
            self._bytes += size
        return handle

    @contextmanager
    def taken(self, handle: bytes, owner: str) -> Iterator["Plan"]:
        """The batch. It is let go of at the end of the block, but stays where the block raises.

        Raises UnknownHandle for what is no handle of the owner's, without telling whether it is another's.
        """
        with self._lock:
            self._let_go(self._limits.kept_bytes_max)
            kept = self._kept.get(handle)
            if kept is None or kept.owner != owner:
                raise UnknownHandle(
                    "the handle stands for no batch that is kept: it was pushed, is older than "
                    f"{self._limits.kept_s:g} s (kept_s), had to make room for others (kept_bytes_max), is another "
                    "caller's, or is from before a restart or restore_from: push the batch itself"
                )
            kept.users += 1
        done = False
        try:
            yield kept.plan
            done = True
        finally:
            with self._lock:
                kept.users -= 1
                if done:
                    self._drop(handle)

    def renewed(self) -> "KeptBatches":
        """None of the batches, with the same limits."""
        return KeptBatches(self._limits, clock=self._clock)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            for handle in list(self._kept):
                self._drop(handle)

    def statistics(self) -> dict[str, int]:
        """How many there are now, and their bytes of memory."""
        with self._lock:
            self._let_go(self._limits.kept_bytes_max)
            return {"kept_batches": len(self._kept), "kept_bytes": self._bytes}

    def _let_go(self, most: int) -> None:
        """Of what is too old, and of the oldest until `most` bytes are left. With the lock held."""
        now, left, going = self._clock(), self._bytes, []
        for handle, kept in self._kept.items():
            if kept.until_s > now and left <= most:
                break
            if kept.users == 0:
                left -= kept.size
                going.append(handle)
        for handle in going:
            self._drop(handle)

    def _drop(self, handle: bytes) -> None:
        kept = self._kept.pop(handle, None)  # None: another push of it has ended before this one
        if kept is not None:
            self._bytes -= kept.size


def apply_kept(
    engine: "Engine", handle: bytes, owner: str, request: Request | None, apply: Callable[["Plan"], bool]
) -> bool:
    """Push the gradients of a kept batch with `apply`, which says whether they were applied, or had been before.

    A push that is sent again because its answer was lost may find its batch gone, and is acknowledged all the same, for
    the engine knows its request: a batch is let go of only after the engine has recorded its push, and stays while it
    is being pushed, whatever its age. So whoever is told that a handle is unknown may push the batch itself, even as
    another request: nothing of it was applied, nor will be.
    Raises UnknownHandle, and what `apply` raises; then nothing was applied.
    """
    try:
        with engine.kept.taken(handle, owner) as plan:
            return apply(plan)
    except UnknownHandle:
        engine.check_open()
        if request is not None and engine.clients.applied(request):
            return False
        raise
