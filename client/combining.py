"""The rows of each bag combined to one, and the gradient's way back, in numpy: what a server's kernels do, for rows
that lie in this process."""

import numpy as np

from rockbed.bags import COMBINERS, check_arrays, setting_problems
from rockbed.errors import InvalidConfig, WrongShape
from rockbed.types import F32, F64, I64, AnyArray


def check_combining(combiner: str, max_norm: float | None) -> None:
    """Raise InvalidConfig for a combiner that there is not, or a max_norm that is no positive number."""
    problems = [] if combiner in COMBINERS else [f"combiner is {combiner!r}, not one of {', '.join(COMBINERS)}"]
    problems += setting_problems("sum", max_norm, None)
    if problems:
        raise InvalidConfig("; ".join(problems))


def combine(rows: F32, offsets: I64, weights: F32 | None, combiner: str, max_norm: float | None) -> F32:
    """The rows of each bag as one: sum(w e), sum(w e) / sum(w) or sum(w e) / sqrt(sum(w^2)), float32[B, dim].

    rows: float32[nnz, dim], those of bag b are rows[offsets[b]:offsets[b + 1]]. offsets: int64[B + 1]. weights:
    float32[nnz], None = 1 each. combiner: "sum", "mean" or "sqrtn". max_norm: a row of a larger L2 norm is scaled down
    to it first. A bag without rows, or with weights that add up to nothing, gives zeros, as TensorFlow's div_no_nan.
    Sums are in float32, in order. Raises InvalidConfig, WrongShape, BatchTooLarge.
    """
    scale, factors = _factors(rows, offsets, weights, combiner, max_norm)
    out = np.zeros((offsets.size - 1, rows.shape[1]), np.float32)
    filled = offsets[1:] > offsets[:-1]  # reduceat gives a row, not zeros, where a part is empty
    if filled.any():
        out[filled] = np.add.reduceat(rows if factors is None else rows * factors[:, None], offsets[:-1][filled], 0)
    if scale is not None:
        out *= scale[:, None]
    return out


def combine_gradients(
    rows: F32, offsets: I64, weights: F32 | None, combiner: str, max_norm: float | None, grads: F32
) -> F32:
    """The gradient of each row that was combined, float32[nnz, dim]. grads: float32[B, dim], of what `combine` gave.

    The others, and what is raised: as for `combine`. A row e of norm n above the limit c was scaled to c e / n; a
    gradient g of that is c / n (g - e (e . g) / n^2) of e.
    """
    if grads.shape != (offsets.size - 1, rows.shape[1]):
        raise WrongShape(
            f"gradients of {offsets.size - 1} bags are [{offsets.size - 1}, {rows.shape[1]}], not {list(grads.shape)}"
        )
    scale, factors = _factors(rows, offsets, weights, combiner, max_norm)
    out: F32 = np.repeat(grads if scale is None else grads * scale[:, None], np.diff(offsets), axis=0)
    if factors is not None:
        out *= factors[:, None]
    if max_norm is not None:
        norms = _norms(rows)
        (limited,) = np.nonzero(norms > max_norm)
        clipped = rows[limited]
        along = np.einsum("ij,ij->i", clipped, out[limited], dtype=np.float64) / norms[limited] ** 2
        out[limited] -= clipped * along.astype(np.float32)[:, None]
    return out


def _factors(
    rows: F32, offsets: I64, weights: F32 | None, combiner: str, max_norm: float | None
) -> tuple[F32 | None, F32 | None]:
    """What each bag's sum, float32[B], and each row, float32[nnz], are multiplied by; None = 1.

    In float64 up to here: w e or 1 / sum(w) alone may be beyond float32 where their product is not.
    """
    check_combining(combiner, max_norm)
    check_arrays(rows[:, 0], offsets, weights)
    limits = None if max_norm is None else max_norm / np.maximum(_norms(rows), max_norm)
    if weights is None:
        counts = np.diff(offsets).astype(np.float64)
        scale = None if combiner == "sum" else _inverse(counts if combiner == "mean" else np.sqrt(counts))
        return _float32(scale), _float32(limits)
    shares = weights.astype(np.float64)
    if combiner != "sum":
        bags = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
        sums = np.bincount(bags, shares if combiner == "mean" else shares * shares, offsets.size - 1)
        divisors = sums.astype(np.float64, copy=False)
        shares *= _inverse(divisors if combiner == "mean" else np.sqrt(divisors))[bags]
    return None, _float32(shares if limits is None else shares * limits)


def _norms(rows: F32) -> F64:
    norms: F64 = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def _inverse(values: F64) -> F64:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)


def _float32(values: AnyArray | None) -> F32 | None:
    return None if values is None else values.astype(np.float32)
