"""Which store a command works on, and how it is opened."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockbed.client.target import url
from rockbed.errors import InvalidConfig, StoreNotFound
from rockbed.server.cli_errors import WrongUsage
from rockbed.server.cli_options import TlsOptions
from rockbed.server.daemon_settings import unknown_variables

if TYPE_CHECKING:
    from rockbed.client.storage import PyStorage

_PANEL = "Store"
_SERVER, _DATA, _TOKEN = "ROCKBED_SERVER", "ROCKBED_DATA", "ROCKBED_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Store(TlsOptions):
    """A store on a server, or in a directory that this process opens itself: one of the two, from the command line or,
    if that names neither, from the environment."""

    server: Annotated[
        str | None,
        typer.Option(
            help=f"HOST:PORT, or grpc://, grpcs://, grpc+unix://. Or {_SERVER} in the environment.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help=f"A store's directory that nobody has open. Or {_DATA} in the environment.", rich_help_panel=_PANEL
        ),
    ] = None
    ttl: Annotated[
        float | None,
        typer.Option(
            help="With --data: seconds a row lives after it was last written, as when the store is trained or served; "
            "0 (the default) = for ever.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"With --server: a file with the token. Or {_TOKEN} in the environment.", rich_help_panel=_PANEL
        ),
    ] = None
    deadline: Annotated[
        float | None,
        typer.Option(help="With --server: seconds that a short call may take, 60 by default.", rich_help_panel=_PANEL),
    ] = None
    retry: Annotated[
        float | None,
        typer.Option(
            help="With --server: seconds to try again while it is away or busy, 0 by default.", rich_help_panel=_PANEL
        ),
    ] = None

    def open(self, *, read_only: bool = False, create: bool = False) -> "PyStorage":
        """The store, to be closed by the caller. read_only: of a directory; a server has its own say.

        create: whether a directory that is new or empty becomes a store. Raises what PyStorage raises, StoreNotFound,
        WrongUsage.
        """
        target = self.target
        # what is not needed is not loaded: a server's client takes neither numba nor RocksDB
        from rockbed.client.connection import Connection
        from rockbed.client.storage import PyStorage

        if isinstance(target, Path):
            self._must_not_have(
                "--data", "token_file", "deadline", "retry", "tls_ca", "tls_cert", "tls_key", "tls_name"
            )
            if not create and _is_new(target):
                raise StoreNotFound(f"{target} holds no store: check the path")
            return PyStorage(target, self.ttl or 0, read_only=read_only)
        self._must_not_have("--server", "ttl")
        connection = Connection(
            deadline_s=60.0 if self.deadline is None else self.deadline,
            retry_s=0.0 if self.retry is None else self.retry,
            client_id="rockbed-cli",
            token=self._token(),
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_name=self.tls_name,
        )
        return PyStorage(target, connection=connection)

    @property
    def target(self) -> str | Path:
        """A server's target for PyStorage, or a directory. Raises WrongUsage."""
        server, data, named = self.server, self.data, ("--server", "--data")
        if server is None and data is None:
            server, directory, named = _variable(_SERVER), _variable(_DATA), (_SERVER, _DATA)
            data = None if directory is None else Path(directory)
        if server is not None and data is not None:
            raise WrongUsage(f"{named[0]} and {named[1]} are both given: a command works on one store")
        if data is not None:
            return data
        if server is None:
            raise WrongUsage(f"which store? Give --server HOST:PORT or --data DIRECTORY, or set {_SERVER} or {_DATA}")
        return url(server)

    def _token(self) -> str | None:
        if self.token_file is None:
            return _variable(_TOKEN)
        try:
            return self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"the token's file {self.token_file} cannot be read: {error}") from None

    def _must_not_have(self, kind: str, *names: str) -> None:
        given = ["--" + name.replace("_", "-") for name in names if getattr(self, name) is not None]
        if given:
            other = "--server" if kind == "--data" else "--data"
            raise WrongUsage(f"{', '.join(given)}: with {other} only, and the store is {self.target}")


def _variable(name: str) -> str | None:
    """What the environment says, None where it says nothing. Raises WrongUsage for a variable that is mistyped."""
    problems = unknown_variables(os.environ)
    if problems:
        raise WrongUsage("; ".join(problems))
    return os.environ.get(name) or None


def _is_new(directory: Path) -> bool:
    try:
        return not any(directory.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False  # opening it says what is wrong
