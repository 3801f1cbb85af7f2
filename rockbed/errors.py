"""Every error that Rockbed raises on purpose. `code` is stable: it names the class on the wire and in logs."""

from typing import ClassVar


class RockbedError(Exception):
    """Base of all of Rockbed's errors; catch it to catch them all."""

    code: ClassVar[str] = "rockbed_error"


# --- what the caller sent ---


class InvalidConfig(RockbedError, ValueError):
    """A setting, or a combination of settings, that cannot work. The message lists every problem found."""

    code = "invalid_config"


class UnknownName(InvalidConfig):
    """No optimizer, initializer, schedule, option or parameter of that name. The message lists the known ones."""

    code = "unknown_name"


class DuplicateName(InvalidConfig):
    """Two implementations registered under one name."""

    code = "duplicate_name"


class MissingPackage(RockbedError, ImportError):
    """What was asked for needs a package that is not installed. The message says which, and how to install it."""

    code = "missing_package"


class WrongDtype(RockbedError, TypeError):
    """An array of another dtype than the call takes. Nothing is converted silently."""

    code = "wrong_dtype"


class WrongShape(RockbedError, ValueError):
    """An array of the wrong size, number of axes or memory layout, or one that cannot be written to."""

    code = "wrong_shape"


class DimMismatch(WrongShape):
    """Rows of one dim are stored, another dim was sent or asked for."""

    code = "dim_mismatch"


class IdOutOfRange(RockbedError, ValueError):
    """An id that lies outside of the range of a variable whose tables tell only so many apart."""

    code = "id_out_of_range"


class GradientNotFinite(RockbedError, ValueError):
    """A gradient holds NaN or infinity and the group rejects those. Nothing of the batch was applied."""

    code = "gradient_not_finite"


class RowNotFinite(RockbedError, ValueError):
    """A weight or a slot that was to be stored holds NaN or infinity. Nothing of the batch was stored."""

    code = "row_not_finite"


class BatchTooLarge(RockbedError, ValueError):
    """A push touches more distinct rows than the memory budget can hold at once. Nothing of it was applied."""

    code = "batch_too_large"


class UnknownGroup(RockbedError, LookupError):
    """The store has no group of that number."""

    code = "unknown_group"


class UnknownHandle(RockbedError, LookupError):
    """A kept batch that is not kept any more, or was never this caller's."""

    code = "unknown_handle"


class UnknownMemory(RockbedError, LookupError):
    """Shared memory that the server does not have any more, or that was never this caller's to share. Clients share
    other memory, or send their messages, by themselves."""

    code = "unknown_memory"


class GroupConflict(RockbedError, ValueError):
    """The group exists with another dim, optimizer kind, initializer or seed."""

    code = "group_conflict"


class InvalidBackward(RockbedError, RuntimeError):
    """A backward pass of torch that cannot be pushed: the second one of a lookup, one that builds a graph, or one
    through rows that were not looked up to be trained."""

    code = "invalid_backward"


class RequestTooOld(RockbedError, ValueError):
    """A request number so far behind the newest one of its client that the store no longer knows it."""

    code = "request_too_old"


# --- the state of the store ---


class StorageClosed(RockbedError, RuntimeError):
    """The storage was closed, or belongs to the process that this one was forked from."""

    code = "storage_closed"


class ReadOnlyStorage(RockbedError, PermissionError):
    """The storage was opened with read_only=True and the call would change it."""

    code = "read_only_storage"


class StoreLocked(RockbedError, RuntimeError):
    """Another process, or another PyStorage of this one, has the directory open."""

    code = "store_locked"


class StoreNotFound(RockbedError, FileNotFoundError):
    """There is no store, or no checkpoint, at the path."""

    code = "store_not_found"


class StoreExists(RockbedError, FileExistsError):
    """The path that was to be created is there already."""

    code = "store_exists"


class StorePathInvalid(RockbedError, NotADirectoryError):
    """The path is a file, or a directory that holds something else than a store."""

    code = "store_path_invalid"


# --- the disk ---


class StorePermission(RockbedError, PermissionError):
    """The operating system refused access to the store's files."""

    code = "store_permission"


class StorageFull(RockbedError, OSError):
    """The disk is full. The call was not applied; it can be repeated once there is room."""

    code = "storage_full"


class StorageFailed(RockbedError, OSError):
    """The disk answered with another error than those above; the message holds it."""

    code = "storage_failed"


class StorageCorrupt(RockbedError, RuntimeError):
    """Stored bytes are not what was written: a table, a record or the catalog, or a file to be imported."""

    code = "storage_corrupt"


class JournalCorrupt(StorageCorrupt):
    """A journal entry that was written whole no longer matches its checksum."""

    code = "journal_corrupt"


class FormatTooNew(RockbedError, RuntimeError):
    """The store was written by a newer Rockbed than this one."""

    code = "format_too_new"


# --- a GPU ---


class DeviceUnavailable(RockbedError, RuntimeError):
    """The GPU that was asked for is not there, or its driver cannot be used. The message says which and what to try."""

    code = "device_unavailable"


class DeviceOutOfMemory(RockbedError, MemoryError):
    """The GPU has no memory left for what a call needs beside the rows. Nothing was applied."""

    code = "device_out_of_memory"


# --- a server ---


class ServerUnavailable(RockbedError, ConnectionError):
    """The server could not be reached, or went away, for as long as the client was told to try."""

    code = "server_unavailable"


class DeadlineExceeded(RockbedError, TimeoutError):
    """The server did not answer in time. Whether a push was applied is not known; repeated
    under its request number it is applied once."""

    code = "deadline_exceeded"


class LimitExceeded(RockbedError, ValueError):
    """The request is larger than the server takes; the message names the limit. Nothing of it was done."""

    code = "limit_exceeded"


class TlsFailed(RockbedError, ConnectionError):
    """No encrypted connection came about: a certificate that is expired, of another name or of an authority that is
    not trusted, or one end that does not speak TLS."""

    code = "tls_failed"


class Unauthenticated(RockbedError, PermissionError):
    """The server wants a token, and none, or one that it does not know, was sent."""

    code = "unauthenticated"


class PermissionDenied(RockbedError, PermissionError):
    """The token's role, or its list of groups, does not allow the call."""

    code = "permission_denied"


class Overloaded(RockbedError, RuntimeError):
    """The server has as many requests waiting as it takes. Nothing was done; clients try again by themselves."""

    code = "overloaded"


class ServerError(RockbedError, RuntimeError):
    """The server failed in a way that nobody foresaw; its log has the details."""

    code = "server_error"


def all_errors() -> dict[str, type[RockbedError]]:
    """Code -> class, for every class of this module."""
    found: dict[str, type[RockbedError]] = {}
    todo: list[type[RockbedError]] = [RockbedError]
    while todo:
        cls = todo.pop()
        found[cls.code] = cls
        todo.extend(cls.__subclasses__())
    return found
