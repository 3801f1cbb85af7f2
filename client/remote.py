"""A store on a server."""

import itertools
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.adaptive_messages import adaptive_request, mask_from
from rockbed.bags import Bags, check_bags
from rockbed.client.arrays import checked_group
from rockbed.client.connection import Connection
from rockbed.client.pushes import messages
from rockbed.client.row_messages import row_report
from rockbed.client.transport import Transport
from rockbed.config import GroupConfig
from rockbed.errors import BatchTooLarge, InvalidConfig, ServerError
from rockbed.fused_messages import fused_lookup_request, fused_push_request
from rockbed.messages import lookup_many_request, lookup_request, push_request
from rockbed.reports import CheckReport, ExportReport, ImportReport, RowReport, ShrinkReport
from rockbed.requests import (
    CONNECTION,
    AdaptiveKeys,
    ExportOptions,
    Gradients,
    ImportOptions,
    Lookup,
    OpenedGroup,
    PutRows,
    Request,
    ShrinkOptions,
)
from rockbed.types import F32, I64, Bool
from rockbed.v1 import admin_pb2, embedding_pb2
from rockbed.wire import (
    FLOAT32,
    PRECISIONS,
    float_bytes,
    floats_into,
    floats_to_bytes,
    floats_to_wire,
    keys_to_bytes,
    keys_to_wire,
)
from rockbed.wire_format import Parts, size_of

_PROTOCOL = 1
_ROWS_ASKED = 512  # at a time: their answer fits into a message whatever the dim and the optimizer
_ENTRY_BYTES = 64  # of one of several lookups, beside its arrays
_ENVELOPE_BYTES = 4096  # of a message, beside its arrays


class Remote:
    """A server as a Backend."""

    device = None  # a server's own is not in reach of this process

    def __init__(self, target: str, connection: Connection) -> None:
        """Connect. Raises InvalidConfig, ServerUnavailable."""
        self._transport = Transport(target, connection)
        self._precision = PRECISIONS[connection.precision]
        self._in_flight = connection.in_flight
        # Never shared with another connection, whatever its name: the server would take one's pushes for the other's.
        self._pushes_as = CONNECTION + uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        try:
            info = self._ask("ServerInfo", admin_pb2.ServerInfoRequest())
            if info.protocol != _PROTOCOL:
                raise ServerError(
                    f"{target} speaks protocol {info.protocol} (Rockbed {info.version}), this client {_PROTOCOL}: use "
                    "the same version on both ends"
                )
        except BaseException:
            self._transport.close()
            raise
        self._message_bytes_max = info.message_bytes_max
        self._bytes_max = info.message_bytes_max - _ENVELOPE_BYTES
        self._keys_max = info.keys_max
        self._push_bytes_max = info.push_bytes_max

    @property
    def path(self) -> Path:
        raise InvalidConfig(f"the directory of {self._transport.target} is on the server: it has no path here")

    def _ask(self, method: str, request: Any, *, long: bool = False) -> Any:
        return self._transport.call(method, request, again=True, long=long)

    # --- rows ---

    def open_group(self, config: GroupConfig, *, by_name: bool = False) -> OpenedGroup:
        request = admin_pb2.CreateGroupRequest(config_json=config.to_bytes().decode(), by_name=by_name)
        answer = self._ask("CreateGroup", request)
        stored = GroupConfig.from_json(json.loads(answer.config_json))
        return OpenedGroup(stored, answer.global_step, answer.generation, answer.created)

    def lookup(self, asked: Lookup, *, train: bool) -> None:
        waiting: deque[tuple[Any, Any, Lookup]] = deque()
        parts = [
            replace(asked, keys=asked.keys[part], out=asked.out[part])
            for part in self._parts(asked.keys.size, asked.out.shape[1])
        ]
        if len(parts) == 1:
            request = lookup_request(asked, train, self._precision)
            self._fill(asked, self._transport.exchange("Lookup", request, _answer_bytes(asked)))
            return
        for part in parts:
            if len(waiting) == self._in_flight:
                self._receive(*waiting.popleft())
            request = lookup_request(part, train, self._precision)
            waiting.append((self._transport.start("Lookup", request, _answer_bytes(part)), request, part))
        while waiting:
            self._receive(*waiting.popleft())

    def lookup_many(self, lookups: Sequence[Lookup], *, train: bool) -> None:
        together: list[Lookup] = []
        size = keys = 0
        for each in lookups:
            its_size = max(each.out.nbytes, each.keys.nbytes) + _ENTRY_BYTES
            if its_size > self._bytes_max or each.keys.size > self._keys_max:
                self.lookup(each, train=train)
                continue
            if size + its_size > self._bytes_max or keys + each.keys.size > self._keys_max:
                self._look_up_together(together, train=train)
                together, size, keys = [], 0, 0
            together.append(each)
            size, keys = size + its_size, keys + each.keys.size
        if together:
            self._look_up_together(together, train=train)

    def _look_up_together(self, lookups: Sequence[Lookup], *, train: bool) -> None:
        request = lookup_many_request(lookups, train, self._precision)
        answers = self._transport.exchange("LookupMany", request, sum(map(_answer_bytes, lookups)))
        if len(answers) != len(lookups):
            raise ServerError(f"{self._transport.target} answered {len(answers)} of {len(lookups)} lookups")
        for answer, each in zip(answers, lookups, strict=True):
            self._fill(each, answer)

    def _receive(self, sent: Any, request: Any, asked: Lookup) -> None:
        self._fill(asked, self._transport.finish(sent, "Lookup", request, _answer_bytes(asked)))

    def _fill(self, asked: Lookup, answer: Any) -> None:
        floats_into(asked.out, answer.weights, self._precision, "the weights from the server")

    def _parts(self, n: int, dim: int) -> Iterator[slice]:
        step = max(1, min(self._keys_max, self._bytes_max // max(8, 4 * dim)))
        return (slice(start, min(n, start + step)) for start in range(0, max(n, 1), step))

    def apply_gradients(self, items: Sequence[Gradients], request: Request | None) -> bool:
        width = float_bytes(self._precision)
        size = sum(8 * item.keys.size + width * item.grads.size for item in items)
        if size > self._push_bytes_max:
            raise BatchTooLarge(
                f"the push has {size} bytes, the server takes {self._push_bytes_max} at once (push_bytes_max): send "
                "smaller batches, or raise it there"
            )
        request = request or self._next_request()
        parts = list(messages(items, width, self._bytes_max, self._keys_max))
        if len(parts) == 1:
            answer = self._transport.exchange("ApplyGradients", self._push_message(items, request))
        else:
            last = len(parts) - 1
            answer = self._transport.push(
                lambda: (self._push_message(part, request, more=i < last) for i, part in enumerate(parts)),
            )
        applied: bool = answer.applied
        return applied

    def _next_request(self) -> Request:
        with self._lock:
            return Request(self._pushes_as, next(self._numbers))

    def _push_message(self, items: Sequence[Gradients], request: Request, *, more: bool = False) -> Parts:
        arrays = [(keys_to_wire(item.keys), floats_to_wire(item.grads, self._precision)) for item in items]
        return push_request(items, arrays, self._precision, request, more=more)

    def fused_lookup(
        self, batch: Sequence[Bags], pooled: F32, sequences: Sequence[F32], *, train: bool, keep: bool
    ) -> bytes | None:
        check_bags(batch)  # what is wrong with it may have no form on the wire
        outs = (pooled, *sequences)
        result_bytes = float_bytes(self._precision) * sum(out.size for out in outs)
        self._must_take(batch, result_bytes, "the results")
        message = fused_lookup_request(batch, train, self._precision, keep)
        self._must_take(batch, size_of(message), "keys, lengths and weights")
        answer = self._transport.exchange("FusedLookup", message, result_bytes + _ENVELOPE_BYTES)
        if len(answer.sequences) != len(sequences):
            raise ServerError(
                f"{self._transport.target} answered {len(answer.sequences)} of {len(sequences)} sequences"
            )
        for out, data in zip(outs, (answer.pooled, *answer.sequences), strict=True):
            floats_into(out, data, self._precision, "the weights from the server")
        return bytes(answer.handle) or None

    def fused_apply_gradients(
        self,
        batch: Sequence[Bags],
        handle: bytes | None,
        pooled: F32,
        sequences: Sequence[F32],
        steps: Mapping[int, int],
        request: Request | None,
    ) -> bool:
        if handle is None:
            check_bags(batch)
        of = batch if handle is None else handle
        sent = [floats_to_wire(grads, self._precision) for grads in (pooled, *sequences)]
        request = request or self._next_request()
        message = fused_push_request(of, sent[0], sent[1:], self._precision, steps, request)
        self._must_take(batch, size_of(message), "the gradients" if handle is not None else "keys and gradients")
        applied: bool = self._transport.exchange("FusedApplyGradients", message).applied
        return applied

    def _must_take(self, batch: Sequence[Bags], size: int, what: str) -> None:
        """Raise BatchTooLarge: in parts, a fused batch would be several calls, and its push several changes."""
        keys = sum(each.keys.size for each in batch)
        if keys > self._keys_max:
            raise BatchTooLarge(
                f"the fused batch has {keys} keys, the server takes {self._keys_max} at once (keys_max): send smaller "
                "batches, or raise it there"
            )
        if size > self._message_bytes_max:
            raise BatchTooLarge(
                f"{what} are {size} bytes of a fused batch of {keys} keys, the server takes {self._message_bytes_max} "
                "at once (message_bytes_max): send smaller batches, raise it there, or have floats travel as halves "
                "(Connection(precision='bfloat16'))"
            )

    def adaptive_lookup(self, asked: AdaptiveKeys, out: F32, *, train: bool) -> tuple[Bool, int]:
        used, made = np.empty(asked.keys.size, np.bool_), 0
        for part in self._parts(asked.keys.size, max(out.shape[1], 5)):  # an id asked for takes 17 bytes
            message = adaptive_request(asked.part(part), train, self._precision)
            room = out[part].nbytes + used[part].nbytes + _ENTRY_BYTES
            answer = self._transport.exchange("AdaptiveLookup", message, room)
            floats_into(out[part], answer.weights, self._precision, "the weights from the server")
            used[part] = mask_from(answer.mask, used[part].size)
            made += answer.migrated
        return used, made

    def put_rows(self, group: int, rows: PutRows, *, mode: str) -> int:
        message = admin_pb2.PutRowsRequest(
            group=group,
            keys=keys_to_bytes(rows.keys),
            weights=floats_to_bytes(rows.weights, FLOAT32),
            slots=None if rows.slots is None else floats_to_bytes(rows.slots, FLOAT32),
            update_num=None if rows.update_num is None else keys_to_bytes(rows.update_num),
            update_time_ms=None if rows.update_time_ms is None else keys_to_bytes(rows.update_time_ms),
            mode=mode,
        )
        if message.ByteSize() > self._bytes_max:
            raise BatchTooLarge(
                f"{rows.keys.size} rows are {message.ByteSize()} bytes, the server takes {self._bytes_max} at once "
                "(message_bytes_max): send fewer"
            )
        # not again by itself: a push that came in between would be undone
        stored: int = self._transport.call("PutRows", message, again=False).rows
        return stored

    def get_rows(self, group: int, keys: I64) -> RowReport:
        parts = []
        for start in range(0, max(keys.size, 1), _ROWS_ASKED):
            part = keys[start : start + _ROWS_ASKED]
            request = admin_pb2.GetRowsRequest(group=group, keys=keys_to_bytes(part))
            parts.append(row_report(group, part, self._ask("GetRows", request)))
        return RowReport.joined(parts)

    def groups(self) -> dict[int, GroupConfig]:
        found = self._ask("ListGroups", admin_pb2.ListGroupsRequest()).groups
        return {each.group: GroupConfig.from_json(json.loads(each.config_json)) for each in found}

    def generation(self, group: int) -> int:
        found = self._ask("ListGroups", admin_pb2.ListGroupsRequest()).groups
        return next((each.generation for each in found if each.group == group), 0)

    def alter_group(self, config: GroupConfig, generation: int) -> None:
        request = admin_pb2.AlterGroupRequest(config_json=config.to_bytes().decode(), generation=generation)
        self._ask("AlterGroup", request)

    def drop_group(self, group: int, generation: int = 0) -> int:
        request = admin_pb2.DropGroupRequest(group=group, generation=generation)
        rows: int = self._transport.call("DropGroup", request, again=False, long=True).rows
        return rows

    def prefetch(self, group: int, keys: I64, generation: int) -> tuple[int, int]:
        in_memory = absent = 0
        distinct = np.unique(keys)  # so that a key which occurs in two parts is not counted twice
        for part in self._parts(distinct.size, 2):
            request = embedding_pb2.PrefetchRequest(
                group=group, keys=keys_to_bytes(distinct[part]), generation=generation
            )
            answer = self._ask("Prefetch", request)
            in_memory, absent = in_memory + answer.in_memory, absent + answer.absent
        return in_memory, absent

    def last_request(self, client: str) -> int:
        number: int = self._ask("LastRequest", admin_pb2.LastRequestRequest(client_id=client)).request_number
        return number

    # --- care ---

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ask("Stats", admin_pb2.StatsRequest()).stats_json)
        found["groups"] = _by_group(found["groups"])
        return found

    def shrink(self, options: ShrinkOptions, progress: Callable[[int, int], None] | None) -> ShrinkReport:
        if options.group is not None:
            checked_group(options.group)
        request = admin_pb2.ShrinkRequest(**asdict(options))
        report = self._told("Shrink", request, progress)
        return ShrinkReport(report["dry_run"], report["rows_seen"], _by_group(report["removed"]))

    def _told(self, method: str, request: Any, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        report: dict[str, Any] | None = None
        for said in self._transport.stream(method, request):  # to its end: left before, it would count as given up
            if said.HasField("report_json"):
                report = json.loads(said.report_json)
            elif progress is not None:
                progress(said.rows_seen, said.rows_total)
        if report is None:
            raise ServerError(f"{self._transport.target} ended {method} without a report")
        return report

    def dump(self, path: Path, condition: Mapping[str, Any]) -> int:
        request = admin_pb2.DumpRequest(name=_name(path), condition_json=json.dumps(dict(condition)))
        rows: int = self._transport.call("Dump", request, again=False, long=True).rows
        return rows

    def export(self, path: Path, options: ExportOptions, progress: Callable[[int, int], None] | None) -> ExportReport:
        if options.since is not None:
            _name(Path(options.since))
        report = self._told("Export", admin_pb2.ExportRequest(name=_name(path), **asdict(options)), progress)
        return ExportReport(**_grouped(report))

    def remove_export(self, path: Path, sha256: str) -> None:
        request = admin_pb2.RemoveExportRequest(name=_name(path), sha256=sha256)
        self._transport.call("RemoveExport", request, again=False, long=True)

    def import_(self, path: Path, options: ImportOptions, progress: Callable[[int, int], None] | None) -> ImportReport:
        report = self._told("Import", admin_pb2.ImportRequest(name=_name(path), **asdict(options)), progress)
        return ImportReport(**_grouped(report))

    def checkpoint(self, path: Path) -> None:
        self._transport.call("Checkpoint", admin_pb2.CheckpointRequest(name=_name(path)), again=False, long=True)

    def restore_from(self, path: Path) -> str:
        request = admin_pb2.RestoreRequest(name=_name(path))
        kept: str = self._transport.call("Restore", request, again=False, long=True).kept
        return kept

    def check(self) -> CheckReport:
        report = json.loads(self._ask("Check", admin_pb2.CheckRequest(), long=True).report_json)
        return CheckReport(report["problems"], _by_group(report["rows"]), report["journal_entries"])

    def flush(self) -> None:
        self._ask("Flush", admin_pb2.FlushRequest(), long=True)

    def compact(self) -> None:
        self._ask("Compact", admin_pb2.CompactRequest(), long=True)

    def close(self) -> None:
        self._transport.close()


def _answer_bytes(asked: Lookup) -> int:
    """At most so many, whatever the precision."""
    return asked.out.nbytes + _ENTRY_BYTES


def _grouped(report: dict[str, Any]) -> dict[str, Any]:
    """A report's fields, what is counted by group by its number."""
    return {name: _by_group(value) if isinstance(value, dict) else value for name, value in report.items()}


def _by_group(found: dict[str, Any]) -> dict[int, Any]:
    """JSON's keys are strings."""
    return {int(number): value for number, value in found.items()}


def _name(path: Path) -> str:
    if path.name != str(path):
        raise InvalidConfig(f"{path} is a path: on a server a copy has a name, and the server its directory")
    return path.name
