"""Long calls over the wire: progress as it goes on, the report at the end."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import grpc

Progress = Callable[[int, int], None]


class Abandoned(Exception):
    """The client that asked has gone."""


def told(context: grpc.ServicerContext, message: Callable[..., Any], work: Callable[[Progress], Any]) -> Iterator[Any]:
    """Run work(progress) in a thread of its own, and yield a message for each call of progress.

    message: takes rows_seen, rows_total and, for the last one, report_json: the dataclass that work returns. Work whose
    client has gone ends at its next progress; what it raises is raised here: Abandoned then, where somebody still asks.
    """
    said: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    outcome: list[Any] = []
    gone = threading.Event()
    context.add_callback(gone.set)

    def progress(seen: int, total: int) -> None:
        if gone.is_set():
            raise Abandoned
        said.put((seen, total))

    def run() -> None:
        try:
            outcome.append(work(progress))
        except BaseException as error:  # it is raised where the answer is made
            outcome.append(error)
        said.put(None)

    threading.Thread(target=run, name="rockbed-long-call", daemon=True).start()
    last = (0, 0)
    while (item := said.get()) is not None:
        last = item
        yield message(rows_seen=item[0], rows_total=item[1])
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    yield message(rows_seen=last[0], rows_total=last[1], report_json=json.dumps(asdict(outcome[0])))
