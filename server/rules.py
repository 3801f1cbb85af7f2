"""From the names in a group's config to the rules themselves."""

from collections.abc import Callable
from typing import Any

from rockbed.config import GroupConfig
from rockbed.optimizers.base import Optimizer, make_optimizer
from rockbed.optimizers.initializers import Initializer, make_initializer
from rockbed.optimizers.schedules import Schedule, make_schedule


def rules_of(config: GroupConfig) -> tuple[Optimizer, Schedule | None, Initializer]:
    """Build what a config names. Raises UnknownName, InvalidConfig."""

    def build(make: Callable[..., Any], named: dict[str, Any]) -> Any:
        return make(named["name"], **{key: value for key, value in named.items() if key != "name"})

    schedule = None if config.schedule is None else build(make_schedule, config.schedule)
    return build(make_optimizer, config.optimizer), schedule, build(make_initializer, config.initializer)
