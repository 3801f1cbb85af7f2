"""Counts what travels between a client and a server: a port that hands all bytes on."""

import socket
import threading
from types import TracebackType

_PIECE = 1 << 16


class Counting:
    """`with Counting("grpc://HOST:PORT") as counting:` serves at `counting.address` and adds up `counting.bytes`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("grpc://").rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = [self._listener]
        self.address = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes = 0

    def __enter__(self) -> "Counting":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            server = socket.create_connection(self._server)
            self._ends += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._hand_on, args=(source, sink), daemon=True).start()

    def _hand_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                with self._lock:
                    self.bytes += len(piece)
                sink.sendall(piece)
        except OSError:  # closed on one side
            return
