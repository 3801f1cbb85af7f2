"""Building blocks of the update kernels, inlined into their row loops. What makes those loops fast, measured:

- Rows are asked for AHEAD of their turn, so that misses of memory overlap.
- `for j in range(np.uint64(dim))`: an unsigned index needs no check for "counted from the end", which would keep LLVM
  from vectorising the inner loop.
- Helpers get scalars, and no array but `data`: another array handed over inside the `if` costs an atomic
  reference count for every row.
- Every scalar of the inner loop is float32: one float64 would widen all of it.
"""

from typing import Any

import numpy as np

from rockbed.kernels import Deferred, inlined, prefetch
from rockbed.types import F32

AHEAD = 16
"""Rows between the one asked for and the one worked on: enough to hide a miss of memory behind the arithmetic."""


@inlined
def prefetch_row(data: Any, row: int) -> None:
    """Ask for every cache line of one row of a C-contiguous float32[capacity, width]."""
    size = data.shape[1] * 4
    start = row * size
    for offset in range(start, start + size, 64):
        prefetch(data, offset)
    prefetch(data, start + size - 1)  # rows are not aligned to lines, so one more may hold the end


def _sum_squares(typing_context: Any, grads: Any, start: Any, data: Any, first: Any, decay: Any, n: Any) -> Any:
    from llvmlite import ir
    from numba.core import cgutils, types

    signature = types.float32(grads, types.int64, data, types.int64, types.float32, types.int64)
    float32, lanes = ir.FloatType(), ir.VectorType(ir.FloatType(), 8)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def pointer(array: int) -> Any:
            base = context.make_array(sig.args[array])(context, builder, args[array]).data
            return builder.gep(base, [args[array + 1]])

        def load(base: Any, at: Any, kind: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(base, [at]), kind.as_pointer()), align=4)

        def added(total: Any, at: Any, kind: Any, factor: Any) -> None:
            value = builder.fadd(load(gradient, at, kind), builder.fmul(factor, load(weight, at, kind)))
            builder.store(builder.fadd(builder.load(total), builder.fmul(value, value)), total)

        def spread(value: Any) -> Any:
            vector = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
            return builder.shuffle_vector(vector, vector, zeros)

        gradient, weight, decay, n = pointer(0), pointer(2), args[4], args[5]
        eight = n.type(8)
        whole = builder.mul(builder.sdiv(n, eight), eight)
        of_lanes = cgutils.alloca_once(builder, lanes)
        builder.store(ir.Constant(lanes, [0.0] * 8), of_lanes)
        factors = spread(decay)
        with cgutils.for_range_slice(builder, n.type(0), whole, eight) as (at, _):
            added(of_lanes, at, lanes, factors)
        halves = builder.load(of_lanes)
        for size in (4, 2, 1):
            kinds = ir.VectorType(ir.IntType(32), size)
            low, high = (
                builder.shuffle_vector(halves, halves, ir.Constant(kinds, list(range(start, start + size))))
                for start in (0, size)
            )
            halves = builder.fadd(low, high)
        total = cgutils.alloca_once(builder, float32)
        builder.store(builder.extract_element(halves, ir.IntType(32)(0)), total)
        with cgutils.for_range_slice(builder, whole, n, n.type(1)) as (at, _):
            added(total, at, float32, decay)
        return builder.load(total)

    return signature, generate


_squares: Any = Deferred(_sum_squares, lambda numba, f: numba.extending.intrinsic(f))


@inlined
def sum_of_squares(grads: F32, i: int, data: F32, row: int, decay: np.float32) -> Any:
    """The sum of (grads[i, j] + decay * data[row, j])^2 over j, in float32, grads and data C-contiguous.

    Eight sums in turn, of which the first is added to the fifth and so on, (4), (2), (1); what is left of dim / 8 comes
    last, in order. One sum has to wait four cycles for each addition; which sums a compiler makes of one (fastmath)
    depends on the machine, and so would the last bit of a row.
    """
    dim = grads.shape[1]
    return _squares(grads, i * dim, data, row * data.shape[1], decay, dim)


@inlined
def power(base: float, exponent: int) -> float:
    """base**exponent for exponent >= 0 by squaring, in float64.

    Not libm's pow: that one may differ in the last bit between machines, and a journal replayed elsewhere must
    give the same rows. The error of 1 - base**exponent stays below 1 / (1 - base) units in the last place.
    """
    result = 1.0
    factor = base
    left = exponent
    while left > 0:
        if left & 1:
            result *= factor
        factor *= factor
        left >>= 1
    return result
