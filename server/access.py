"""Who may do what: tokens, roles, and the groups they reach."""

import hashlib
import hmac
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from rockbed.config import GROUPS
from rockbed.errors import InvalidConfig, PermissionDenied

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_log = logging.getLogger("rockbed.server")
_SECRET_MIN = 16  # characters


class Role(IntEnum):
    """Each may do what the one before may."""

    READ = 1  # look up without training, ask
    TRAIN = 2  # create groups, look up, push
    ADMIN = 3  # everything else


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. groups: the numbers it reaches, None = all."""

    name: str
    role: Role
    groups: frozenset[int] | None = None

    def own(self, client_id: str) -> str:
        """A client id as this caller's alone: nobody may use up the request numbers of another."""
        return client_id if self.name == ANYONE.name else f"{client_id}@{self.name}"

    def must_be(self, role: Role, doing: str) -> None:
        """Raise PermissionDenied for a lower role. doing: "push gradients"."""
        if self.role < role:
            raise PermissionDenied(
                f"{self.name!r} has the role {self.role.name.lower()!r} and cannot {doing}, which takes "
                f"{role.name.lower()!r}: use a token with that role"
            )

    def must_reach(self, groups: Iterable[int]) -> None:
        """Raise PermissionDenied for a group that is not the caller's."""
        others = [] if self.groups is None else sorted(set(groups) - self.groups)
        if others:
            raise PermissionDenied(f"{self.name!r} may not use group {others[0]}: its token lists the groups it may")

    def must_reach_all(self, doing: str) -> None:
        """Raise PermissionDenied where the caller is bound to some groups. doing: "flush"."""
        if self.groups is not None:
            raise PermissionDenied(f"{self.name!r} is bound to some groups and cannot {doing}, which concerns all")


ANYONE = Principal("-", Role.ADMIN)
"""The caller of a server without tokens."""


class Tokens:
    """The tokens of a file, in TOML; docs/daemon.md shows one. They are kept as SHA-256 digests."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises InvalidConfig with every problem."""
        self._path = path
        self._principals: list[tuple[bytes, Principal]] = []
        self._stamp: tuple[int, int] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self._principals)

    def find(self, secret: str) -> Principal | None:
        """Whose token it is. Every digest is compared, in constant time, whichever it is."""
        digest = hashlib.sha256(secret.encode()).digest()
        found = None
        for known, principal in self._principals:
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def refresh(self) -> None:
        """Read the file again if it has changed. One that cannot be used is logged, and what was there stays."""
        try:
            if self._stamp_now() != self._stamp:
                self._read()
                _log.info("read %d tokens anew from %s", len(self), self._path)
        except (InvalidConfig, OSError) as error:
            self._stamp = self._stamp_now() if self._path.exists() else None
            _log.error("the tokens of before stay in use: %s", error)

    def _stamp_now(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino

    def _read(self) -> None:
        try:
            stamp = self._stamp_now()
            with self._path.open("rb") as file:
                read = tomllib.load(file)
        except OSError as error:
            raise InvalidConfig(f"tokens: {self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InvalidConfig(f"tokens: {self._path} is not TOML: {error}") from None
        self._principals = _parsed(self._path, read)
        self._stamp = stamp
        if os.stat(self._path).st_mode & 0o004:
            _log.warning("%s can be read by every user of this machine: chmod 600 it", self._path)


def _parsed(path: Path, read: dict[str, Any]) -> list[tuple[bytes, Principal]]:
    entries = read.get("token")
    problems = [f"unknown key {name!r}" for name in read if name != "token"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidConfig(f"tokens: {path} holds no [[token]] tables, each with name, role and secret or sha256")
    found: list[tuple[bytes, Principal]] = []
    for i, entry in enumerate(entries, 1):
        where = f"token {i} ({entry.get('name', 'without a name')!r})"
        wrong = [
            *(f"unknown key {key!r}" for key in entry if key not in ("name", "role", "secret", "sha256", "groups")),
            *_name_problems(entry),
            *_secret_problems(entry),
            *_groups_problems(entry),
        ]
        problems += [f"{where}: {problem}" for problem in wrong]
        if not wrong:
            groups = frozenset(entry["groups"]) if "groups" in entry else None
            found.append((_digest(entry), Principal(entry["name"], Role[entry["role"].upper()], groups)))
    for what, values in (("name", [p.name for _, p in found]), ("secret", [digest for digest, _ in found])):
        if len(set(values)) < len(values):
            problems.append(f"two tokens have the same {what}")
    if problems:
        raise InvalidConfig(f"tokens: {path}: " + "; ".join(problems))
    return found


def _name_problems(entry: dict[str, Any]) -> list[str]:
    problems = []
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable() or "@" in name or name == "-":
        problems.append("name is missing, or not 1 to 64 printable characters without @")
    roles = [role.name.lower() for role in Role]
    if entry.get("role") not in roles:
        problems.append(f"role is {entry.get('role')!r}, not one of {', '.join(roles)}")
    return problems


def _secret_problems(entry: dict[str, Any]) -> list[str]:
    secret, digest = entry.get("secret"), entry.get("sha256")
    if (secret is None) == (digest is None):
        return ["give secret or sha256, one of them"]
    if digest is not None:
        try:
            good = isinstance(digest, str) and len(bytes.fromhex(digest)) == 32
        except ValueError:
            good = False
        return [] if good else ["sha256 is not 64 hexadecimal digits"]
    good = isinstance(secret, str) and len(secret) >= _SECRET_MIN and secret.isascii() and secret.isprintable()
    return [] if good else [f"secret has not at least {_SECRET_MIN} printable ASCII characters"]


def _groups_problems(entry: dict[str, Any]) -> list[str]:
    groups = entry.get("groups", [0])
    good = isinstance(groups, list) and groups and all(type(g) is int and 0 <= g < GROUPS for g in groups)
    return [] if good else [f"groups is {groups!r}, not a list of numbers from 0 to {GROUPS - 1}"]


def _digest(entry: dict[str, Any]) -> bytes:
    return bytes.fromhex(entry["sha256"]) if "sha256" in entry else hashlib.sha256(entry["secret"].encode()).digest()
