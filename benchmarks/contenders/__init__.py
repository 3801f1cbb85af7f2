"""The contenders: one file each, one process each, all of the shape of `base.Contender`."""

from importlib import import_module

from benchmarks.contenders.base import Contender

NAMES = ("rockbed", "numpy", "torch", "damo", "daemon", "daemon-socket", "echo", "damo-http")


def make(name: str) -> Contender:
    """Import the one contender: a process holds one library, not all of them."""
    if name not in NAMES:
        raise ValueError(f"no contender {name!r}: {', '.join(NAMES)}")
    module = import_module(f"benchmarks.contenders.{name.replace('-', '_')}_contender")
    contender: Contender = module.make()
    return contender
