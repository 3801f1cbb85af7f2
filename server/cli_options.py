"""Options that many commands have: written once, as the fields of a dataclass, and unfolded into each command's own."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rockbed.client.tls import Tls
from rockbed.errors import UnknownGroup
from rockbed.server.cli_errors import errors_said

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

_TLS_PANEL = "Encryption"

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for programs.")]
Group = Annotated[str, typer.Option(help="The group's number, or its name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Mode(str, Enum):
    """What becomes of rows that exist when others are stored."""

    REPLACE = "replace"
    KEEP = "keep"


StoreMode = Annotated[Mode, typer.Option(help="What becomes of rows that exist.")]


def number_of(storage: "PyStorage", group: str) -> int:
    """The number of a group that the command line names. Raises UnknownGroup where no group has the name."""
    if group.isdecimal():
        return int(group)
    names = storage.names()
    if group not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise UnknownGroup(f"no group is called {group!r} (known names: {known}): give one of them, or a number")
    return names[group]


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """The files of an encrypted connection, for a server at grpcs://."""

    tls_ca: Annotated[
        Path | None,
        typer.Option(help="PEM: who may vouch for the server; the system's if not given.", rich_help_panel=_TLS_PANEL),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM: the client's own certificate.", rich_help_panel=_TLS_PANEL)
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM: the key to it.", rich_help_panel=_TLS_PANEL)] = None
    tls_name: Annotated[
        str | None, typer.Option(help="The name in the server's certificate.", rich_help_panel=_TLS_PANEL)
    ] = None

    def tls(self) -> Tls:
        """As a client takes them. Raises InvalidConfig."""
        return Tls(tls_ca=self.tls_ca, tls_cert=self.tls_cert, tls_key=self.tls_key, tls_name=self.tls_name)


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: a parameter that is a dataclass becomes an option for each of its fields, after the
    command's own; errors are said in one line."""
    own = inspect.signature(command).parameters.values()
    folded: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.name not in folded]
    for options in folded.values():
        hints = get_type_hints(options, include_extras=True)
        # its own before those that it inherits: the nearer to the subject the higher in the help
        ordered = sorted(fields(options), key=lambda field: field.name not in options.__annotations__)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in ordered
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        with errors_said():
            for name, options in folded.items():
                given[name] = options(**{f.name: given.pop(f.name) for f in fields(options)})
            command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
