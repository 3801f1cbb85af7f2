"""The Admin service: care of a store over the wire."""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from rockbed._version import __version__
from rockbed.config import GroupConfig
from rockbed.errors import InvalidConfig, PermissionDenied
from rockbed.reports import ShrinkReport
from rockbed.requests import PUT_MODES, ExportOptions, ImportOptions, ShrinkOptions
from rockbed.server import (
    checking,
    checkpointing,
    dropping,
    dumping,
    exporting,
    grouping,
    importing,
    inspecting,
    putting,
    shrinking,
    statistics,
)
from rockbed.server.access import Principal, Role
from rockbed.server.fitting import called
from rockbed.server.fitting import must_fit as must_fit_stored
from rockbed.server.group import Group
from rockbed.server.limits import Limits
from rockbed.server.service_access import Access
from rockbed.server.service_errors import answered
from rockbed.server.service_progress import Abandoned, Progress, told
from rockbed.server.service_requests import must_fit
from rockbed.server.service_rows import must_fit_answer, rows_message, sent_rows
from rockbed.server.serving import Serving
from rockbed.slots import SLOTS
from rockbed.v1 import admin_pb2 as pb
from rockbed.v1 import admin_pb2_grpc
from rockbed.wire import CLIENT_KEY, keys_from_bytes

PROTOCOL = 1
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_audit = logging.getLogger("rockbed.audit")


class AdminService(admin_pb2_grpc.AdminServicer):  # type: ignore[misc]
    """Groups, sizes, shrinking, copies. Every call that changes something leaves two lines in the log "rockbed.audit":
    what is about to be done, and how it ended."""

    def __init__(
        self,
        serving: Serving,
        limits: Limits,
        access: Access,
        *,
        checkpoints: Path | None = None,
        exports: Path | None = None,
    ) -> None:
        """checkpoints, exports: directories that Checkpoint, Dump and Export write into; None = refuse them."""
        self._serving = serving
        self._limits = limits
        self._access = access
        self._checkpoints = checkpoints
        self._exports = exports

    def ServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            return pb.ServerInfoResponse(
                version=__version__,
                protocol=PROTOCOL,
                store=self._serving.engine.directory.name,
                message_bytes_max=self._limits.message_bytes_max,
                keys_max=self._limits.keys_max,
                push_bytes_max=self._limits.push_bytes_max,
                read_only=self._serving.engine.config.read_only,
            )

    # --- groups ---

    def CreateGroup(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            config = _config_of(request.config_json)
            if request.by_name and config.name is None:
                raise InvalidConfig("CreateGroup by name, and config_json has no name: give one, or a number")
            with ExitStack() as audit:
                may = partial(self._may_open, context, audit)
                group, created = grouping.open_group(self._serving.engine, config, by_name=request.by_name, may=may)
            return _group_message(group, created=created)

    def _may_open(
        self, context: grpc.ServicerContext, audit: ExitStack, stored: GroupConfig | None, asked: GroupConfig
    ) -> None:
        caller = self._caller(context, asked.group)
        if stored is None:
            caller.must_be(Role.TRAIN, f"create group {asked.group}")
            audit.enter_context(self._audited(context, "create %s", called(asked)))
        elif stored != asked:
            must_fit_stored(stored, asked)
            caller.must_be(Role.ADMIN, f"change the settings of group {asked.group}, as opening it so would")
            audit.enter_context(self._audited(context, "change %s by opening it", called(asked)))

    def AlterGroup(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            config = _config_of(request.config_json)
            self._caller(context, config.group)
            with self._audited(context, "alter group %d", config.group):
                return _group_message(self._serving.engine.alter_group(config, request.generation))

    def DropGroup(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            if not request.HasField("group"):
                raise InvalidConfig("DropGroup without a group: say which")
            self._caller(context, request.group)
            with self._audited(context, "drop group %d", request.group):
                rows = dropping.drop_group(self._serving.engine, request.group, request.generation)
                return pb.DropGroupResponse(rows=rows)

    def ListGroups(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._serving.engine.check_open()
            mine = self._access.caller(context).groups
            groups = [g for number, g in sorted(self._serving.engine.groups.items()) if mine is None or number in mine]
            return pb.ListGroupsResponse(groups=[_group_message(group) for group in groups])

    # --- rows ---

    def GetRows(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, request.group)
            must_fit(len(request.keys) // 8, self._limits)
            keys = keys_from_bytes(request.keys)
            must_fit_answer(self._serving.engine.group(request.group), keys.size, self._limits)
            return rows_message(inspecting.get_rows(self._serving.engine, request.group, keys))

    def PutRows(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, request.group)
            must_fit(len(request.keys) // 8, self._limits)
            rows = sent_rows(self._serving.engine.group(request.group), request)
            if request.mode not in ("", *PUT_MODES):
                raise InvalidConfig(f"mode is {request.mode[:40]!r}, not one of {', '.join(map(repr, PUT_MODES))}")
            with self._audited(context, "put %d rows into group %d (%s)", rows.keys.size, request.group, request.mode):
                stored = putting.put(self._serving.engine, request.group, rows, mode=request.mode or "replace")
                return pb.PutRowsResponse(rows=stored)

    # --- sizes ---

    def Stats(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            found = statistics.collect(self._serving.engine)
            mine = self._access.caller(context).groups
            found["groups"] = {n: group for n, group in found["groups"].items() if mine is None or n in mine}
            return pb.StatsResponse(stats_json=json.dumps(found))

    def LastRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._serving.engine.check_open()
            client = self._access.caller(context).own(request.client_id)
            return pb.LastRequestResponse(request_number=self._serving.engine.clients.last(client))

    # --- care ---

    def Shrink(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        with answered(context):
            given = _given(request, "group", "max_age_s", "min_count", "min_norm", "min_step")
            options = ShrinkOptions(**given, returned=request.returned, dry_run=request.dry_run)
            self._caller(context, options.group, "shrink")

            def work(progress: Progress) -> ShrinkReport:
                return shrinking.shrink(self._serving.engine, options, progress)

            with self._audited(context, "shrink %s", options):
                yield from told(context, pb.ShrinkProgress, work)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, None, "check")
            with self._audited(context, "check"):
                return pb.CheckResponse(report_json=json.dumps(asdict(checking.check(self._serving.engine))))

    def Flush(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, None, "flush")
            with self._audited(context, "flush"):
                self._serving.engine.flush()
                return pb.FlushResponse()

    def Compact(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, None, "compact")
            with self._audited(context, "compact"):
                self._serving.engine.compact()
                return pb.CompactResponse()

    # --- copies ---

    def Checkpoint(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, None, "write a checkpoint")
            path = _within(self._checkpoints, request.name, "checkpoint")
            with self._audited(context, "checkpoint %s", request.name):
                checkpointing.checkpoint(self._serving.engine, path)
                return pb.CheckpointResponse()

    def Restore(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            self._caller(context, None, "restore a checkpoint")
            path = _within(self._checkpoints, request.name, "checkpoint")
            with self._audited(context, "restore %s", request.name):
                return pb.RestoreResponse(kept=self._serving.restore(path).name)

    def Dump(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            condition = _object("condition_json", request.condition_json or "{}")
            group = condition.get("group")
            self._caller(context, group if isinstance(group, int) else None, "dump every group")
            path = _within(self._exports, request.name, "dump")
            with self._audited(context, "dump %s", request.name):
                return pb.DumpResponse(rows=dumping.dump(self._serving.engine, path, condition))

    def Export(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        with answered(context):
            self._callers_groups(context, request.groups, "export every group")
            path = _within(self._exports, request.name, "export")
            options = ExportOptions(
                format=request.format,
                groups=list(request.groups) or None,
                slots=request.slots,
                digests=request.digests,
                since=str(_within(self._exports, request.since, "export")) if request.HasField("since") else None,
                **_given(request, "max_age_s", "min_count", "min_norm", "min_abs", "cutoff"),
            )
            with self._audited(context, "export %s, %s", request.name, options):
                engine = self._serving.engine
                yield from told(context, pb.ExportProgress, partial(exporting.export, engine, path, options))

    def RemoveExport(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            path = _within(self._exports, request.name, "export")
            may = partial(self._callers_groups, context, doing="remove an export of every group")
            with self._audited(context, "remove export %s", request.name):
                exporting.remove(path, request.sha256, may)
                return pb.RemoveExportResponse()

    def Import(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        with answered(context):
            self._callers_groups(context, request.groups, "import every group")
            path = _within(self._exports, request.name, "export")
            options = ImportOptions(
                groups=list(request.groups) or None,
                mode=request.mode,
                chain=request.chain if request.HasField("chain") else True,
                slots_from=request.slots_from,
                slots_to=request.slots_to if request.HasField("slots_to") else SLOTS,
                dry_run=request.dry_run,
            )
            with self._audited(context, "import %s, %s", request.name, options):
                engine = self._serving.engine
                yield from told(context, pb.ImportProgress, partial(importing.import_, engine, path, options))

    def _caller(self, context: grpc.ServicerContext, group: int | None, doing: str = "") -> Principal:
        """Who calls. Raises PermissionDenied where the group, or without one the whole store, is not the caller's."""
        return self._callers_groups(context, [] if group is None else [group], doing)

    def _callers_groups(self, context: grpc.ServicerContext, groups: Sequence[int], doing: str) -> Principal:
        caller = self._access.caller(context)
        try:
            if groups:
                caller.must_reach(groups)
            else:
                caller.must_reach_all(doing)
        except PermissionDenied as error:
            self._say(context, "refused: %s", error)
            raise
        return caller

    def _say(self, context: grpc.ServicerContext, what: str, *values: object) -> None:
        client = dict(context.invocation_metadata()).get(CLIENT_KEY, "-")
        _audit.info("%s %s %s: " + what, context.peer(), self._access.caller(context).name, client, *values)

    @contextmanager
    def _audited(self, context: grpc.ServicerContext, what: str, *values: object) -> Iterator[None]:
        """Say what is about to be done, and then how it ended."""
        self._say(context, what, *values)
        began = time.monotonic()
        try:
            yield
        except (GeneratorExit, Abandoned):
            self._say(context, what + ": given up, the caller is gone", *values)
            raise
        except Exception as error:
            self._say(context, what + ": failed: %s: %s", *values, type(error).__name__, error)
            raise
        self._say(context, what + ": done in %.3f s", *values, time.monotonic() - began)


def _given(request: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(request, name) if request.HasField(name) else None for name in names}


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidConfig(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{name} is a JSON {type(value).__name__}, not an object")
    return value


def _config_of(text: str) -> GroupConfig:
    given = _object("config_json", text)
    known = {field.name: field for field in fields(GroupConfig)}
    unknown = sorted(set(given) - set(known))
    lacking = sorted({"group", "dim", "optimizer", "initializer"} - set(given))
    if unknown or lacking:
        problems = [f"{name!r} is unknown" for name in unknown] + [f"{name!r} is missing" for name in lacking]
        raise InvalidConfig(f"config_json: {'; '.join(problems)}. Known: {', '.join(known)}")
    return GroupConfig.from_json(given)


def _group_message(group: Group, *, created: bool = False) -> Any:
    config = json.dumps(group.config.to_json(), sort_keys=True)
    return pb.Group(
        group=group.number,
        config_json=config,
        global_step=group.global_step,
        generation=group.generation,
        created=created,
    )


def _within(directory: Path | None, name: str, what: str) -> Path:
    """The path for a name sent by a client. Raises InvalidConfig."""
    if directory is None:
        flag = "--checkpoints" if what == "checkpoint" else "--exports"
        raise InvalidConfig(f"this server has no directory for a {what}: start it with {flag} DIRECTORY")
    if not _NAME.fullmatch(name):
        raise InvalidConfig(
            f"{what} name {name[:140]!r}: 1 to 128 letters, digits, '.', '_' or '-', not beginning with a dot; the "
            "server chooses the directory"
        )
    return directory / name
