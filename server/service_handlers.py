"""Handlers around other handlers, made once for each method and not for every call of it."""

from collections.abc import Callable
from typing import Any


class Around:
    """Thread-safe: at worst, one is made twice."""

    def __init__(self, make: Callable[[Any, str], Any]) -> None:
        """make: gives the handler that is to be called in place of one, of a method by name."""
        self._make = make
        self._made: dict[str, tuple[Any, Any]] = {}

    def __call__(self, handler: Any, method: str) -> Any:
        """What `make` gave for it. An interceptor behind may give another handler at each call: those are not kept."""
        of, made = self._made.get(method, (None, None))
        if of is not handler:
            made = self._make(handler, method)
            self._made[method] = handler, made
        return made
