"""Rockbed: an embedding parameter server on RocksDB, in the trainer's process or behind gRPC.

`import rockbed` is cheap. The names of the client API are loaded when they are first used, and with them
numba and rocksdict; errors and the version are there at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rockbed._version import __version__
from rockbed.errors import (
    BatchTooLarge,
    DeadlineExceeded,
    DeviceOutOfMemory,
    DeviceUnavailable,
    DimMismatch,
    DuplicateName,
    FormatTooNew,
    GradientNotFinite,
    GroupConflict,
    IdOutOfRange,
    InvalidBackward,
    InvalidConfig,
    JournalCorrupt,
    LimitExceeded,
    MissingPackage,
    Overloaded,
    PermissionDenied,
    ReadOnlyStorage,
    RequestTooOld,
    RockbedError,
    RowNotFinite,
    ServerError,
    ServerUnavailable,
    StorageClosed,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StoreExists,
    StoreLocked,
    StoreNotFound,
    StorePathInvalid,
    StorePermission,
    TlsFailed,
    Unauthenticated,
    UnknownGroup,
    UnknownHandle,
    UnknownMemory,
    UnknownName,
    WrongDtype,
    WrongShape,
)

if TYPE_CHECKING:
    from rockbed.client.adaptive import AdaptiveEmbedding, AdaptiveReport, AdaptiveRows
    from rockbed.client.connection import Connection
    from rockbed.client.embedding import PyEmbedding
    from rockbed.client.feature import Feature
    from rockbed.client.filter import PyFilter
    from rockbed.client.fused import FusedEmbedding
    from rockbed.client.fused_output import FusedOutput
    from rockbed.client.initializer import PyInitializer
    from rockbed.client.kv_opening import get_kv_variable
    from rockbed.client.kv_variable import KvVariable
    from rockbed.client.multihash import MultiHashVariable, get_multihash_variable, quotient_remainder_dims
    from rockbed.client.optimizer import PyOptimizer
    from rockbed.client.parameters import Parameters
    from rockbed.client.partitioners import (
        fixed_size_partitioner,
        min_max_variable_partitioner,
        variable_axis_size_partitioner,
    )
    from rockbed.client.ragged import Ragged
    from rockbed.client.saver import Saver
    from rockbed.client.sparse import SparseTensor
    from rockbed.client.storage import PyStorage
    from rockbed.client.variable_lookup import embedding_lookup, embedding_lookup_sparse, safe_embedding_lookup_sparse
    from rockbed.client.variable_scope import AUTO_REUSE, variable_scope
    from rockbed.client.variables import get_collection
    from rockbed.server.frequency import BloomFrequency, Frequency

__all__ = [
    "AUTO_REUSE",
    "AdaptiveEmbedding",
    "AdaptiveReport",
    "AdaptiveRows",
    "BloomFrequency",
    "Connection",
    "embedding_lookup",
    "embedding_lookup_sparse",
    "Feature",
    "fixed_size_partitioner",
    "Frequency",
    "FusedEmbedding",
    "FusedOutput",
    "get_collection",
    "get_kv_variable",
    "get_multihash_variable",
    "KvVariable",
    "min_max_variable_partitioner",
    "MultiHashVariable",
    "Parameters",
    "PyEmbedding",
    "PyFilter",
    "PyInitializer",
    "PyOptimizer",
    "PyStorage",
    "quotient_remainder_dims",
    "Ragged",
    "safe_embedding_lookup_sparse",
    "Saver",
    "SparseTensor",
    "variable_axis_size_partitioner",
    "variable_scope",
    # errors
    "BatchTooLarge",
    "DeadlineExceeded",
    "DeviceOutOfMemory",
    "DeviceUnavailable",
    "DimMismatch",
    "DuplicateName",
    "FormatTooNew",
    "GradientNotFinite",
    "GroupConflict",
    "IdOutOfRange",
    "InvalidBackward",
    "InvalidConfig",
    "JournalCorrupt",
    "LimitExceeded",
    "MissingPackage",
    "Overloaded",
    "PermissionDenied",
    "ReadOnlyStorage",
    "RequestTooOld",
    "RockbedError",
    "RowNotFinite",
    "ServerError",
    "ServerUnavailable",
    "StorageClosed",
    "StorageCorrupt",
    "StorageFailed",
    "StorageFull",
    "StoreExists",
    "StoreLocked",
    "StoreNotFound",
    "StorePathInvalid",
    "StorePermission",
    "TlsFailed",
    "Unauthenticated",
    "UnknownGroup",
    "UnknownHandle",
    "UnknownMemory",
    "UnknownName",
    "WrongDtype",
    "WrongShape",
    "__version__",
]

_LAZY = {
    "AUTO_REUSE": "rockbed.client.variable_scope",
    "AdaptiveEmbedding": "rockbed.client.adaptive",
    "AdaptiveReport": "rockbed.client.adaptive",
    "AdaptiveRows": "rockbed.client.adaptive",
    "Connection": "rockbed.client.connection",
    "embedding_lookup": "rockbed.client.variable_lookup",
    "embedding_lookup_sparse": "rockbed.client.variable_lookup",
    "Feature": "rockbed.client.feature",
    "fixed_size_partitioner": "rockbed.client.partitioners",
    "BloomFrequency": "rockbed.server.frequency",
    "Frequency": "rockbed.server.frequency",
    "FusedEmbedding": "rockbed.client.fused",
    "FusedOutput": "rockbed.client.fused_output",
    "get_collection": "rockbed.client.variables",
    "get_kv_variable": "rockbed.client.kv_opening",
    "get_multihash_variable": "rockbed.client.multihash",
    "KvVariable": "rockbed.client.kv_variable",
    "min_max_variable_partitioner": "rockbed.client.partitioners",
    "MultiHashVariable": "rockbed.client.multihash",
    "Parameters": "rockbed.client.parameters",
    "PyEmbedding": "rockbed.client.embedding",
    "PyFilter": "rockbed.client.filter",
    "PyInitializer": "rockbed.client.initializer",
    "PyOptimizer": "rockbed.client.optimizer",
    "PyStorage": "rockbed.client.storage",
    "quotient_remainder_dims": "rockbed.client.multihash",
    "Ragged": "rockbed.client.ragged",
    "safe_embedding_lookup_sparse": "rockbed.client.variable_lookup",
    "Saver": "rockbed.client.saver",
    "SparseTensor": "rockbed.client.sparse",
    "variable_axis_size_partitioner": "rockbed.client.partitioners",
    "variable_scope": "rockbed.client.variable_scope",
}


_LAZY_MODULES = ("feature_column", "torch")  # what they need is loaded when somebody wants it


def __getattr__(name: str) -> Any:
    """Load a name of the client API at its first use (PEP 562)."""
    if name in _LAZY_MODULES:
        return import_module(f"rockbed.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'rockbed' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, those not loaded yet included."""
    return sorted([*__all__, *_LAZY_MODULES])
