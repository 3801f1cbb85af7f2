"""The variables that are open in this process, by name and by collection."""

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

VARIABLES = "variables"
"""The collection of all variables, as TensorFlow's GraphKeys.GLOBAL_VARIABLES."""
TRAINABLE_VARIABLES = "trainable_variables"
"""The collection of those that are trained, as GraphKeys.TRAINABLE_VARIABLES."""


class Variable(Protocol):
    """What a registered variable has."""

    name: str
    collections: tuple[str, ...]

    @property
    def storages(self) -> "Sequence[PyStorage]":
        """Where its rows are."""


_lock = threading.Lock()
_made: "list[weakref.ref[Any]]" = []  # in the order of their making; their storages keep them alive


def register(variable: Variable) -> None:
    """Have a variable found by its name in its storages, and in its collections, until they are closed."""
    with _lock:
        for storage in variable.storages:
            storage.variables[variable.name] = variable
        _made[:] = [each for each in _made if each() is not None]
        _made.append(weakref.ref(variable))


def unregister(variable: Variable) -> None:
    """Undo `register`."""
    with _lock:
        for storage in variable.storages:
            if storage.variables.get(variable.name) is variable:  # not one that was made after this one was dropped
                del storage.variables[variable.name]


def get_collection(name: str) -> list[Any]:
    """The variables of a collection whose storages are open, in the order in which they were made.

    name: one that a variable was given in `collections`; those that were given none are in "variables", and those that
    are trained in "trainable_variables" as well.
    """
    return [each for each in open_variables() if name in each.collections]


def open_variables() -> list[Any]:
    """All variables whose storages are open, in the order in which they were made, whatever their collections."""
    with _lock:
        made = [each() for each in _made]
    return [each for each in made if each is not None and is_open(each)]


def is_open(variable: Variable) -> bool:
    """Whether none of the variable's storages was closed."""
    return all(storage.variables.get(variable.name) is variable for storage in variable.storages)


def collections_of(given: Sequence[str] | None, *, trainable: bool) -> tuple[str, ...]:
    """The collections of a variable as TensorFlow counts them: those given, or "variables"; and, where it is trained,
    "trainable_variables"."""
    named = tuple(given) if given is not None else (VARIABLES,)
    return (*named, TRAINABLE_VARIABLES) if trainable and TRAINABLE_VARIABLES not in named else named
