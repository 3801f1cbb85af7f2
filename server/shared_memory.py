"""Memory of clients on the same machine, in which their large messages lie, and the answers to them.

A message of some megabytes is copied four times on its way through a socket, by both ends and the kernel. Here it is
written once, and read where it lies.
"""

import fcntl
import hmac
import ipaddress
import mmap
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rockbed.errors import InvalidConfig, LimitExceeded, UnknownMemory
from rockbed.server.limits import Limits
from rockbed.shared_messages import HEAD, NAME, SECRET_BYTES, SharedMessage
from rockbed.wire_format import Parts, size_of

_HANDLE_BYTES = 16  # random ones: nobody guesses another's
_LEAST_BYTES = 4 << 20  # as which a smaller one counts: each takes a file descriptor, too
_IDLE_S = 60.0
_LINK = f"/memfd:{NAME}"  # what /proc says of such a descriptor begins with it
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@dataclass(slots=True)
class _Mapped:
    memory: mmap.mmap
    used_s: float

    @property
    def size(self) -> int:
        return max(_LEAST_BYTES, len(self.memory))


class SharedMemory:
    """What clients share with one server, each piece until it is idle for a minute. Thread-safe."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        """limits: shared_bytes_max and message_bytes_max of them. clock: seconds that never go backwards."""
        self._limits = limits
        self._clock = clock
        self._mapped: dict[bytes, _Mapped] = {}  # what has been idle for longest first
        self._timer: threading.Timer | None = None
        self._closed = False
        self._lock = threading.Lock()

    def add(self, process: int, descriptor: int, secret: bytes) -> bytes:
        """A handle for memory that another process has open, a memfd whose size is sealed.

        secret: what the memory begins with; it shows that who asks has access to it. Raises InvalidConfig for what is
        no such memory, LimitExceeded.
        """
        most = self._limits.shared_bytes_max
        if most == 0:
            raise LimitExceeded("this server shares no memory (shared_bytes_max is 0): send messages themselves")
        if not _is_safe_here():
            raise LimitExceeded("this server's system has no memory that is safe to share: send messages themselves")
        new = _Mapped(_opened(process, descriptor, secret), self._clock())
        handle = secrets.token_bytes(_HANDLE_BYTES)
        with self._lock:
            self._let_go()
            used = sum(each.size for each in self._mapped.values())
            if used + new.size > most:
                raise LimitExceeded(
                    f"{new.size} bytes of shared memory, where others have {used}, and shared_bytes_max is {most}: "
                    "send messages themselves, or raise it on the server"
                )
            self._mapped[handle] = new
            self._watch()
        return handle

    def view(self, place: SharedMessage) -> memoryview:
        """The memory that a message lies in; it stays while there is a view of it.

        Raises UnknownMemory, InvalidConfig for a place outside of it, LimitExceeded for a message that is too large.
        """
        handle = bytes(place.memory)
        with self._lock:
            self._let_go()
            mapped = self._mapped.pop(handle, None)
            if mapped is None:
                raise UnknownMemory(
                    f"the server has no such memory: it was idle for {_IDLE_S:g} s, or is from before a restart; share "
                    "it again, or send the message itself"
                )
            mapped.used_s = self._clock()
            self._mapped[handle] = mapped
        view = memoryview(mapped.memory)
        for at, size in ((place.at, place.size), (place.room_at, place.room)):
            if not (HEAD <= at <= len(view) and 0 <= size <= len(view) - at):
                raise InvalidConfig(f"{size} bytes at {at} of a shared memory of {len(view)}, from {HEAD} on")
        if place.size > self._limits.message_bytes_max:
            raise LimitExceeded(
                f"a message of {place.size} bytes, the server's message_bytes_max is {self._limits.message_bytes_max}"
            )
        return view

    def nbytes(self) -> int:
        """Bytes that are shared now."""
        with self._lock:
            return sum(len(each.memory) for each in self._mapped.values())

    def close(self) -> None:
        """Let go of all. May be called twice."""
        with self._lock:
            self._closed = True
            self._mapped.clear()
            if self._timer is not None:
                self._timer.cancel()

    def _let_go(self) -> None:
        """Of what is idle. With the lock held."""
        before = self._clock() - _IDLE_S
        idle = []
        for handle, mapped in self._mapped.items():
            if mapped.used_s > before:
                break
            idle.append(handle)
        for handle in idle:
            del self._mapped[handle]

    def _watch(self) -> None:
        """Have what will be idle let go of although nobody calls. With the lock held."""
        if self._mapped and self._timer is None and not self._closed:
            self._timer = threading.Timer(_IDLE_S / 4, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            self._let_go()
            self._watch()


def request_in(view: memoryview, place: SharedMessage) -> memoryview:
    """The request that lies in a view. A client may change it meanwhile: copy what must stay as it is."""
    return view[place.at : place.at + place.size]


def answer_in(view: memoryview, place: SharedMessage, answer: Parts) -> SharedMessage | None:
    """Write an answer to where the request gave room for it, and say where it is; None where it is too large."""
    size, at = size_of(answer), place.room_at
    if size > place.room:
        return None
    for part in answer:
        view[at : at + len(part)] = part
        at += len(part)
    return SharedMessage(at=place.room_at, size=size)


def is_here(peer: str) -> bool:
    """Whether who calls is on this machine; peer: as gRPC has it, "ipv4:127.0.0.1:40312" or "unix:"."""
    kind, _, address = peer.partition(":")
    if kind == "unix":
        return True
    host = address.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _is_safe_here() -> bool:
    """Whether a page that is first touched is there, or whoever touches it gets SIGBUS: where a system commits no more
    memory than it has, a page of a memfd is asked for when it is touched."""
    if not hasattr(os, "memfd_create"):
        return False
    try:
        return _OVERCOMMIT.read_text().strip() != "2"
    except OSError:
        return False


def _opened(process: int, descriptor: int, secret: bytes) -> mmap.mmap:
    memory = None
    try:
        # O_PATH: what is no memory is not opened, only looked at
        found = os.open(f"/proc/{process}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/self/fd/{found}").startswith(_LINK):
                memory = _mapped(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
    except OSError as error:
        why = error.strerror
    else:
        why = "it is no memfd of that name, of usual pages and with those seals"
    if memory is None:
        raise InvalidConfig(f"descriptor {descriptor} of process {process} cannot be shared ({why})")
    if not hmac.compare_digest(memory[:SECRET_BYTES], secret):
        raise InvalidConfig(f"descriptor {descriptor} of process {process} does not begin with the secret sent")
    return memory


def _mapped(path: str) -> mmap.mmap | None:
    """None for memory that could shrink, or of huge pages, which can run out: an access to what is not there would end
    the server."""
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size, seals = os.fstat(opened).st_size, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        if size < HEAD or fcntl.fcntl(opened, fcntl.F_GET_SEALS) & seals != seals:
            return None
        if os.fstatvfs(opened).f_bsize != mmap.PAGESIZE:
            return None
        return mmap.mmap(opened, size)
    finally:
        os.close(opened)
