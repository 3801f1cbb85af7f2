"""damo-embedding's own HTTP server, the program `damo-server` of its wheel, asked as its torch module asks it.

That is one POST and one connection a call. Kept open, a connection answers small calls some 40 ms late: the server
leaves Nagle's algorithm on and writes head and body apart. Keys and gradients are bytes of arrays here; its module
packs them number by number, which is slower. As in process, keys are made unique and gradients summed before.
"""

import http.client
import socket
from pathlib import Path

import damo  # type: ignore[import-not-found]
import numpy as np

from benchmarks.contenders.base import Contender, Settings
from benchmarks.contenders.damo_contender import Damo, config_file
from benchmarks.data import F32, I64
from benchmarks.servers import Server


class DamoHttp(Damo):
    def open(self, settings: Settings) -> None:
        self._dim = settings.dim
        self._port = _free_port()
        program = Path(damo.__file__).with_name("damo-server")
        command = [str(program), "-c", str(config_file(settings, port=self._port))]
        self._server = Server(command, settings.directory.with_name(f"{settings.directory.name}.log"))
        self._server.wait_until(self._answers)

    def _answers(self) -> bool | None:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except ConnectionRefusedError:
            return None
        return True

    def _post(self, path: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise RuntimeError(f"{path} was answered with {answer.status} {answer.reason}")
            return answer.read()
        finally:
            connection.close()

    def _pull(self, table: int, keys: I64) -> F32:
        found = self._post("/pull", np.array([table, len(keys)], "<i4").tobytes() + keys.tobytes())
        return np.frombuffer(found, np.float32).reshape(len(keys), self._dim)

    def _push(self, table: int, keys: I64, grads: F32) -> None:
        head = np.array([0], "<u8").tobytes() + np.array([table, len(keys)], "<i4").tobytes()
        self._post("/push", head + keys.tobytes() + grads.tobytes())

    def close(self) -> None:
        self._server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make() -> Contender:
    return DamoHttp()
