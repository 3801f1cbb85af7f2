"""damo-embedding's PyTorch names: a model that uses them runs with one changed import.

    from rockbed.compat.damo_embedding import Embedding, save_model  # was: from damo_embedding import ...

The calls are those of damo-embedding 1.1.12 (https://pypi.org/project/damo-embedding) without its HTTP service: rows
are in a store in this process, or on a server of Rockbed. As there, gradients are divided by the size of the batch, and
key 0 stands for nothing. What differs: a key has one first value whatever the batch, pushes are durable when backward()
returns, and what cannot be is an error.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.errors import GroupConflict, InvalidConfig, UnknownGroup, WrongShape
from rockbed.extras import extra
from rockbed.types import F32, I64

with extra("torch"):
    import torch
    from torch import nn

    from rockbed.client.torch import Embedding as Rows

DIRECTORY, TTL_S = "./embeddings", 8_640_000  # where nobody calls damo_embedding_init
_PADDING_KEY = 0
_MODEL, _ROWS = "model.pt", "rows"  # in the directory of save_model
_HEADER_BYTES = 20  # of a dump of one group: see PyStorage.dump


@dataclass
class _Session:
    """The store that all embeddings of this process are in, and their groups as they have been opened."""

    storage: PyStorage | None = None
    groups: dict[int, tuple[Any, Rows]] = field(default_factory=dict)
    next_group: int = 0

    def opened(self) -> PyStorage:
        if self.storage is None:
            self.storage = PyStorage(DIRECTORY, TTL_S)
        return self.storage

    def rows_of(self, group: int) -> Rows:
        if group not in self.groups:
            raise UnknownGroup(f"no embedding of group {group} has been used: {sorted(self.groups)} have")
        return self.groups[group][1]


_session = _Session()


class Embedding(nn.Module):
    """The rows of a group. `Embedding(8)(keys)` is float32[B, n, 8] for int64 keys [B, n]; its gradient, divided by B,
    is pushed by the backward pass."""

    def __init__(
        self,
        dim: int,
        initializer: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        group: int = -1,
    ) -> None:
        """initializer, optimizer: {"name": ..., ...} with the parameters of docs/rules.md; without, zeros and sgd.
        group: -1 takes the next number, from 0. The group is opened when it is first used."""
        super().__init__()
        self.dim = dim
        self.initializer = dict(initializer or {})
        self.optimizer = dict(optimizer or {})
        if group == -1:
            group = _session.next_group
        _session.next_group = max(_session.next_group, group + 1)
        self.group = group

    def forward(self, keys: Any) -> Any:
        """keys: int64[B, n], on the CPU. Returns float32[B, n, dim]; zeros for key 0.

        Raises what rockbed.torch.Embedding raises, and GroupConflict for a group that was used with other settings.
        """
        rows = self.opened()
        if not isinstance(keys, torch.Tensor) or keys.ndim != 2:
            raise WrongShape(f"keys must be a tensor [B, n], not {getattr(keys, 'shape', type(keys).__name__)}")
        found = rows.train(self.training)(keys)
        if found.requires_grad and len(keys):
            found.register_hook(lambda gradient: gradient / len(keys))
        return found

    def opened(self) -> Rows:
        """The group, opened in the store of this process."""
        settings = (self.dim, self.initializer, self.optimizer)
        if self.group not in _session.groups:
            table = PyEmbedding(
                _session.opened(),
                PyOptimizer(self.optimizer) if self.optimizer else PyOptimizer(),
                PyInitializer(self.initializer) if self.initializer else PyInitializer(),
                self.dim,
                self.group,
                padding_key=_PADDING_KEY,
            )
            _session.groups[self.group] = (settings, Rows(table))
        opened_with, rows = _session.groups[self.group]
        if opened_with != settings:
            raise GroupConflict(f"group {self.group} is in use as {opened_with}, this embedding is {settings}")
        return rows

    def extra_repr(self) -> str:
        return f"dim={self.dim}, group={self.group}, optimizer={self.optimizer}, initializer={self.initializer}"


def damo_embedding_init(model: Any, ttl: float, dir: str, reload: str = "") -> None:
    """Open the store of this process, and in it the groups of a model's embeddings.

    ttl: seconds that a row lives after its last update, 0 = for ever. dir: a directory, or a server's grpc://HOST:PORT
    (then ttl must be 0: the server has its own). reload: a checkpoint to make the store from, which is not there yet.
    Raises InvalidConfig where a store is open, and what PyStorage raises.
    """
    if _session.storage is not None:
        raise InvalidConfig(f"{_session.storage!r} is open: call damo_embedding_close before another is")
    if reload:
        PyStorage.restore(reload, dir)
    _session.storage = PyStorage(dir, ttl)
    for each in model.modules():
        if isinstance(each, Embedding):
            each.opened()


def damo_embedding_close() -> None:
    """Close the store. May be called twice."""
    if _session.storage is not None:
        _session.storage.close()
    _session.storage = None
    _session.groups.clear()


def pull(group: int, keys: I64, weights: F32) -> None:
    """Fill `weights`, float32[n * dim], with the rows of keys, int64[n]. The group's embedding has been used."""
    _session.rows_of(group).embedding.lookup(keys, weights)


def push(step_control: int, group: int, keys: I64, gradients: F32) -> None:
    """Update the rows of keys with gradients, float32[n * dim].

    step_control: trainer << 32 | step. Where the step is 1 or more, a trainer's push that repeats one for the group is
    acknowledged and not applied again.
    """
    trainer, step = step_control >> 32, step_control & 0xFFFFFFFF
    request = (f"damo-{trainer}-{group}", step) if step else None
    _session.rows_of(group).embedding.apply_gradients(keys, gradients, request=request)


def checkpoint(dir: str) -> None:
    """Write a checkpoint of all rows: PyStorage.checkpoint."""
    _session.opened().checkpoint(dir)


def dump(dir: str) -> None:
    """Write the weights of all rows to a file: PyStorage.dump."""
    _session.opened().dump(dir)


def save_model(model: Any, output_dir: str, training: bool = True) -> None:
    """Save a model to a directory, which is made.

    training: with everything that going on takes: the model, pickled, and a checkpoint of the rows ("rows"). Otherwise
    as one TorchScript file, "model.pt", that holds the rows as they are and needs nothing of Rockbed; for a store in a
    directory only, and as large as its rows.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if training:
        checkpoint(str(folder / _ROWS))
        torch.save(model, folder / _MODEL)
        return
    with _frozen(model):
        torch.jit.script(model).save(str(folder / _MODEL))


def load_model(dir: str) -> Any:
    """A model that was saved for training. What it was pickled from is executed: load what you trust.

    Its rows take the place of those in the store that is open; where none is, damo_embedding_init takes them with
    reload=f"{dir}/rows".
    """
    model = torch.load(Path(dir) / _MODEL, weights_only=False)
    if _session.storage is not None:
        _session.storage.restore_from(Path(dir) / _ROWS)
    return model


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Within it, rows of the model are tensors of its own."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Embedding)
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, child.opened().frozen(torch.from_numpy(_keys_of(child.group, child.dim))))
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _keys_of(group: int, dim: int) -> I64:
    """All keys of a group that have a row."""
    record = np.dtype([("key", "<i8"), ("group", "<i4"), ("weights", "<f4", (dim,))])
    with tempfile.TemporaryDirectory(prefix="rockbed-save-") as folder:
        path = os.path.join(folder, "dump")
        _session.opened().dump(path, {"group": group})
        keys: I64 = np.fromfile(path, record, offset=_HEADER_BYTES)["key"].copy()
    return keys
