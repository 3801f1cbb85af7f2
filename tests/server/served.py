"""A server that tests start, restart and ask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from rockbed import PyStorage
from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from rockbed.wire import CODE_KEY

Connect = Callable[..., PyStorage]
"""(target, **options of Connection) -> a storage, closed at the end of the test."""


class Server:
    """An engine and a daemon on it, which can be restarted at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine(folder / "store", StoreConfig(write_back_interval_s=3600, sweep_rows_s=0))
        self.daemon: Daemon | None = None

    def start(self, *interceptors: grpc.ServerInterceptor, **options: Any) -> str:
        given = {"listen": "127.0.0.1:0", "checkpoints": self.folder, "exports": self.folder, **options}
        self.daemon = Daemon(self.engine, ServerConfig(**given), interceptors=interceptors)
        return self.daemon.target

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop(0)

    def close(self) -> None:
        self.stop()
        self.engine.close()


def refused(call: Callable[..., Any], request: Any, **options: Any) -> tuple[grpc.StatusCode, str, str]:
    """Status, Rockbed's code and the message with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **options)
    error: Any = caught.value
    return error.code(), dict(error.trailing_metadata()).get(CODE_KEY, ""), error.details()
