"""Initial rows: bit for bit what a numpy specification gives, in any order, and of the right distribution."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from rockbed.errors import InvalidConfig, UnknownName
from rockbed.optimizers import initializer_names, make_initializer
from rockbed.optimizers.config import parameters_of
from rockbed.optimizers.initializers import registry
from rockbed.types import F32, F64, I64
from tests.splitmix import GAMMA, MASK, mix64

RANDOM: list[tuple[str, dict[str, Any]]] = [
    ("random_uniform", {}),
    ("random_uniform", {"min": -0.01, "max": 0.02}),
    ("uniform", {}),
    ("xavier", {}),
    ("xavier_uniform", {}),
    ("kaiming_uniform", {}),
    ("kaiming_uniform", {"mode": "fan_out", "a": 0.5}),
    ("random", {}),
    ("random_normal", {}),
    ("random_normal", {"mean": 1.5, "stddev": 0.25}),
    ("truncate_normal", {}),
    ("truncated_normal", {"mean": 1.5, "stddev": 0.25}),
    ("xavier_normal", {}),
    ("kaiming_normal", {}),
    ("kaiming_normal", {"mode": "fan_out", "a": 0.5}),
]
IDS = [f"{name}-{len(params)}" for name, params in RANDOM]


def rows_of(name: str, params: dict[str, Any], keys: I64, dim: int, seed: int = 7, group: int = 3) -> F32:
    data = np.empty((len(keys), dim), np.float32)
    make_initializer(name, **params).fill(data, np.arange(len(keys)), keys, dim, seed, group)
    return data


# --- the specification: the same numbers with whole-array numpy and Python's unbounded integers ---


def units(keys: I64, dim: int, seed: int, group: int) -> F64:
    """float64[n, dim] in (0, 1)."""
    stream = mix64(mix64(seed + GAMMA & MASK) + (group + 1) * GAMMA & MASK)
    table = []
    for key in keys.tolist():
        row = mix64(stream ^ (key & MASK))
        words = [mix64(row + (k + 1) * GAMMA & MASK) for k in range((dim + 1) // 2)]
        table.append([half for word in words for half in (word >> 32, word & 0xFFFFFFFF)][:dim])
    return (np.array(table, np.float64).reshape(len(keys), dim) + 0.5) * 2.0**-32


def log(x: F64) -> F64:
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, 2 * m, m), e - low
    s = (m - 1) / (m + 1)
    z = s * s
    series = np.full_like(z, 1 / 21)
    for odd in range(19, 0, -2):
        series = series * z + 1 / odd
    result: F64 = e * math.log(2) + 2.0 * s * series
    return result


def ratio(r: F64, top: list[float], bottom: list[float]) -> F64:
    a, b = np.full_like(r, top[-1]), np.full_like(r, bottom[-1])
    for x in top[-2::-1]:
        a = a * r + x
    for x in bottom[-2::-1]:
        b = b * r + x
    return a / (b * r + 1.0)


CENTRAL_TOP = [
    3.3871328727963666080e0,
    1.3314166789178437745e2,
    1.9715909503065514427e3,
    1.3731693765509461125e4,
    4.5921953931549871457e4,
    6.7265770927008700853e4,
    3.3430575583588128105e4,
    2.5090809287301226727e3,
]
CENTRAL_BOTTOM = [
    4.2313330701600911252e1,
    6.8718700749205790830e2,
    5.3941960214247511077e3,
    2.1213794301586595867e4,
    3.9307895800092710610e4,
    2.8729085735721942674e4,
    5.2264952788528545610e3,
]
TAIL_TOP = [
    1.42343711074968357734e0,
    4.63033784615654529590e0,
    5.76949722146069140550e0,
    3.64784832476320460504e0,
    1.27045825245236838258e0,
    2.41780725177450611770e-1,
    2.27238449892691845833e-2,
    7.74545014278341407640e-4,
]
TAIL_BOTTOM = [
    2.05319162663775882187e0,
    1.67638483018380384940e0,
    6.89767334985100004550e-1,
    1.48103976427480074590e-1,
    1.51986665636164571966e-2,
    5.47593808499534494600e-4,
    1.05075007164441684324e-9,
]
BELOW_MINUS_TWO = 0.022750131948179207


def quantile(p: F64) -> F64:
    q = p - 0.5
    central = q * ratio(0.180625 - q * q, CENTRAL_TOP, CENTRAL_BOTTOM)
    tail = ratio(np.sqrt(-log(np.where(q < 0, p, 1.0 - p))) - 1.6, TAIL_TOP, TAIL_BOTTOM)
    return np.where(np.abs(q) <= 0.425, central, np.where(q < 0, -tail, tail))


def specification(name: str, params: dict[str, Any], keys: I64, dim: int, seed: int, group: int) -> NDArray[np.float32]:
    u = units(keys, dim, seed, group)
    kind, values = distribution(name, params, dim)
    if kind == "uniform":
        low, high = values
        return (low + (high - low) * u).astype(np.float32)
    below = BELOW_MINUS_TWO if kind == "truncated" else 0.0
    mean, stddev = values
    return (mean + stddev * quantile(below + (1.0 - 2.0 * below) * u)).astype(np.float32)


def distribution(name: str, params: dict[str, Any], dim: int) -> tuple[str, tuple[float, float]]:
    if name == "random_uniform":
        return "uniform", (params.get("min", -1.0), params.get("max", 1.0))
    if name in ("random", "random_normal"):
        return "normal", (params.get("mean", 0.0), params.get("stddev", 1.0))
    if name in ("truncate_normal", "truncated_normal"):
        return "truncated", (params.get("mean", 0.0), params.get("stddev", 1.0))
    if name == "uniform":
        return "uniform", (-math.sqrt(1 / dim), math.sqrt(1 / dim))
    if name in ("xavier", "xavier_uniform"):
        return "uniform", (-math.sqrt(6 / dim), math.sqrt(6 / dim))
    if name == "xavier_normal":
        return "normal", (0.0, math.sqrt(2 / dim))
    fan = 1 if params.get("mode") == "fan_out" else dim
    stddev = math.sqrt(2.0 / ((1.0 + params.get("a", 0.0) ** 2) * fan))
    if name == "kaiming_normal":
        return "normal", (0.0, stddev)
    bound = math.sqrt(3.0) * stddev
    return "uniform", (-bound, bound)


EDGE_KEYS = np.array([0, 1, -1, 2, 2**63 - 1, -(2**63), 0x0123456789ABCDEF], np.int64)


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 33])
@pytest.mark.parametrize(("name", "params"), RANDOM, ids=IDS)
def test_rows_are_bit_for_bit_the_specifications(name: str, params: dict[str, Any], dim: int) -> None:
    keys = np.concatenate([EDGE_KEYS, np.random.default_rng(dim).integers(-(2**63), 2**63 - 1, 200)])
    for seed, group in [(0, 0), (7, 3), (-1, 65_535), (2**64 + 5, 1)]:
        made = rows_of(name, params, keys, dim, seed, group)
        expected = specification(name, params, keys, dim, seed & MASK, group)
        np.testing.assert_array_equal(made.view(np.uint32), expected.view(np.uint32))


# Bits of the first four weights for seed 42, group 7, and the keys 0, -1 and 2**40 + 3. They never change: a store that
# was made by an earlier version finds rows that were never written only by making them again.
GOLDEN = {
    "random_uniform": [
        "be33435d 3ea49335 be9bfbdc bd72b6d4",
        "3e27866d be8fad2a 3d561408 3f7134af",
        "3f25bde1 3f6eb61e bd3ab163 3f19b190",
    ],
    "random_normal": [
        "be6281b4 3ed42f3f bec88183 bd983d17",
        "3e53746e beb7f430 3d863fee 3ff2da5a",
        "3f6dfb20 3fe9ff63 bd6a1cbe 3f579f4c",
    ],
    "truncate_normal": [
        "be580ade 3ec9ffd6 bebeefb7 bd914cc1",
        "3e49b480 beaf3d95 3d802217 3fd221e3",
        "3f5fc922 3fcc9754 bd5f7304 3f4b5f17",
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name: str) -> None:
    made = rows_of(name, {}, np.array([0, -1, 2**40 + 3], np.int64), 4, seed=42, group=7)
    assert [" ".join(f"{bits:08x}" for bits in row) for row in made.view(np.uint32).tolist()] == GOLDEN[name]


@pytest.mark.parametrize(("name", "params"), RANDOM, ids=IDS)
def test_row_depends_on_nothing_but_seed_group_and_key(name: str, params: dict[str, Any]) -> None:
    rng, dim = np.random.default_rng(1), 9
    keys = rng.integers(-(2**63), 2**63 - 1, 300)
    rows = rows_of(name, params, keys, dim)
    order = rng.permutation(300)
    np.testing.assert_array_equal(rows_of(name, params, keys[order], dim), rows[order])
    one_by_one = np.vstack([rows_of(name, params, keys[i : i + 1], dim) for i in range(300)])
    np.testing.assert_array_equal(one_by_one, rows)
    # A row of a smaller dim is not promised to be a prefix, but the same for seeds that are equal modulo 2^64.
    np.testing.assert_array_equal(rows_of(name, params, keys, dim, seed=7 + 2**64), rows)
    for seed, group in [(8, 3), (7, 4), (3, 7)]:
        assert not np.array_equal(rows_of(name, params, keys, dim, seed, group), rows)


def test_fill_writes_the_weights_of_the_named_rows_only() -> None:
    for name in initializer_names():
        initializer = make_initializer(name, **({"value": 2.5} if name == "constant" else {}))
        data = np.full((10, 7), 99, np.float32)
        initializer.fill(data, np.array([8, 2]), np.array([5, -6]), 4, 1, 0)
        assert (data[:, 4:] == 99).all()
        assert (data[[0, 1, 3, 4, 5, 6, 7, 9]] == 99).all()
        assert (data[[8, 2], :4] != 99).all()
        before = data.tobytes()
        initializer.fill(data, np.empty(0, np.int64), np.empty(0, np.int64), 4, 1, 0)
        assert data.tobytes() == before


def test_uint64_key_is_its_bit_pattern() -> None:
    keys = np.array([2**64 - 1, 2**63], np.uint64)
    assert rows_of("random_normal", {}, keys.view(np.int64), 3).tobytes() == (
        rows_of("random_normal", {}, np.array([-1, -(2**63)], np.int64), 3).tobytes()
    )


@pytest.mark.parametrize(("name", "value"), [("zeros", 0.0), ("ones", 1.0)])
def test_constants(name: str, value: float) -> None:
    assert (rows_of(name, {}, EDGE_KEYS, 5) == value).all()
    assert (rows_of("constant", {"value": -0.25}, EDGE_KEYS, 5) == -0.25).all()


# --- distributions ---

SAMPLE_KEYS = {
    "consecutive": np.arange(20_000, dtype=np.int64),
    "scattered": np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 20_000),
    "multiples of 2^32": np.arange(20_000, dtype=np.int64) << 32,
}


@pytest.mark.parametrize("keys", SAMPLE_KEYS.values(), ids=SAMPLE_KEYS.keys())
@pytest.mark.parametrize(("name", "params"), RANDOM, ids=IDS)
def test_distribution_by_moments_and_kolmogorov_smirnov(name: str, params: dict[str, Any], keys: I64) -> None:
    dim = 10
    sample = rows_of(name, params, keys, dim).astype(np.float64)
    kind, values = distribution(name, params, dim)
    if kind == "uniform":
        low, high = values
        law = stats.uniform(low, high - low)
    elif kind == "normal":
        law = stats.norm(*values)
    else:
        law = stats.truncnorm(-2, 2, *values)
    # p-values of fixed samples, not of fresh ones: 1e-4 leaves 90 tests unlikely to have failed by chance once.
    assert stats.kstest(sample.ravel(), law.cdf).pvalue > 1e-4
    for j in range(dim):
        assert stats.kstest(sample[:, j], law.cdf).pvalue > 1e-5
    standard = (sample.ravel() - law.mean()) / law.std()
    n = standard.size
    fourth = law.stats(moments="k") + 3  # E[z^4]
    assert abs(standard.mean()) < 5 / math.sqrt(n)
    assert abs((standard**2).mean() - 1) < 5 * math.sqrt((fourth - 1) / n)
    assert abs((standard**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((standard**4).mean() - fourth) < 5 * math.sqrt(105 / n)
    low, high = law.support()
    assert low - 1e-6 <= sample.min()
    assert sample.max() <= high + 1e-6


@pytest.mark.parametrize("keys", SAMPLE_KEYS.values(), ids=SAMPLE_KEYS.keys())
def test_columns_and_neighbouring_rows_are_uncorrelated(keys: I64) -> None:
    sample = rows_of("random_normal", {}, keys, 8).astype(np.float64)
    n = len(sample)
    across = np.corrcoef(np.hstack([sample[:-1], sample[1:]]).T) - np.eye(16)
    assert np.abs(across).max() < 5 / math.sqrt(n)
    other = rows_of("random_normal", {}, keys, 8, seed=8).astype(np.float64)
    assert abs((sample * other).mean()) < 5 / math.sqrt(sample.size)


def test_no_two_keys_share_a_row() -> None:
    keys = np.arange(-100_000, 100_000)
    rows = rows_of("random_uniform", {}, keys, 4)
    assert len(np.unique(rows, axis=0)) == len(keys)


def test_quantile_of_the_specification_is_right() -> None:
    assert special.ndtr(-2.0) == pytest.approx(BELOW_MINUS_TWO, rel=1e-15)
    x = np.concatenate(
        [np.arange(1000), 2**32 - 1 - np.arange(1000), np.random.default_rng(4).integers(0, 2**32, 10_000)]
    )
    p = (x + 0.5) * 2.0**-32
    np.testing.assert_allclose(quantile(p), special.ndtri(p), rtol=1e-14, atol=1e-16)


# --- every parameter: its key and default as documented, and that another value does what it says ---

DEFAULTS: dict[str, dict[str, Any]] = {
    "zeros": {},
    "ones": {},
    "constant": {},
    "random_uniform": {"min": -1.0, "max": 1.0},
    "random_normal": {"mean": 0.0, "stddev": 1.0},
    "truncate_normal": {"mean": 0.0, "stddev": 1.0},
    "uniform": {},
    "xavier_uniform": {},
    "xavier_normal": {},
    "kaiming_uniform": {"mode": "fan_in", "a": 0.0},
    "kaiming_normal": {"mode": "fan_in", "a": 0.0},
}
OTHERS: dict[str, Any] = {"min": -0.25, "max": 0.5, "mean": 0.75, "stddev": 0.3, "mode": "fan_out", "a": 0.6}
EVERY_PARAMETER = [(name, key) for name, defaults in DEFAULTS.items() for key in defaults]


def test_the_table_holds_every_initializer_and_every_parameter() -> None:
    classes = {cls.name: cls for cls in registry._classes.values()}
    assert set(DEFAULTS) == set(classes)
    for name, cls in classes.items():
        keys = [spec.key for spec in parameters_of(cls).values()]
        assert keys == (["value"] if name == "constant" else list(DEFAULTS[name]))


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_documented_ones(name: str) -> None:
    required = {"value": 0.5} if name == "constant" else {}
    assert make_initializer(name, **required).params() == {**required, **DEFAULTS[name]}


@pytest.mark.parametrize(("name", "key"), EVERY_PARAMETER, ids=["-".join(case) for case in EVERY_PARAMETER])
def test_every_parameter_does_what_it_says(name: str, key: str) -> None:
    params = {key: OTHERS[key]}
    made, plain = rows_of(name, params, EDGE_KEYS, 8), rows_of(name, {}, EDGE_KEYS, 8)
    expected = specification(name, params, EDGE_KEYS, 8, 7, 3)
    np.testing.assert_array_equal(made.view(np.uint32), expected.view(np.uint32))
    assert (made != plain).any()


# --- by name ---


def test_every_random_name_is_tested_and_describes_itself() -> None:
    assert {name for name, _ in RANDOM} | {"zeros", "ones", "constant"} == set(initializer_names())
    for name, params in [*RANDOM, ("constant", {"value": 1}), ("zeros", {}), ("ones", {})]:
        initializer = make_initializer(name, **params)
        assert make_initializer(initializer.name, **initializer.params()) == initializer


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("constant", {}, "value must be given"),
        ("constant", {"value": "1"}, "value must be of type float"),
        ("random_uniform", {"min": 1, "max": 0}, "min=1.0 is above max=0.0"),
        ("random_uniform", {"min": 1, "minval": 0}, "'min' and 'minval' set the same parameter"),
        ("random_uniform", {"min": float("-inf")}, "min=-inf must be finite"),
        ("random_normal", {"stddev": -1}, "stddev=-1"),
        ("truncate_normal", {"mean": float("nan")}, "mean=nan"),
        ("kaiming_normal", {"mode": "fan_avg"}, "mode='fan_avg' must be one of fan_in, fan_out"),
        ("kaiming_normal", {"mode": 3}, "mode must be of type str"),
    ],
)
def test_bad_value_is_refused(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        make_initializer(name, **params)
    assert words in str(raised.value)


def test_unknown_name_and_parameter_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"initializer 'zero' is unknown. Did you mean 'zeros'"):
        make_initializer("zero")
    with pytest.raises(UnknownName, match=r"parameter 'value' is unknown.*Known: none"):
        make_initializer("zeros", value=1)
