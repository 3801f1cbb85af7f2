"""The random numbers behind the initial rows: a pure function of (seed, group, key, position), the same everywhere.

With G = 0x9E3779B97F4A7C15, mix64 of rockbed.kernels, and arithmetic modulo 2^64:

    stream  = mix64(mix64(seed + G) + (group + 1) * G)
    row     = mix64(stream ^ key)                      key as its 64-bit pattern
    word[k] = mix64(row + (k + 1) * G)                 splitmix64 started at `row`
    x[2k]   = word[k] >> 32,  x[2k + 1] = word[k] & 0xFFFFFFFF
    u[j]    = (x[j] + 0.5) * 2^-32                     exact in float64, inside (0, 1), symmetric about 1/2

For one stream the map from key to row is one to one. All that follows is + - * / and sqrt in float64, rounded once to
float32, so IEEE 754 fixes every bit. A port must not contract a * b + c into one operation (nvcc: --fmad=false).
Changing anything here changes the rows that stores expect to find again; golden values in the tests guard it.
"""

import math
from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel, mix64
from rockbed.types import F32, I64

GAMMA: Any = np.uint64(0x9E3779B97F4A7C15)
UNIT = 2.0**-32


@inlined
def _stream(seed: Any, group: int) -> Any:
    """uint64: the generator of one group under one seed."""
    return mix64(mix64(np.uint64(seed) + GAMMA) + np.uint64(group + 1) * GAMMA)


@inlined
def _word(row: Any, j: int) -> Any:
    """uint64: the word that holds x[j] and its neighbour."""
    return mix64(row + np.uint64(j // 2 + 1) * GAMMA)


@inlined
def _unit(word: Any, j: int) -> float:
    """float64: u[j], from the upper half of the word for an even j and the lower half for an odd one."""
    half = word & np.uint64(0xFFFFFFFF) if j & 1 else word >> np.uint64(32)
    return (float(half) + 0.5) * UNIT


@kernel
def fill_constant(data: F32, rows: I64, dim: int, value: np.float32) -> None:
    """data[rows, :dim] = value."""
    for i in range(rows.shape[0]):
        r = rows[i]
        for j in range(dim):
            data[r, j] = value


@kernel
def fill_uniform(
    data: F32, rows: I64, keys: I64, dim: int, seed: np.uint64, group: int, low: float, span: float
) -> None:
    """data[rows, :dim] = float32(low + span * u). Rounding to float32 can give either bound itself."""
    stream = _stream(seed, group)
    word = np.uint64(0)
    for i in range(rows.shape[0]):
        r = rows[i]
        row = mix64(stream ^ np.uint64(keys[i]))
        for j in range(dim):
            if j & 1 == 0:
                word = _word(row, j)
            data[r, j] = low + span * _unit(word, j)


@kernel
def fill_normal(
    data: F32, rows: I64, keys: I64, dim: int, seed: np.uint64, group: int, mean: float, stddev: float, below: float
) -> None:
    """data[rows, :dim] = float32(mean + stddev * quantile(below + (1 - 2 * below) * u)).

    below = 0 gives the normal distribution, out to 6.3 standard deviations; below = P(Z < -a) the one truncated at
    +-a standard deviations, by one draw each and no redrawing.
    """
    stream = _stream(seed, group)
    word = np.uint64(0)
    between = 1.0 - 2.0 * below
    for i in range(rows.shape[0]):
        r = rows[i]
        row = mix64(stream ^ np.uint64(keys[i]))
        for j in range(dim):
            if j & 1 == 0:
                word = _word(row, j)
            data[r, j] = mean + stddev * _quantile(below + between * _unit(word, j))


# --- the normal quantile: Wichura 1988, algorithm AS 241 (PPND16), relative error about 1e-16 ---
# Its branch for tails beyond exp(-25) is not needed: u is never nearer to 0 or 1 than 2^-33.


@inlined
def _quantile(p: float) -> float:
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _central(r)
    r = math.sqrt(-_log(p if q < 0.0 else 1.0 - p)) - 1.6
    return -_tail(r) if q < 0.0 else _tail(r)


@inlined
def _central(r: float) -> float:
    top = 2.5090809287301226727e3
    top = top * r + 3.3430575583588128105e4
    top = top * r + 6.7265770927008700853e4
    top = top * r + 4.5921953931549871457e4
    top = top * r + 1.3731693765509461125e4
    top = top * r + 1.9715909503065514427e3
    top = top * r + 1.3314166789178437745e2
    top = top * r + 3.3871328727963666080e0
    bottom = 5.2264952788528545610e3
    bottom = bottom * r + 2.8729085735721942674e4
    bottom = bottom * r + 3.9307895800092710610e4
    bottom = bottom * r + 2.1213794301586595867e4
    bottom = bottom * r + 5.3941960214247511077e3
    bottom = bottom * r + 6.8718700749205790830e2
    bottom = bottom * r + 4.2313330701600911252e1
    return top / (bottom * r + 1.0)


@inlined
def _tail(r: float) -> float:
    top = 7.74545014278341407640e-4
    top = top * r + 2.27238449892691845833e-2
    top = top * r + 2.41780725177450611770e-1
    top = top * r + 1.27045825245236838258e0
    top = top * r + 3.64784832476320460504e0
    top = top * r + 5.76949722146069140550e0
    top = top * r + 4.63033784615654529590e0
    top = top * r + 1.42343711074968357734e0
    bottom = 1.05075007164441684324e-9
    bottom = bottom * r + 5.47593808499534494600e-4
    bottom = bottom * r + 1.51986665636164571966e-2
    bottom = bottom * r + 1.48103976427480074590e-1
    bottom = bottom * r + 6.89767334985100004550e-1
    bottom = bottom * r + 1.67638483018380384940e0
    bottom = bottom * r + 2.05319162663775882187e0
    return top / (bottom * r + 1.0)


LN2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476


@inlined
def _log(x: float) -> float:
    """ln(x) for a normal x > 0, to about 1e-16: ln(m * 2^e) = e * ln 2 + 2 * atanh((m - 1) / (m + 1)), m in [0.7, 1.4).

    Not libm's, whose last bit differs between systems. The series ends where its terms fall below 2^-56 of the first.
    """
    exponent = 0
    m = x
    while m < SQRT_HALF:  # at most 33 exact doublings here, 4 on average
        m *= 2.0
        exponent -= 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1.0 / 21.0
    series = series * z + 1.0 / 19.0
    series = series * z + 1.0 / 17.0
    series = series * z + 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    series = series * z + 1.0
    return exponent * LN2 + 2.0 * s * series
