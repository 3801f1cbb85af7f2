"""Every update rule's formula once more, in numpy float64 and for one row at a time, for the tests to compare with."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rockbed.types import F64

Params = dict[str, Any]
Spec = Callable[[Params, F64, list[F64], F64, float, int], tuple[F64, list[F64]]]
"""(parameters, weights, slots, gradient, rate, step from 1) -> (new weights, new slots)."""


def sgd(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    return w - lr * (g + p["lambda"] * w), []


def momentum(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    b = p["momentum"] * slots[0] + g
    return w - lr * (g + p["momentum"] * b if p["nesterov"] else b), [b]


def adagrad(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    m = slots[0] + g**2
    return w - lr / (1 + (t - 1) * p["eta"]) * g / (np.sqrt(m) + p["epsilon"]), [m]


def rowwise_adagrad(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    a = slots[0] + np.mean(g**2)
    return w - lr * g / (np.sqrt(a) + p["epsilon"]), [a]


def adagrad_decay(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    a, had = slots
    while had[0] < (t - 1) // p["decay_steps"]:
        a = np.maximum(a * p["decay_rate"], p["initial_accumulator"])
        had = had + 1
    g = g + p["lambda"] * w
    a = a + g**2
    return w - lr * g / np.sqrt(a), [a, had]


def adadelta(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    s = p["rho"] * slots[0] + (1 - p["rho"]) * g**2
    delta = np.sqrt(slots[1] + p["epsilon"]) / np.sqrt(s + p["epsilon"]) * g
    return w - lr * delta, [s, p["rho"] * slots[1] + (1 - p["rho"]) * delta**2]


def rmsprop(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    v = p["alpha"] * slots[0] + (1 - p["alpha"]) * g**2
    u = g / (np.sqrt(v) + p["epsilon"])
    if p["momentum"] == 0:
        return w - lr * u, [v]
    b = p["momentum"] * slots[1] + u
    return w - lr * b, [v, b]


def moments(p: Params, slots: list[F64], g: F64) -> tuple[F64, F64]:
    return p["beta1"] * slots[0] + (1 - p["beta1"]) * g, p["beta2"] * slots[1] + (1 - p["beta2"]) * g**2


def adam_move(p: Params, m: F64, v: F64, t: int) -> F64:
    move: F64 = m / (1 - p["beta1"] ** t) / (np.sqrt(v / (1 - p["beta2"] ** t)) + p["epsilon"])
    return move


def adam(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m, v = moments(p, slots, g + p["lambda"] * w)
    return w - lr * adam_move(p, m, v, t), [m, v]


def amsgrad(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m, v = moments(p, slots, g + p["lambda"] * w)
    top = np.maximum(slots[2], v)
    return w - lr * adam_move(p, m, top, t), [m, v, top]


def adamw(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m, v = moments(p, slots, g)
    return w - lr * p["lambda"] * w - lr * adam_move(p, m, v, t), [m, v]


def partial_rowwise_adam(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    g = g + p["lambda"] * w
    m, _ = moments(p, slots, g)
    v = p["beta2"] * slots[1] + (1 - p["beta2"]) * np.mean(g**2)
    return w - lr * adam_move(p, m, v, t), [m, v]


def rectified_adam(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m, v = moments(p, slots, g)
    limit = 2 / (1 - p["beta2"]) - 1
    rho = limit - 2 * t * p["beta2"] ** t / (1 - p["beta2"] ** t)
    if rho >= p["sma_threshold"]:
        r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        u = r * adam_move(p, m, v, t)
    else:
        u = m / (1 - p["beta1"] ** t)
    return w - lr * (u + p["lambda"] * w), [m, v]


def adabelief(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m = p["beta1"] * slots[0] + (1 - p["beta1"]) * g
    s = p["beta2"] * slots[1] + (1 - p["beta2"]) * (g - m) ** 2 + p["epsilon"]
    return w - lr * (adam_move(p, m, s, t) + p["lambda"] * w), [m, s]


def lion(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    u = np.sign(p["beta1"] * slots[0] + (1 - p["beta1"]) * g)
    return w - lr * (u + p["lambda"] * w), [p["beta2"] * slots[0] + (1 - p["beta2"]) * g]


def ftrl(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    z, n = slots
    s = (np.sqrt(n + g**2) - np.sqrt(n)) / lr
    z = z + g - s * w
    n = n + g**2
    small = np.abs(z) <= p["lambda1"]
    scale = np.where(small, 1.0, (p["beta"] + np.sqrt(n)) / lr + p["lambda2"])
    return np.where(small, 0.0, -(z - np.sign(z) * p["lambda1"]) / scale), [z, n]


def shrunk_row(u: F64, l21: float, scale: F64) -> F64:
    norm, bound = np.linalg.norm(u), l21 * math.sqrt(len(u))
    return u * (1 - bound / norm) / scale if norm > bound else np.zeros_like(u)


def group_adam(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    m, v = moments(p, slots, g)
    _, v0, x = slots
    rate = lr * math.sqrt(1 - p["beta2"] ** t) / (1 - p["beta1"] ** t)
    first = x == 0
    x = x + rate * m - (np.sqrt(v) + np.where(first, p["epsilon"], -np.sqrt(v0))) * w
    u = np.clip(x, -lr * p["lambda1"], lr * p["lambda1"]) - x
    return shrunk_row(u, lr * p["lambda21"], np.sqrt(v) + p["epsilon"] + 2 * lr * p["lambda2"]), [m, v, x]


def sparse_group_ftrl(p: Params, w: F64, slots: list[F64], g: F64, lr: float, t: int) -> tuple[F64, list[F64]]:
    a0, x = slots
    a = a0 + g**2
    x = x + g + 2 * p["l2_shrinkage"] * w - (np.sqrt(a) - np.sqrt(a0)) / lr * w
    u = np.clip(x, -p["lambda1"], p["lambda1"]) - x
    return shrunk_row(u, p["lambda21"], np.sqrt(a) / lr + 2 * p["lambda2"]), [a, x]


FORMULAS: dict[str, Spec] = {
    "adabelief": adabelief,
    "adadelta": adadelta,
    "adagrad": adagrad,
    "adagrad_decay": adagrad_decay,
    "adam": adam,
    "adamw": adamw,
    "amsgrad": amsgrad,
    "ftrl": ftrl,
    "group_adam": group_adam,
    "lion": lion,
    "momentum": momentum,
    "partial_rowwise_adam": partial_rowwise_adam,
    "rectified_adam": rectified_adam,
    "rmsprop": rmsprop,
    "rowwise_adagrad": rowwise_adagrad,
    "sgd": sgd,
    "sparse_group_ftrl": sparse_group_ftrl,
}


def first_slots(name: str, p: Params, dim: int) -> list[F64]:
    """The slots of a row before its first update: zeros, and `initial_accumulator` where the formula accumulates."""
    zeros = np.zeros(dim)
    if name in ("adagrad", "rowwise_adagrad"):
        return [np.full(dim if name == "adagrad" else 1, p["initial_accumulator"])]
    if name == "adagrad_decay":
        return [zeros + p["initial_accumulator"], np.zeros(1)]
    if name == "sparse_group_ftrl":
        return [zeros + p["initial_accumulator"], zeros]
    if name == "ftrl":
        return [zeros, zeros + p["initial_accumulator"]]
    if name == "group_adam":
        return [zeros, zeros + p["initial_accumulator"], zeros]
    if name == "partial_rowwise_adam":
        return [zeros, np.zeros(1)]
    if name == "rmsprop":
        return [zeros] * (1 if p["momentum"] == 0 else 2)
    return [zeros] * {"sgd": 0, "momentum": 1, "lion": 1, "amsgrad": 3}.get(name, 2)
