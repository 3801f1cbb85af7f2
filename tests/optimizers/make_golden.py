"""Writes golden.json, torch.optim's results on fixed inputs: `python tests/optimizers/make_golden.py` where torch is.

Weights and gradients are multiples of 1/64, which float32 holds exactly; torch works in float64, so the file holds what
the formulas give and not the rounding of one implementation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("golden.json")
STEPS = 8

# (our name, our parameters, torch's class, torch's parameters)
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("sgd", {}, "SGD", {}),
    ("sgd", {"gamma": 0.1, "lambda": 0.1}, "SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("momentum", {}, "SGD", {"momentum": 0.9}),
    (
        "momentum",
        {"gamma": 0.1, "momentum": 0.5, "lambda": 0.1},
        "SGD",
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1},
    ),
    ("nesterov", {}, "SGD", {"momentum": 0.9, "nesterov": True}),
    (
        "nesterov",
        {"gamma": 0.1, "momentum": 0.5, "lambda": 0.1},
        "SGD",
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True},
    ),
    ("adagrad", {}, "Adagrad", {}),
    (
        "adagrad",
        {"gamma": 0.1, "eta": 0.2, "lambda": 0.1, "initial_accumulator": 0.5, "epsilon": 1e-3},
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3},
    ),
    ("adadelta", {}, "Adadelta", {}),
    (
        "adadelta",
        {"gamma": 0.5, "rho": 0.7, "epsilon": 1e-3, "lambda": 0.1},
        "Adadelta",
        {"lr": 0.5, "rho": 0.7, "eps": 1e-3, "weight_decay": 0.1},
    ),
    ("rmsprop", {}, "RMSprop", {}),
    (
        "rmsprop",
        {"gamma": 0.1, "alpha": 0.7, "momentum": 0.9, "epsilon": 1e-3, "lambda": 0.1},
        "RMSprop",
        {"lr": 0.1, "alpha": 0.7, "momentum": 0.9, "eps": 1e-3, "weight_decay": 0.1},
    ),
    ("adam", {}, "Adam", {}),
    (
        "adam",
        {"gamma": 0.1, "beta1": 0.7, "beta2": 0.9, "epsilon": 1e-3, "lambda": 0.1},
        "Adam",
        {"lr": 0.1, "betas": [0.7, 0.9], "eps": 1e-3, "weight_decay": 0.1},
    ),
    ("amsgrad", {}, "Adam", {"amsgrad": True}),
    (
        "amsgrad",
        {"gamma": 0.1, "beta1": 0.7, "beta2": 0.5, "epsilon": 1e-3, "lambda": 0.1},
        "Adam",
        {"lr": 0.1, "betas": [0.7, 0.5], "eps": 1e-3, "weight_decay": 0.1, "amsgrad": True},
    ),
    ("adamw", {}, "AdamW", {}),
    (
        "adamw",
        {"gamma": 0.1, "beta1": 0.7, "beta2": 0.9, "epsilon": 1e-3, "lambda": 0.3},
        "AdamW",
        {"lr": 0.1, "betas": [0.7, 0.9], "eps": 1e-3, "weight_decay": 0.3},
    ),
    # With no epsilon to speak of, because torch puts it beside the uncorrected root.
    (
        "rectified_adam",
        {"gamma": 0.1, "beta2": 0.99, "epsilon": 1e-12, "lambda": 0.1},
        "RAdam",
        {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-12, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
]


def golden() -> dict[str, Any]:
    """The content of golden.json, computed with the torch that is installed."""
    import torch

    rng = np.random.default_rng(20240601)
    weights = rng.integers(-64, 65, (3, 5)) / 64
    gradients = rng.integers(-128, 129, (STEPS, 3, 5)) / 64
    cases = []
    for name, params, cls, settings in CASES:
        w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        optimizer = getattr(torch.optim, cls)([w], **settings)
        after = []
        for gradient in gradients:
            w.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
            after.append([[float(f"{x:.10g}") for x in row] for row in w.detach().tolist()])
        cases.append({"rule": name, "params": params, "torch": f"{cls}({settings})", "after": after})
    return {
        "torch": torch.__version__.split("+")[0],
        "weights": weights.tolist(),
        "gradients": gradients.tolist(),
        "cases": cases,
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(golden()).replace('{"rule"', '\n{"rule"') + "\n")
