"""Whether a group can be opened with a config: what is fixed when it is created, and what differs."""

from dataclasses import fields
from typing import Any

import numpy as np

from rockbed.config import GroupConfig
from rockbed.errors import DimMismatch, GroupConflict
from rockbed.server.rules import rules_of
from rockbed.types import F32


def must_fit(stored: GroupConfig, asked: GroupConfig) -> None:
    """Raise DimMismatch or GroupConflict, with every problem, where `asked` cannot use the rows that `stored` made."""
    problems = []
    if stored.dim != asked.dim:
        problems.append(f"stores rows of dim {stored.dim} (dimension={stored.dim}), not {asked.dim}")
    old, new = rules_of(stored)[0], rules_of(asked)[0]
    if (old.name, old.slots(stored.dim)) != (new.name, new.slots(stored.dim)):
        problems.append(
            f"its rows hold the slots of optimizer {old.name!r} {old.slots(stored.dim)}, not of {new.name!r} "
            f"{new.slots(stored.dim)}"
        )
    if stored.initializer != asked.initializer:
        hint = _rounding(stored.initializer, asked.initializer)
        problems.append(f"its rows begin by initializer {stored.initializer}, not {asked.initializer}{hint}")
    if stored.seed != asked.seed:
        problems.append(f"its seed is {stored.seed}, not {asked.seed}")
    if stored.name != asked.name:
        problems.append(f"its name is {stored.name!r}, not {asked.name!r}")
    was, now = _lasting(stored), _lasting(asked)
    if was != now:
        problems.append(f"its variable is {was}, not {now}")
    if problems:
        error = GroupConflict if stored.dim == asked.dim else DimMismatch
        raise error(
            f"{called(stored)} {'; '.join(problems)}. These are fixed when a group is created: open it with what "
            "is stored, or use another group"
        )


def _lasting(config: GroupConfig) -> dict[str, Any]:
    """What may not change of a group's variable: all but over how many parts clients spread its rows, and from what
    count on an id is frequent."""
    return {name: value for name, value in (config.variable or {}).items() if name not in ("parts", "threshold")}


def same_variable(stored: GroupConfig, sent: GroupConfig) -> bool:
    """Whether rows of `sent` mean the same in `stored`, on whatever storages they lay: False where both say what their
    variable is, and differ. A group that says nothing takes any."""
    if stored.variable is None or sent.variable is None:
        return True
    was, now = (
        {name: value for name, value in _lasting(config).items() if name not in ("storage", "storages")}
        for config in (stored, sent)
    )
    return was == now


def called(config: GroupConfig) -> str:
    """A group for messages: its number, and its name if it has one."""
    return f"group {config.group}" if config.name is None else f"group {config.group} ({config.name!r})"


def must_take(stored: GroupConfig, keys: int, out: F32) -> None:
    """Raise DimMismatch where `out` is not float32[keys, dim]."""
    if out.shape != (keys, stored.dim):
        raise DimMismatch(
            f"group {stored.group} stores rows of dim {stored.dim}, the array to be filled has shape {list(out.shape)} "
            f"for {keys} keys: the group was dropped and made anew since it was opened here; open it again"
        )


def differences(stored: GroupConfig, asked: GroupConfig) -> str:
    """The settings that differ, old and new; of a rule, the parameters that do."""
    found = []
    for name in (each.name for each in fields(GroupConfig)):
        old, new = getattr(stored, name), getattr(asked, name)
        if isinstance(old, dict) and isinstance(new, dict) and old.get("name") == new.get("name"):
            pairs = [(f"{name} {key}", old.get(key), new.get(key)) for key in {**old, **new}]
        else:
            pairs = [(name.removesuffix("_s"), old, new)]
        found += [f"{what} {was!r} / {now!r}{_rounding(was, now)}" for what, was, now in pairs if was != now]
    return ", ".join(found)


def _rounding(old: Any, new: Any) -> str:
    """For a message about two settings that differ, where they look alike: one was a float32."""
    if _as_float32(old) != _as_float32(new):
        return ""
    return " (alike as float32: a value was given as np.float32 once, and as a float once)"


def _as_float32(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_float32(each) for name, each in value.items()}
    return np.float32(value) if isinstance(value, float) else value
