"""Lets a call in, or not: by its token, before anything of the request is read."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from rockbed.errors import PermissionDenied, RockbedError, Unauthenticated
from rockbed.server.access import ANYONE, Principal, Role, Tokens
from rockbed.server.service_errors import refusing
from rockbed.wire import CLIENT_KEY, TOKEN_KEY, TOKEN_SCHEME

_audit = logging.getLogger("rockbed.audit")
_REFRESH_S = 1.0  # how often the file of the tokens is looked at

_READ = (
    "Lookup",
    "LookupMany",
    "LookupStream",
    "FusedLookup",
    "AdaptiveLookup",
    "Prefetch",
    "ShareMemory",
    "ServerInfo",
    "CreateGroup",
    "ListGroups",
    "Stats",
    "GetRows",
)
_TRAIN = ("ApplyGradients", "ApplyGradientsStream", "FusedApplyGradients", "LastRequest")
_ADMIN = (
    *("AlterGroup", "DropGroup", "PutRows", "Shrink"),
    *("Check", "Flush", "Compact", "Checkpoint", "Restore", "Dump", "Export", "RemoveExport", "Import"),
)
NEEDED = {
    **dict.fromkeys(_READ, Role.READ),  # what Lookup and CreateGroup need depends on the request, too
    **dict.fromkeys(_TRAIN, Role.TRAIN),
    **dict.fromkeys(_ADMIN, Role.ADMIN),
}
"""The least role for each method of Rockbed's services. Others (health, reflection) are open to everyone."""


class Access(grpc.ServerInterceptor):  # type: ignore[misc]
    """Checks the token and the method's role; what depends on the request, its handler checks with `caller`."""

    def __init__(self, tokens: Tokens | None, pool: ThreadPoolExecutor, highest: Role = Role.ADMIN) -> None:
        """tokens: None = everyone may do everything. highest: the role that calls on this port have at the most."""
        self._tokens = tokens
        self._pool = pool
        self._highest = highest
        self._looked_at = time.monotonic()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        service, _, method = details.method.rpartition("/")
        if not service.startswith("/rockbed.") or method not in NEEDED:
            return continuation(details)
        try:
            self._must_be_allowed(method, self._principal(details.invocation_metadata))
        except RockbedError as error:
            return refusing(error, self._pool, partial(_note, method, error) if NEEDED[method] is Role.ADMIN else None)
        return continuation(details)

    def _must_be_allowed(self, method: str, principal: Principal) -> None:
        needed = NEEDED[method]
        principal.must_be(needed, f"call {method}")
        if needed > self._highest:
            raise PermissionDenied(f"{method} is answered on the server's admin port only (admin_listen)")

    def caller(self, context: grpc.ServicerContext) -> Principal:
        """Who calls, with the role that this port allows at the most. Raises Unauthenticated where the token was
        withdrawn since the call began."""
        caller = self._principal(context.invocation_metadata())
        return caller if caller.role <= self._highest else replace(caller, role=self._highest)

    def _principal(self, metadata: Any) -> Principal:
        if self._tokens is None:
            return ANYONE
        now = time.monotonic()
        if now - self._looked_at >= _REFRESH_S:
            self._looked_at = now
            self._tokens.refresh()
        sent = next((value for key, value in metadata if key == TOKEN_KEY), None)
        if sent is None:
            raise Unauthenticated(
                "the server wants a token and none was sent: PyStorage(..., connection=Connection(token=...)), or the "
                f"metadata {TOKEN_KEY}: {TOKEN_SCHEME}<token>"
            )
        found = self._tokens.find(sent.removeprefix(TOKEN_SCHEME)) if sent.startswith(TOKEN_SCHEME) else None
        if found is None:
            raise Unauthenticated("the server does not know the token that was sent: is it the right one, and whole?")
        return found


def _note(method: str, error: RockbedError, context: grpc.ServicerContext) -> None:
    client = dict(context.invocation_metadata()).get(CLIENT_KEY, "-")
    _audit.warning("%s - %s: refused %s: %s", context.peer(), client, method, error)
