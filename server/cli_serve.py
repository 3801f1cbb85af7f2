"""`rockbed serve`, `rockbed config` and `rockbed token`."""

import hashlib
import inspect
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockbed._version import __version__
from rockbed.config import GROUPS
from rockbed.errors import InvalidConfig
from rockbed.server.cli_errors import errors_said
from rockbed.server.daemon_settings import Effective, Settings, load

if TYPE_CHECKING:
    from rockbed.server.daemon import Daemon
    from rockbed.server.engine import Engine
    from rockbed.server.service_observing import Observer

_log = logging.getLogger("rockbed.server")
_File = Annotated[Path | None, typer.Option("--config", help="TOML file with settings, by the names of the flags.")]


def _with_settings(command: Callable[[Effective], None]) -> Callable[..., None]:
    """A command with a flag for each setting."""

    def run(config: Path | None = None, **flags: Any) -> None:
        with errors_said():
            command(load(config, flags=flags))

    parameters = [inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_File)]
    for each in fields(Settings):
        name = "--" + each.name.replace("_", "-")
        switch = isinstance(each.default, bool)
        option = typer.Option(
            f"{name}/--no-{name[2:]}" if switch else name,
            help=each.metadata["help"],
            rich_help_panel=each.metadata["panel"],
            show_default=False if each.default is None or switch else str(each.default),
            metavar=None if switch else each.metadata["read"].__name__.strip("_").upper(),
        )
        annotation = Annotated[bool | None, option] if switch else Annotated[str | None, option]
        parameters.append(
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


@_with_settings
def config(effective: Effective) -> None:
    """Print the settings that `serve` would use, and where each comes from; or every problem with them.

    Example: rockbed config --config rockbed.toml > effective.toml
    """
    typer.echo(effective.to_toml(), nl=False)


@_with_settings
def serve(effective: Effective) -> None:
    """Serve a store over gRPC until SIGTERM or Ctrl-C; then finish what is under way, write back, and end.

    A flag counts before the environment (ROCKBED_MEMORY_BUDGET for --memory-budget), that before the file of --config.
    Example: rockbed serve --data ./model --checkpoints ./checkpoints
    """
    from rockbed.server.daemon_logs import set_up
    from rockbed.server.engine import Engine

    settings = effective.settings
    set_up(settings.log_format, settings.log_level)
    assert settings.data is not None  # `load` sees to it
    with _tracing(settings.traces) as observers, told_to_end() as wait:
        _serve(settings, Engine(settings.data, settings.store()), observers, wait)


@contextmanager
def told_to_end() -> "Iterator[Callable[[], None]]":
    """A call that waits for SIGTERM or SIGINT; one that came since the block began counts. In the main thread only.

    Python itself writes a signal's number to a pipe as it comes. A handler that sets an Event will not do: it may run
    while the main thread, about to wait, holds the Event's own lock, and then waits for itself.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    come, write = os.pipe()
    os.set_blocking(write, False)

    def wait() -> None:
        while os.read(come, 1)[0] not in numbers:
            pass

    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        for number in numbers:
            signal.signal(number, lambda *_: None)  # they do not end the process
        yield wait
    finally:
        signal.set_wakeup_fd(before)
        os.close(come)
        os.close(write)


def _serve(
    settings: Settings, engine: "Engine", observers: "list[Observer]", wait_until_told_to_end: "Callable[[], None]"
) -> None:
    from rockbed.server.daemon import Daemon

    try:
        daemon = Daemon(engine, settings.server(), observers=observers)
        try:
            _say(settings, *_banner(settings, engine, daemon))
            wait_until_told_to_end()
            _say(settings, f"rockbed: finishing what is under way, {settings.drain:g} s at most")
        finally:
            daemon.stop(settings.drain)
            engine = daemon.engine
    finally:
        engine.close()
    _say(settings, "rockbed: written back, closed")


def _banner(settings: Settings, engine: "Engine", daemon: "Daemon") -> list[str]:
    rows = sum(group.counters.rows for group in engine.groups.values())
    mutual = ", client certificates" if settings.tls_client_ca else ""
    callers = "everyone may do everything" if daemon.tokens is None else f"{daemon.tokens} tokens"
    lines = [
        f"rockbed {__version__} serves {settings.data} ({len(engine.groups)} groups, {rows:,} rows) at {daemon.target}",
        f"  memory for rows {settings.memory_budget / 2**20:,.0f} MiB; journal synced: {settings.fsync}; "
        f"{'read only; ' if settings.read_only else ''}{'TLS' + mutual if settings.tls_cert else 'no TLS'}; {callers}",
    ]
    if settings.admin_listen is not None:
        lines.append(f"  admin calls at {daemon.admin_target}")
    if daemon.metrics_port is not None:
        lines.append(f"  metrics at port {daemon.metrics_port}")
    return lines


def _say(settings: Settings, *lines: str) -> None:
    if settings.log_format == "json":
        _log.info("%s", "\n".join(line.strip() for line in lines))
        return
    for line in lines:
        typer.echo(line)
    sys.stdout.flush()


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


def token(
    name: Annotated[str, typer.Argument(help="Stands in the server's log.")],
    role: Annotated[str, typer.Option(help="read, train or admin.")] = "train",
    group: Annotated[
        list[int] | None, typer.Option(min=0, max=GROUPS - 1, help="One that it may use, by number; several times.")
    ] = None,
) -> None:
    """Make a token: the secret for the client, and the lines for the server's file of tokens, which do not hold it.

    Without --group it reaches all groups. Example: rockbed token ranking --role read --group 1 --group 2
    """
    from rockbed.server.access import Role

    roles = [each.name.lower() for each in Role]
    with errors_said():
        if role not in roles or not name.isprintable() or not name or '"' in name or "\\" in name:
            raise InvalidConfig(f"name {name!r}, role {role!r}: give a plain name, and one of {', '.join(roles)}")
    secret = secrets.token_urlsafe(32)
    typer.echo(f"secret, for the client: {secret}", err=True)
    typer.echo(f'[[token]]\nname = "{name}"\nrole = "{role}"')
    if group:
        typer.echo(f"groups = {sorted(set(group))}")
    typer.echo(f'sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"')
