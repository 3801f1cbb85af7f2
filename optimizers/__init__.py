"""Update rules, learning-rate schedules and initial values of rows, each by name. Importing this imports numba."""

from rockbed.optimizers import (  # noqa: F401  (each rule registers itself)
    adabelief,
    adadelta,
    adagrad,
    adagrad_decay,
    adam,
    adamw,
    amsgrad,
    ftrl,
    group_adam,
    lion,
    momentum,
    partial_rowwise_adam,
    rectified_adam,
    rmsprop,
    rowwise_adagrad,
    sgd,
    sparse_group_ftrl,
)
from rockbed.optimizers.base import Optimizer, make_optimizer, optimizer_names
from rockbed.optimizers.initializers import Initializer, initializer_names, make_initializer
from rockbed.optimizers.schedules import Schedule, make_schedule, schedule_names

__all__ = [
    "Initializer",
    "Optimizer",
    "Schedule",
    "initializer_names",
    "make_initializer",
    "make_optimizer",
    "make_schedule",
    "optimizer_names",
    "schedule_names",
]
