"""Libraries that come with an extra of the package, such as rockbed[server]."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports that need `rockbed[name]`. Raises ModuleNotFoundError, which says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed: pip install 'rockbed[{name}]'"
        raise ModuleNotFoundError(said, name=error.name) from None
