"""docs/rules.md, from the registries: `python -m tests.rules_page` writes it anew, a test holds it to them."""

import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import rockbed.optimizers  # noqa: F401  (registers the rules)
from rockbed.optimizers import base, initializers, schedules
from rockbed.optimizers.config import Registry, parameters_of
from rockbed.server import admission
from tests.source_tree import ROOT

PAGE = ROOT / "docs" / "rules.md"
HEAD = """\
# Optimizers, initializers, schedules, admission

Every name, its parameters with their defaults, and what else they may be called; `python -m tests.rules_page` writes
this page. Formulas and their sources are in the docstrings of `optimizers/`, one file a rule. A value of the wrong type
or outside its range is an `InvalidConfig` that names every problem, a name that is not here an `UnknownName` that lists
those that are.

Parameters go to `PyOptimizer`, `PyInitializer` and the second argument of `PyOptimizer` (the schedule) by keyword, as a
dict, or in `Parameters`: `PyOptimizer(name="adam", lr=1e-3)`.
"""
SECTIONS: tuple[tuple[str, str, Registry[Any]], ...] = (
    (
        "Optimizers",
        "The parameter that is also called `lr` is the base rate of the schedule, where there is one. State: float32 "
        "values that a row of dim d has besides its weights.",
        base.registry,
    ),
    (
        "Initializers",
        "The defaults are damo-embedding's, and very large for an embedding: ±1 for random_uniform, a stddev of 1 for "
        "random_normal and truncate_normal. ±0.01 and 0.01 are usual.",
        initializers.registry,
    ),
    (
        "Schedules",
        "t counts updates, from 0: the row's own, or the trainer's `global_step` (the group's `step` option). Every "
        "schedule takes `warmup_steps` and `warmup_start`: for so many updates the rate rises linearly from "
        "lr * warmup_start to lr, and the schedule begins after. A rate that grows without bound ends in infinite "
        "weights; `weight_min` and `weight_max` bound them.",
        schedules.registry,
    ),
    (
        "Admission",
        "The `admission` option of a group: which new keys get a row. Training lookups count the sightings; a crash "
        "forgets those since the last write-back.",
        admission.registry,
    ),
)


def _about(cls: type[Any]) -> str:
    own = cls.__doc__ or ""
    made_by_dataclass = own.startswith(cls.__name__ + "(")
    text = (sys.modules[cls.__module__].__doc__ or "") if made_by_dataclass else own
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def _parameters(cls: type[Any], shared: set[str]) -> Iterator[str]:
    defaults = {each.name: each.default for each in fields(cls)}
    for attribute, spec in parameters_of(cls).items():
        if spec.key in shared:
            continue
        names = f"`{spec.key}`" + (f" ({', '.join(spec.aliases)})" if spec.aliases else "")
        default = defaults[attribute]
        yield names + (", required" if default is MISSING else f" = {default}")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, text, registry in SECTIONS:
        shared = {"warmup_steps", "warmup_start"} if title == "Schedules" else set()
        state = title == "Optimizers"
        parts.append(f"## {title}\n\n{text}\n")
        lines = [
            "| name |" + (" state |" if state else "") + " parameters | what it is |",
            "|---|" + ("---|" if state else "") + "---|---|",
        ]
        for name, cls in sorted(registry._classes.items()):
            others = [alias for alias, (of, _) in sorted(registry._presets.items()) if of == name]
            called = f"`{name}`" + "".join(f", `{alias}`" for alias in others)
            width = f" {_state(cls)} |" if state else ""
            lines.append(f"| {called} |{width} {'; '.join(_parameters(cls, shared)) or 'none'} | {_about(cls)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _state(cls: type[Any]) -> str:
    one, two = cls().state_width(1), cls().state_width(2)
    per_weight, fixed = two - one, 2 * one - two
    terms = [f"{per_weight}d" if per_weight > 1 else "d"] * (per_weight > 0) + [str(fixed)] * (fixed > 0)
    return " + ".join(terms) or "0"


def main(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page())


if __name__ == "__main__":
    main()
