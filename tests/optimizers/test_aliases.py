"""Other spellings: each builds what the primary one builds, and the ones that people know are there."""

from typing import Any

import pytest

from rockbed import Parameters, PyInitializer, PyOptimizer
from rockbed.optimizers import initializers, make_initializer, make_optimizer, make_schedule, schedules
from rockbed.optimizers.base import registry as optimizers
from rockbed.optimizers.config import Registry, parameters_of

REGISTRIES: dict[str, Registry[Any]] = {
    "optimizer": optimizers,
    "schedule": schedules.registry,
    "initializer": initializers.registry,
}
MAKE: dict[str, Any] = {
    "optimizer": make_optimizer,
    "schedule": make_schedule,
    "initializer": make_initializer,
}

# Names that must build what another name builds: damo's spellings, those of its 1.2, TensorFlow's.
NAMES = [
    ("schedule", "step_decay", "step"),
    ("schedule", "nature_exponential_decay", "natural_exponential_decay"),
    ("schedule", "natural_exp_decay", "natural_exponential_decay"),
    ("schedule", "inverse_time_lr_scheduler", "inverse_time_decay"),
    ("schedule", "liner_cosine_decay", "linear_cosine_decay"),
    ("initializer", "truncated_normal", "truncate_normal"),
    ("initializer", "xavier", "xavier_uniform"),
    ("initializer", "random", "random_normal"),
]

# Spellings that a rule must take, the primary one first: damo's, then those of torch, TensorFlow and Keras.
RATE = "gamma lr learning_rate"
DECAY = "lambda weight_decay wd"
EPSILON = "epsilon eps"
BETAS = ["beta1 beta_1", "beta2 beta_2"]
ACCUMULATOR = "initial_accumulator initial_accumulator_value init_acc"
L1, L2, L21 = (f"lambda{n} l{n} l{n}_regularization_strength" for n in ("1", "2", "21"))
SPELLINGS: dict[str, dict[str, list[str]]] = {
    "optimizer": {
        "sgd": [RATE, DECAY],
        "momentum": [RATE, DECAY, "nesterov use_nesterov"],
        "adagrad": [RATE, DECAY, EPSILON, ACCUMULATOR, "eta lr_decay"],
        "adagrad_decay": [RATE, DECAY, ACCUMULATOR, "decay_steps decay_step"],
        "rowwise_adagrad": [RATE, DECAY, EPSILON, ACCUMULATOR],
        "adadelta": [RATE, DECAY, EPSILON],
        "rmsprop": [RATE, DECAY, EPSILON, "alpha rho"],
        "adam": [RATE, DECAY, EPSILON, *BETAS],
        "amsgrad": [RATE, DECAY, EPSILON, *BETAS],
        "adamw": [RATE, DECAY, EPSILON, *BETAS],
        "adabelief": [RATE, DECAY, EPSILON, *BETAS],
        "rectified_adam": [RATE, DECAY, EPSILON, *BETAS],
        "partial_rowwise_adam": [RATE, DECAY, EPSILON, *BETAS],
        "group_adam": [RATE, EPSILON, *BETAS, L1, L2, L21, ACCUMULATOR],
        "sparse_group_ftrl": [
            *[RATE, L1, L2, L21, ACCUMULATOR],
            "l2_shrinkage l2_shrinkage_regularization_strength",
        ],
        # damo's document says gamma, its code alpha
        "ftrl": ["alpha gamma lr learning_rate", L1, L2, ACCUMULATOR],
        "lion": ["eta gamma lr learning_rate", DECAY, *BETAS],
    },
    "schedule": {
        "step": ["decay_steps step_size", "decay_rate gamma"],
        "polynomial_decay": ["end_learning_rate end_lr"],
        "cosine_decay_restarts": ["first_decay_steps decay_steps"],
    },
    "initializer": {
        "random_uniform": ["min low minval", "max high maxval"],
        "random_normal": ["stddev std"],
        "truncate_normal": ["stddev std"],
    },
}
KNOWN = [
    (kind, name, primary, alias)
    for kind, names in SPELLINGS.items()
    for name, lines in names.items()
    for primary, *aliases in map(str.split, lines)
    for alias in aliases
]
REGISTERED = [
    (kind, name, spec.key, alias)
    for kind, registry in REGISTRIES.items()
    for name, cls in registry._classes.items()
    for spec in parameters_of(cls).values()
    for alias in spec.aliases
]


OTHER_VALUES: dict[str, Any] = {"nesterov": True, "decay_steps": 7, "first_decay_steps": 7, "min": -0.125}
"""A valid value that is not the default; 0.125 for all others."""

NEEDED: dict[str, dict[str, Any]] = {
    "step": {"decay_steps": 10},
    "polynomial_decay": {"decay_steps": 10},
    "cosine_decay_restarts": {"first_decay_steps": 10},
}
"""What has no default, of those above."""


@pytest.mark.parametrize(("kind", "name", "primary", "alias"), sorted({*KNOWN, *REGISTERED}))
def test_a_parameter_by_an_alias_is_the_parameter_by_its_key(kind: str, name: str, primary: str, alias: str) -> None:
    value = OTHER_VALUES.get(primary, 0.125)
    needed = NEEDED.get(name, {})
    rest = {key: given for key, given in needed.items() if key != primary}
    built = MAKE[kind](name, **{alias: value}, **rest)
    assert built == MAKE[kind](name, **{primary: value}, **rest)
    assert built.params()[primary] == value
    assert built != MAKE[kind](name, **needed)


def test_every_alias_that_the_code_has_is_in_the_list_of_this_test() -> None:
    # so that taking one away later fails, whoever put it in
    assert sorted(REGISTERED) == sorted(KNOWN)


@pytest.mark.parametrize(("kind", "name", "primary"), NAMES)
def test_a_name_by_another_spelling_builds_the_same(kind: str, name: str, primary: str) -> None:
    arguments: dict[str, Any] = {}
    if kind == "schedule":
        arguments = {"decay_steps": 10} | ({} if "cosine" in name or "step" in name else {"decay_rate": 0.25})
    built = MAKE[kind](name, **arguments)
    assert built == MAKE[kind](primary, **arguments)
    assert built.name == primary


def test_every_other_name_that_the_code_has_is_in_the_list_of_this_test() -> None:
    presets = [(kind, name, of) for kind, registry in REGISTRIES.items() for name, (of, _) in registry._presets.items()]
    assert sorted(presets) == sorted([*NAMES, ("optimizer", "nesterov", "momentum")])


def test_nesterov_takes_the_spellings_of_momentum_but_not_of_what_it_fixes() -> None:
    assert make_optimizer("nesterov", lr=0.25, wd=0.5) == make_optimizer(
        "momentum", gamma=0.25, nesterov=True, **{"lambda": 0.5}
    )


def test_aliases_work_in_what_users_build() -> None:
    bag = Parameters()
    bag.insert("name", "adam")
    bag.insert("learning_rate", 0.25)
    bag.insert("beta_1", 0.5)
    bag.insert("weight_decay", 0.125)
    built = PyOptimizer(bag, {"name": "natural_exp_decay", "decay_steps": 3, "decay_rate": 0.5})
    assert built.rule == make_optimizer("adam", gamma=0.25, beta1=0.5, **{"lambda": 0.125})
    assert built.schedule == make_schedule("natural_exponential_decay", decay_steps=3, decay_rate=0.5)
    assert PyInitializer(name="truncated_normal", std=0.25).rule == make_initializer("truncate_normal", stddev=0.25)
