"""How Rockbed compiles its loops: one decorator, a notice while compiling, and two building blocks."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, event, types
from numba.extending import intrinsic

_log = logging.getLogger("rockbed")
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a module-level loop: without the GIL, kept on disk, IEEE division (no ZeroDivisionError checks).

    No fastmath: a result must not depend on how a compiler reorders sums, because replaying the
    journal, another machine and a GPU have to arrive at the same bits.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def statistic(function: F) -> F:
    """Like `kernel`, for figures that people look at and no row depends on: the compiler may reorder and fuse their
    sums, which makes them several times as fast."""
    fastmath = {"reassoc", "contract"}
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(function))


def inlined(function: F) -> F:
    """A small function that LLVM inlines into the kernels that call it. Not cached on its own."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


class _CompileNotice(event.Listener):
    """Says once a process that kernels are being compiled, so that the first seconds are no mystery."""

    def __init__(self) -> None:
        self.told = False

    def on_start(self, event: event.Event) -> None:
        dispatcher = (event.data or {}).get("dispatcher")
        module = getattr(getattr(dispatcher, "py_func", None), "__module__", "") or ""
        if not self.told and module.startswith("rockbed"):
            self.told = True
            _log.warning("rockbed: compiling CPU kernels for this machine (each once: they are cached for later)")

    def on_end(self, event: event.Event) -> None:
        return None


event.register("numba:compile", _CompileNotice())


@intrinsic
def _prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    signature = types.void(array, types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        byte = ir.IntType(8).as_pointer()
        int32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32]), "llvm.prefetch.p0"
        )
        address = builder.gep(builder.bitcast(base, byte), [args[1]])
        # to read, in every cache level, data: where a write follows, it does so too soon for a hint to pay
        builder.call(function, [address, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return signature, generate


@inlined
def prefetch(array: Any, offset: int) -> None:
    """Ask the CPU to load the cache line at byte `offset` of a C-contiguous array. Inside kernels only.

    Random rows cost a cache miss each; asked for some iterations ahead the misses overlap. How much that gains depends
    on the machine: `python -m benchmarks.kernels` measures the Adagrad step with it and without.
    """
    _prefetch(array, offset)


@inlined
def mix64(x: int) -> Any:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014; Stafford's variant 13): uint64 -> uint64, one to one."""
    z = np.uint64(x)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
