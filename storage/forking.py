"""What a forked child must let go of: it inherits file handles and RocksDB's objects, but none of their threads."""

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something of the parent's that a child must not use, and must not end in the parent's place either."""

    def forget(self) -> None:
        """Called in the child, right after the fork."""


_open: "weakref.WeakSet[Inherited]" = weakref.WeakSet()


def forget_in_child(thing: Inherited) -> None:
    """Have `thing.forget()` called in every child that os.fork makes from now on, as long as `thing` is alive."""
    _open.add(thing)


def _in_child() -> None:
    for thing in list(_open):
        thing.forget()


os.register_at_fork(after_in_child=_in_child)
