"""The rules that torch has too, against torch.optim's own results (golden.json, made by make_golden.py)."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed.optimizers import make_optimizer

FOLDER = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['rule']}-{len(case['params'])}")
def test_rule_gives_what_torch_gives(case: dict[str, Any]) -> None:
    rule = make_optimizer(case["rule"], **case["params"])
    weights = np.array(GOLDEN["weights"], np.float32)
    n, dim = weights.shape
    data = np.hstack([weights, np.tile(rule.initial_state(dim), (n, 1))])
    for t, (gradient, after) in enumerate(zip(GOLDEN["gradients"], case["after"], strict=True), start=1):
        lr = np.full(n, rule.lr, np.float32)
        rule.apply(data, np.arange(n), np.array(gradient, np.float32), lr, np.full(n, t))
        np.testing.assert_allclose(data[:, :dim], after, rtol=2e-5, atol=2e-6)


@pytest.mark.torch
def test_golden_file_is_what_the_installed_torch_gives() -> None:
    made = runpy.run_path(str(FOLDER / "make_golden.py"))["golden"]()
    assert (made["weights"], made["gradients"]) == (GOLDEN["weights"], GOLDEN["gradients"])
    for new, old in zip(made["cases"], GOLDEN["cases"], strict=True):
        assert (new["rule"], new["params"], new["torch"]) == (old["rule"], old["params"], old["torch"])
        np.testing.assert_allclose(new["after"], old["after"], rtol=1e-8, atol=1e-12)
