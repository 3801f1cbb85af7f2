"""`PyInitializer`: what new rows start as, by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rockbed.client.arrays import checked_vector
from rockbed.client.parameters import Parameters, named
from rockbed.config import GROUPS, SEED_MAX, whole_problems
from rockbed.errors import InvalidConfig
from rockbed.optimizers import Initializer, make_initializer
from rockbed.types import F32

KEY_MASK = 0xFFFFFFFFFFFFFFFF


class PyInitializer:
    """The initial weights of a row: `rule`, a pure function of (seed, group, key).

    >>> PyInitializer(name="random_uniform", min=-0.01, max=0.01).rule.params()
    {'min': -0.01, 'max': 0.01}
    >>> PyInitializer().rule.name
    'zeros'
    """

    rule: Initializer

    def __init__(self, params: Parameters | Mapping[str, Any] | None = None, /, **parameters: Any) -> None:
        """params: "name" and the parameters; or the same by keyword. Nothing at all is zeros.

        Raises UnknownName (with the known names) and InvalidConfig (with every problem).
        """
        name, values = named("initializer", params, parameters, "zeros")
        self.rule = make_initializer(name, **values)

    def call(self, w: F32, *, seed: int = 0, group: int = 0, key: int = 0) -> None:
        """Fill the contiguous float32[dim] in place with the row that (seed, group, key) starts as.

        key: an int64 or uint64 value. group: 0..65535. Raises WrongDtype, WrongShape, InvalidConfig.
        """
        checked_vector("w", w, writable=True)
        problems = [
            *whole_problems("seed", seed, 0, SEED_MAX),
            *whole_problems("group", group, 0, GROUPS - 1),
            *whole_problems("key", key, -(2**63), 2**64 - 1),
        ]
        if problems:
            raise InvalidConfig("; ".join(problems))
        keys = np.array([int(key) & KEY_MASK], np.uint64).view(np.int64)
        if len(w):
            self.rule.fill(w.reshape(1, -1), np.zeros(1, np.int64), keys, len(w), int(seed), int(group))

    def __repr__(self) -> str:
        return f"PyInitializer({self.rule!r})"
