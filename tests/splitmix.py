"""splitmix64 in plain integers, for the specifications in the tests: nothing of it comes from the code under test."""

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
"""The step of splitmix64's counter."""


def mix64(x: int) -> int:
    """The finalizer (Steele, Lea, Flood 2014; Stafford's variant 13) of x modulo 2^64."""
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)
