"""Memory that a client shares with a server on the same machine, so that large messages need not travel."""

import mmap
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from rockbed.shared_messages import HEAD, NAME, SECRET_BYTES, SharedMessage
from rockbed.wire_format import Parts

WORTH_BYTES = 256 << 10  # of a request and its answer; smaller ones are faster through a socket
_LEAST_BYTES, _MOST_BYTES = 4 << 20, 256 << 20  # of a segment, and of all of a connection
_ALIGNED = 64
_REST_S = 60.0  # after no memory was to be had


class Segment:
    """A piece of such memory. It belongs to one call at a time, and after one that failed to none: what the server
    still does with it is not known."""

    __slots__ = ("__weakref__", "_free", "_handle", "_memory", "size")

    def __init__(self, memory: mmap.mmap, handle: bytes, free: "deque[Segment]") -> None:
        """handle: the server's name for it. free: where it goes when it is given back."""
        self._memory = memory
        self._handle = handle
        self._free = free
        self.size = len(memory)

    def put(self, message: Parts, room: int) -> SharedMessage:
        """Write a message into it, and say where. room: bytes that the answer may take."""
        # so that the largest array of it lies where the server can use it
        before = sum(map(len, message[: max(range(len(message)), key=lambda i: len(message[i]))]))
        begins = end = HEAD + -(HEAD + before) % _ALIGNED
        with memoryview(self._memory) as view:
            for part in message:
                begin, end = end, end + len(part)
                view[begin:end] = part
        room_at = -(-end // _ALIGNED) * _ALIGNED
        return SharedMessage(self._handle, begins, end - begins, room_at, room)

    def answer(self, place: SharedMessage) -> memoryview:
        """The answer that lies in it. It is given back when no view of that is left."""
        array: Any = np.frombuffer(self._memory, np.uint8, place.size, place.at)
        weakref.finalize(array, self.give).atexit = False
        return memoryview(array)

    def give(self) -> None:
        """Give it back, to be used by another call."""
        self._free.append(self)  # without a lock: it could be held where Python comes to free an answer


class SharedMemory:
    """The segments of one connection, each used again and again. Thread-safe."""

    def __init__(self, share: Callable[[int, bytes], bytes]) -> None:
        """share: tells the server of a descriptor and of the secret that its memory begins with; gives the handle."""
        self._share = share
        self._free: deque[Segment] = deque()
        self._all: weakref.WeakSet[Segment] = weakref.WeakSet()  # what is not given back is gone with its call
        self._coming = 0
        self._rests_until = 0.0
        self._lock = threading.Lock()

    def take(self, size: int) -> Segment | None:
        """A segment for a message and its answer of so many bytes together, None where there is no memory for it.

        Raises what `share` raises, and OSError where the system has none.
        """
        wanted = max(_LEAST_BYTES, 1 << (HEAD + size + 2 * _ALIGNED - 1).bit_length())  # pages never touched are none
        with self._lock:
            fitting = self._fitting(wanted)
            if fitting is not None or time.monotonic() < self._rests_until:
                return fitting
            if not self._make_room(self.nbytes + wanted - _MOST_BYTES):
                return None
            self._coming += wanted
        try:
            segment = self._new(wanted)
            with self._lock:
                self._all.add(segment)
            return segment
        finally:
            with self._lock:
                self._coming -= wanted

    def rest(self) -> bool:
        """Ask for no more for a minute. Returns whether that is the first time."""
        with self._lock:
            first, self._rests_until = self._rests_until == 0, time.monotonic() + _REST_S
            return first

    def clear(self) -> None:
        """Let go of what no call has now."""
        with self._lock:
            self._free.clear()

    def _make_room(self, size: int) -> bool:
        """Let go of so many bytes that no call has, or of none."""
        gone: list[Segment] = []
        while size > 0 and self._free:
            gone.append(self._free.popleft())
            size -= gone[-1].size
        if size > 0:
            self._free.extendleft(reversed(gone))
        return size <= 0

    def _fitting(self, size: int) -> Segment | None:
        for _ in range(len(self._free)):
            segment = self._free.pop()
            if segment.size >= size:
                return segment
            self._free.appendleft(segment)
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of all segments, those included that are being made."""
        return self._coming + sum(segment.size for segment in self._all)

    def _new(self, size: int) -> Segment:
        import fcntl  # which not every system has that a client runs on

        descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            # the server takes only what cannot shrink: an access to what is gone would end it
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = mmap.mmap(descriptor, size)
            secret = secrets.token_bytes(SECRET_BYTES)
            memory[:SECRET_BYTES] = secret
            return Segment(memory, self._share(descriptor, secret), self._free)
        finally:
            os.close(descriptor)
