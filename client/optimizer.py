"""`PyOptimizer`: an update rule by name, with an optional learning-rate schedule."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rockbed.client.arrays import checked_vector
from rockbed.client.parameters import Parameters, named
from rockbed.errors import InvalidConfig, WrongShape
from rockbed.optimizers import Optimizer, Schedule, make_optimizer, make_schedule
from rockbed.types import F32


class PyOptimizer:
    """What turns gradients into new weights: `rule`, and `schedule` (None = a constant rate).

    >>> PyOptimizer(name="adagrad", gamma=0.05).rule.params()["gamma"]
    0.05
    >>> PyOptimizer().rule.name
    'sgd'
    """

    rule: Optimizer
    schedule: Schedule | None

    def __init__(
        self,
        params: Parameters | Mapping[str, Any] | None = None,
        /,
        schedule: Parameters | Mapping[str, Any] | Schedule | None = None,
        **parameters: Any,
    ) -> None:
        """params: "name" and the rule's parameters; or the same by keyword. Nothing at all is sgd with its defaults.

        schedule: likewise "name" and parameters, or a Schedule.
        Raises UnknownName (with the known names) and InvalidConfig (with every problem).
        """
        name, values = named("optimizer", params, parameters, "sgd")
        self.rule = make_optimizer(name, **values)
        self.schedule = _schedule(schedule)

    def get_space(self, dim: int) -> int:
        """float32 values of a row with `dim` weights: the weights, then the rule's slots."""
        return dim + self.rule.state_width(dim)

    def call(self, w: F32, gradients: F32, step: int = 0) -> None:
        """Update one row in place.

        w: float32[get_space(dim)], contiguous: weights, then slots. A new row's slots are `rule.initial_state(dim)`:
        zeros for most rules. gradients: float32[dim]. step: number of this update, from 1; 0 stands for the first too.
        Raises WrongDtype, WrongShape (also for an array that is not contiguous or not writable), InvalidConfig (step).
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise InvalidConfig(f"step must be an int of at least 0, not {step!r}")
        checked_vector("gradients", gradients)
        checked_vector("w", w, writable=True)
        dim = len(gradients)
        space = self.get_space(dim)
        if dim == 0:
            raise WrongShape("gradients must hold at least one value")
        if len(w) != space:
            raise WrongShape(
                f"w must be float32[{space}] for gradients of float32[{dim}] ({dim} weights and the slots of "
                f"{self.rule.name}), not float32[{len(w)}]"
            )
        if np.may_share_memory(w, gradients):
            raise WrongShape("w and gradients share memory: pass a copy of the gradients")
        count = np.array([max(int(step), 1)], np.int64)
        rate = [self.rule.lr] if self.schedule is None else self.schedule.rate(self.rule.lr, count - 1)
        first = np.zeros(1, np.int64)
        self.rule.apply(w.reshape(1, -1), first, gradients.reshape(1, -1), np.asarray(rate, np.float32), count)

    def __repr__(self) -> str:
        return f"PyOptimizer({self.rule!r}, schedule={self.schedule!r})"


def _schedule(given: Any) -> Schedule | None:
    if given is None or all(hasattr(given, name) for name in ("rate", "name", "params")):
        return given  # type: ignore[no-any-return]
    name, values = named("schedule", given, {}, None)
    return make_schedule(name, **values)
