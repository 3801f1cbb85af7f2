"""How commands end when something is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rockbed.errors import RockbedError


@contextmanager
def errors_said() -> Iterator[None]:
    """What the user can mend, a library that is not installed included, ends the command with one line and 1."""
    try:
        yield
    except (RockbedError, ModuleNotFoundError) as error:
        typer.echo(f"rockbed: {error}", err=True)
        raise typer.Exit(1) from None
