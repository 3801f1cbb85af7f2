"""How Rockbed compiles its loops: one decorator, a notice while compiling, and two building blocks.

numba, which takes a second to import, is imported when a kernel is first called: a client of a server names optimizers
and initializers, whose files hold kernels, and calls none.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

_log = logging.getLogger("rockbed")
_lock = threading.RLock()
_noticing = _warned = False
F = TypeVar("F", bound=Callable[..., Any])


class Deferred:
    """What numba makes of a function, made when it is first called or first used by another one."""

    def __init__(self, function: Callable[..., Any], make: Callable[[Any, Callable[..., Any]], Any]) -> None:
        """make: called with numba and the function."""
        self._function = function
        self._make = make
        self._made: Any = None

    def made(self) -> Any:
        """numba's own object."""
        if self._made is None:
            with _lock:
                if self._made is None:
                    made = self._make(_numba(), self._function)
                    self._take_places(made)
                    self._made = made  # last: another thread that sees it calls it, which compiles it
        return self._made

    def _take_places(self, made: Any) -> None:
        # numba knows nothing of this class: where a kernel names another one, or calls itself, it must find its own
        place = self._function.__globals__
        for name in {*self._function.__code__.co_names, self._function.__name__}:
            value = place.get(name)
            if isinstance(value, Deferred):
                place[name] = made if value is self else value.made()

    def __call__(self, *args: Any) -> Any:
        return (self._made or self.made())(*args)


def _numba() -> Any:
    import numba

    global _noticing
    if not _noticing:
        _noticing = True
        _notice_compiling()
    return numba


def kernel(function: F) -> F:
    """Compile a module-level loop: without the GIL, kept on disk, IEEE division (no ZeroDivisionError checks).

    No fastmath: a result must not depend on how a compiler reorders sums, because replaying the
    journal, another machine and a GPU have to arrive at the same bits.
    """
    return cast(F, Deferred(function, lambda numba, f: _kept(numba, f, nogil=True, error_model="numpy")))


def statistic(function: F) -> F:
    """Like `kernel`, for figures that people look at and no row depends on: the compiler may reorder and fuse their
    sums, which makes them several times as fast."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    return cast(F, Deferred(function, lambda numba, f: _kept(numba, f, **options)))


def inlined(function: F) -> F:
    """A small function that LLVM inlines into the kernels that call it. Not cached on its own."""
    options = {"nogil": True, "error_model": "numpy", "forceinline": True}
    return cast(F, Deferred(function, lambda numba, f: numba.njit(**options)(f)))


def _kept(numba: Any, function: Callable[..., Any], **options: Any) -> Any:
    global _warned
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError as error:  # numba finds no directory that can be written to
        if not _warned:
            _warned = True
            _log.warning(
                "rockbed: kernels cannot be kept on disk and are compiled at every start (%s): let NUMBA_CACHE_DIR "
                "name a directory that can be written to",
                error,
            )
        return numba.njit(**options)(function)


def _notice_compiling() -> None:
    """Say once a process that kernels are being compiled, so that the first seconds are no mystery."""
    from numba.core import event

    class Notice(event.Listener):
        told = False

        def on_start(self, event: Any) -> None:
            dispatcher = (event.data or {}).get("dispatcher")
            module = getattr(getattr(dispatcher, "py_func", None), "__module__", "") or ""
            if not self.told and module.startswith("rockbed"):
                self.told = True
                _log.warning("rockbed: compiling CPU kernels for this machine (each once: they are cached for later)")

        def on_end(self, event: Any) -> None:
            return None

    event.register("numba:compile", Notice())


def _prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    from llvmlite import ir
    from numba.core import cgutils, types

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


_load_line: Any = Deferred(_prefetch, lambda numba, f: numba.extending.intrinsic(f))


@inlined
def prefetch(array: Any, offset: int) -> None:
    """Ask the CPU to load the cache line at byte `offset` of a C-contiguous array. Inside kernels only.

    Random rows cost a cache miss each; asked for some iterations ahead the misses overlap. How much that gains depends
    on the machine: `python -m benchmarks.kernels` measures the Adagrad step with it and without.
    """
    _load_line(array, offset)


@inlined
def mix64(x: int) -> Any:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014; Stafford's variant 13): uint64 -> uint64, one to one."""
    z = np.uint64(x)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
