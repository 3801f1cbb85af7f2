"""How a command ends when something is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rockbed.errors import RockbedError

FAILED, WRONG_USAGE, PROBLEMS_FOUND, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: an error of Rockbed's; wrong usage; `check` found problems; Ctrl-C."""


class WrongUsage(Exception):
    """The options given make no sense together; nothing was done."""


@contextmanager
def errors_said() -> Iterator[None]:
    """What the user can mend, a library that is not installed included, ends the command with one line on stderr."""
    try:
        yield
    except (RockbedError, ModuleNotFoundError, WrongUsage) as error:
        typer.echo(f"rockbed: {error}", err=True)
        raise typer.Exit(WRONG_USAGE if isinstance(error, WrongUsage) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
