"""What the writing process does at each step: a pure function of (seed, step). And the groups that it does it to."""

from dataclasses import dataclass, field

import numpy as np

from rockbed.types import F32, I64

EXACT, ADAPTIVE, SHRUNK, EXPIRING, ADMITTED, GLOBAL = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Shape:
    """A group. first: the bounds of its initial weights; equal ones for a constant. looked: lookups train it."""

    dim: int
    keys: int
    optimizer: str = "sgd"  # with a rate of 1 and whole gradients: exact in float32, and addition of integers
    first: tuple[float, float] = (0.0, 0.0)
    looked: bool = True


GROUPS = {
    EXACT: Shape(4, 300, looked=False),  # its rows begin with a push
    ADAPTIVE: Shape(16, 2_000, "adagrad", (-0.5, 0.5)),
    SHRUNK: Shape(2, 400, first=(0.5, 0.5)),
    EXPIRING: Shape(3, 500, first=(0.25, 0.25)),
    ADMITTED: Shape(2, 6_000, first=(0.5, 0.5)),
    GLOBAL: Shape(4, 600, "adam", (-1.0, 1.0)),
}
MISS = -1000.5  # what a key without a row reads as: nothing else ever does
ADAGRAD = {"gamma": 0.1, "epsilon": 1e-10}
ADAM = {"gamma": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
TTL_S = 20
MIN_COUNT = 3  # sightings that admit a key
SHRINK_MIN_COUNT = 3  # updates that keep a row from being shrunk
FLUSH_EVERY, SHRINK_EVERY, CHECKPOINT_EVERY = 29, 41, 97  # steps
BAG = 5  # keys of a bag
_WINDOW, _STRIDE = 300, 5  # of the keys that ask for admission: few at a time, and ever new ones


def keys_of(group: int) -> I64:
    """Every key that a group may have."""
    keys = GROUPS[group].keys
    return np.arange(-keys // 2, keys // 2)


def global_step(step: int) -> int:
    """The global step that the trainer sets at its own step."""
    return 2 * step + 5


@dataclass
class Batch:
    """A step. seconds: what the clock moves first; looked: (group, keys) of training lookups; pushed: one push.

    fused: both are of a fused batch, in whose bags of BAG keys (the last of a group has fewer) gradients are the same.
    """

    seconds: int
    fused: bool = False
    looked: list[tuple[int, I64]] = field(default_factory=list)
    pushed: list[tuple[int, I64, F32]] = field(default_factory=list)

    def has(self, group: int) -> bool:
        """Whether the push updates the group."""
        return any(group == number for number, _, _ in self.pushed)


def batch(seed: int, step: int) -> Batch:
    """What happens at a step. Keys repeat; some are looked up and not pushed; some pushed that were not looked up."""
    rng = np.random.default_rng((seed, step))
    made = Batch(int(rng.choice([0, 0, 1, 3])), fused=step % 2 == 0)
    for group, shape in GROUPS.items():
        if made.pushed and rng.random() < 0.3:
            continue
        low, high = -shape.keys // 2, shape.keys // 2
        if group == ADMITTED:
            low += _STRIDE * step % (shape.keys - _WINDOW)
            high = low + _WINDOW
        keys = rng.integers(low, high, rng.integers(1, 60))
        if shape.looked:
            others = rng.integers(low, high, 8)
            seen = rng.integers(low, high, 20) if group == ADMITTED else np.concatenate([keys, others])
            made.looked.append((group, seen))
        grads = rng.integers(-3, 4, (keys.size, shape.dim)).astype(np.float32)
        made.pushed.append((group, keys, grads[np.arange(keys.size) // BAG] if made.fused else grads))
    return made
