"""`variable_scope`: names of variables in nested scopes, and what their variables have in common."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from rockbed.errors import InvalidConfig

if TYPE_CHECKING:
    from rockbed.client.initializer import PyInitializer
    from rockbed.client.partitioners import Partitioner
    from rockbed.client.storage import PyStorage


class Reuse(Enum):
    """More than True and False for `reuse`."""

    AUTO = "auto"


AUTO_REUSE = Reuse.AUTO
"""Take the variable if there is one, make it otherwise."""


@dataclass(frozen=True, slots=True)
class VariableScope:
    """name: in front of the names of variables, with a "/" between. The rest: for variables that say nothing else."""

    name: str = ""
    reuse: bool | Reuse | None = None
    storage: "PyStorage | list[PyStorage] | None" = None
    initializer: "PyInitializer | Mapping[str, Any] | str | None" = None
    partitioner: "Partitioner | None" = None

    def full_name(self, name: str) -> str:
        """A variable's, or a scope's, name with that of the scope."""
        return "/".join(part for part in (self.name, name) if part)


_ROOT = VariableScope()
_current: ContextVar[VariableScope | None] = ContextVar("rockbed_variable_scope", default=None)


def current_scope() -> VariableScope:
    """The innermost scope, of this thread or task."""
    return _current.get() or _ROOT


@contextmanager
def variable_scope(
    name: str,
    *,
    reuse: bool | Reuse | None = None,
    storage: "PyStorage | list[PyStorage] | None" = None,
    initializer: "PyInitializer | Mapping[str, Any] | str | None" = None,
    partitioner: "Partitioner | None" = None,
) -> Iterator[VariableScope]:
    """Variables made within it are called `name/...`, and take storage, initializer and partitioner from here where
    they are given none. Scopes nest; each thread and each asyncio task has its own.

    reuse: None makes variables; an existing one of the same name is an error, or else two parts of a model would share
    rows without having said so. True takes existing ones only. AUTO_REUSE does what fits. As in TensorFlow, scopes
    within one that reuses do so, too.

    >>> with variable_scope("user"), variable_scope("history") as scope:
    ...     scope.full_name("items")
    'user/history/items'

    Raises InvalidConfig.
    """
    if not isinstance(name, str):
        raise InvalidConfig(f"the name of a scope is a str, not {name!r}")
    check_reuse(reuse)
    outer = current_scope()
    scope = VariableScope(
        name=outer.full_name(name),
        reuse=outer.reuse or reuse,
        storage=outer.storage if storage is None else storage,
        initializer=outer.initializer if initializer is None else initializer,
        partitioner=outer.partitioner if partitioner is None else partitioner,
    )
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)


def check_reuse(reuse: object) -> None:
    """Raise InvalidConfig for what `reuse` cannot be."""
    if not (reuse is None or isinstance(reuse, bool | Reuse)):
        raise InvalidConfig(f"reuse is {reuse!r}, not None, True, False or rockbed.AUTO_REUSE")
