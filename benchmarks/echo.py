"""A gRPC server in Python that does nothing: `python -m benchmarks.echo` answers the method /bytes/N with N bytes.

What is left of a daemon's time when it neither parses nor works: gRPC, the sockets, and Python's share of both.
"""

import signal
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import grpc

from rockbed.server.daemon_config import ServerConfig

_answer = lru_cache(bytes)


class _Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        answer = _answer(int(details.method.rpartition("/")[2]))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


def main() -> None:
    config = ServerConfig()
    asked = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)  # in the threads to come, too: `sigwait` takes them
    server = grpc.server(
        ThreadPoolExecutor(config.workers),
        handlers=(_Anything(),),
        maximum_concurrent_rpcs=config.workers + config.queue_max,
        options=(  # the daemon's, as far as they concern calls
            ("grpc.max_receive_message_length", config.limits.message_bytes_max),
            ("grpc.max_send_message_length", config.limits.message_bytes_max + (1 << 16)),
            ("grpc.so_reuseport", 0),
        ),
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serves nothing at grpc://127.0.0.1:{port}", flush=True)
    signal.sigwait(asked)
    server.stop(None).wait()


if __name__ == "__main__":
    main()
