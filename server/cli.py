"""The command line: `rockbed serve`, `rockbed health`.

What a command needs is imported in it, so that those that only ask a server start at once.
"""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed._version import __version__
from rockbed.errors import InvalidConfig, RockbedError

if TYPE_CHECKING:
    from rockbed.config import StoreConfig
    from rockbed.server.daemon_config import ServerConfig
    from rockbed.server.service_observing import Observer

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


@app.callback()
def _rockbed() -> None:
    """Rockbed: an embedding parameter server on RocksDB."""


@app.command()
def version() -> None:
    """The version of Rockbed."""
    typer.echo(__version__)


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="The store's directory; a new one is made.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT or unix:/path/of/a/socket.")] = "127.0.0.1:7400",
    insecure: Annotated[bool, typer.Option(help="Listen on other addresses than the loopback's, unencrypted.")] = False,
    ttl: Annotated[float, typer.Option(help="Seconds a row lives after it was last written; 0 = for ever.")] = 0,
    memory_budget: Annotated[int, typer.Option(help="Bytes of rows kept in memory.")] = 1 << 30,
    fsync: Annotated[str, typer.Option(help="never, interval or always.")] = "interval",
    fsync_interval: Annotated[float, typer.Option(help="Seconds between syncs with fsync=interval.")] = 1.0,
    write_back_interval: Annotated[float, typer.Option(help="Seconds until a changed row is in RocksDB.")] = 30.0,
    journal_bytes_max: Annotated[int, typer.Option(help="Limit of the journal in bytes.")] = 1 << 30,
    read_only: Annotated[bool, typer.Option(help="Serve lookups only.")] = False,
    workers: Annotated[int | None, typer.Option(help="Threads that serve; twice the cores and 2 if not given.")] = None,
    queue_max: Annotated[int, typer.Option(help="Requests that may wait for a thread; more are refused.")] = 256,
    message_bytes_max: Annotated[int, typer.Option(help="Bytes of a request or an answer.")] = 64 << 20,
    keys_max: Annotated[int, typer.Option(help="Keys of a request.")] = 1 << 20,
    checkpoints: Annotated[Path | None, typer.Option(help="Directory for checkpoints asked for by clients.")] = None,
    exports: Annotated[
        Path | None, typer.Option(help="Directory of the dumps, exports and imports asked for by clients.")
    ] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus, on any address.")] = None,
    traces: Annotated[bool, typer.Option(help="Send OpenTelemetry traces; OTEL_* variables say where to.")] = False,
) -> None:
    """Serve a store over gRPC until SIGTERM or Ctrl-C; then finish what is under way, write back, and end.

    Example: rockbed serve --data ./model --checkpoints ./checkpoints
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _errors_said():
        from rockbed.config import StoreConfig
        from rockbed.server.daemon_config import ServerConfig
        from rockbed.server.limits import Limits

        store = StoreConfig(
            ttl_s=ttl,
            memory_budget=memory_budget,
            fsync=fsync,
            fsync_interval_s=fsync_interval,
            write_back_interval_s=write_back_interval,
            journal_bytes_max=journal_bytes_max,
            read_only=read_only,
        )
        limits = Limits(message_bytes_max=message_bytes_max, keys_max=keys_max)
        chosen: dict[str, Any] = {} if workers is None else {"workers": workers}
        server = ServerConfig(
            listen=listen,
            insecure=insecure,
            queue_max=queue_max,
            limits=limits,
            checkpoints=checkpoints,
            exports=exports,
            metrics_listen=metrics_listen,
            **chosen,
        )
        with _tracing(traces) as observers:
            _serve(data, store, server, observers)


@app.command()
def health(
    server: Annotated[str, typer.Option(help="HOST:PORT or unix:/path/of/a/socket.")] = "127.0.0.1:7400",
    service: Annotated[str, typer.Option(help="One service, such as rockbed.v1.Embedding; all if not given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Exit with 0 if a server is SERVING, and with 1 and the reason if not: for containers and scripts.

    Example: rockbed health --server 127.0.0.1:7400
    """
    with _errors_said():
        from rockbed.client.health_transport import check

        check(server, service, timeout_s=timeout)
    typer.echo("SERVING")


@contextmanager
def _errors_said() -> Iterator[None]:
    """What the user can mend, a library that is not installed included, ends the command with one line and 1."""
    try:
        yield
    except (RockbedError, ModuleNotFoundError) as error:
        typer.echo(f"rockbed: {error}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _tracing(wanted: bool) -> "Iterator[list[Observer]]":
    if not wanted:
        yield []
        return
    try:
        from rockbed.server.service_tracing import Tracing, provider_from_environment
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"--traces needs {error.name}: pip install 'rockbed[tracing]'") from None
    tracing = Tracing(provider_from_environment())
    try:
        yield [tracing]
    finally:
        tracing.close()


def _serve(data: Path, store: "StoreConfig", server: "ServerConfig", observers: "list[Observer]") -> None:
    from rockbed.server.daemon import Daemon
    from rockbed.server.engine import Engine

    engine = Engine(data, store)
    try:
        daemon = Daemon(engine, server, observers=observers)
        asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        rows = sum(group.counters.rows for group in engine.groups.values())
        typer.echo(
            f"rockbed {__version__} serves {data} ({len(engine.groups)} groups, {rows:,} rows) at {daemon.target}"
        )
        sys.stdout.flush()
        asked.wait()
        typer.echo("rockbed: finishing what is under way")
        daemon.stop()
    finally:
        engine.close()
    typer.echo("rockbed: written back, closed")


def main() -> None:
    """What the command `rockbed` runs."""
    app()
