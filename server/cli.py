"""The command line: `rockbed serve` is in cli_serve.py, what works on a store in cli_commands.py.

What a command needs is imported in it, so that those that only ask a server start at once.
"""

import os
from typing import Annotated

import typer

from rockbed._version import __version__
from rockbed.server import cli_serve
from rockbed.server.cli_commands import add_commands
from rockbed.server.cli_options import TlsOptions, unfolded

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


@app.callback()
def _rockbed() -> None:
    """Rockbed: an embedding parameter server on RocksDB."""


@app.command()
def version() -> None:
    """The version of Rockbed."""
    typer.echo(__version__)


for command in (cli_serve.serve, cli_serve.config, cli_serve.token):
    app.command()(command)


@app.command()
@unfolded
def health(
    tls: TlsOptions,
    server: Annotated[
        str, typer.Option(envvar="ROCKBED_SERVER", help="HOST:PORT, grpcs://HOST:PORT or unix:/path/of/a/socket.")
    ] = "127.0.0.1:7400",
    service: Annotated[str, typer.Option(help="One service, such as rockbed.v1.Embedding; all if not given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Exit with 0 if a server is SERVING, and with 1 and the reason if not: for containers and scripts.

    Example: rockbed health --server 127.0.0.1:7400
    """
    from rockbed.client.health_transport import check

    check(server, service, timeout_s=timeout, tls=tls.tls())
    typer.echo("SERVING")


add_commands(app)


def main() -> None:
    """What the command `rockbed` runs."""
    # gRPC's own lines on stderr would stand among ours; what they say of a failed call is in its error, too
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()
