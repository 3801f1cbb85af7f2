"""Rows of a frozen vocabulary as plain modules, for serving without a store: TorchScript, torch.export, ONNX."""

from typing import Any

import numpy as np
import torch
from torch import nn

from rockbed.client.feature import Feature
from rockbed.client.ragged import signed
from rockbed.client.torch.tensors import keys_array
from rockbed.errors import InvalidConfig
from rockbed.types import F32, I64


class FrozenEmbedding(nn.Module):
    """A torch.nn.Embedding, `rows`, with what tells the row of a key: `keys`, int64[n], ascending; that of keys[i] is
    rows.weight[i + 1]. rows.weight[0] is for keys that are not among them. Made by `Embedding.frozen`."""

    def __init__(self, keys: Any, weights: Any) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.rows = nn.Embedding.from_pretrained(weights, freeze=True)
        self.halves = [1 << bit for bit in reversed(range(int(keys.numel()).bit_length()))]

    def index(self, keys: torch.Tensor) -> torch.Tensor:
        """The number of each key's row, 0 for those that have none. keys: int64 of any shape."""
        # A binary search in plain operations: ONNX has none (torch.searchsorted).
        last = self.keys.size(0) - 1
        at = torch.zeros_like(keys)
        for half in self.halves:
            there = at + half
            below = (there <= last) & (self.keys[there.clamp(max=last)] <= keys)
            at = torch.where(below, there, at)
        return torch.where(self.keys[at] == keys, at + 1, torch.zeros_like(at))

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """keys: int64 of any shape, the bits of uint64 ones. Returns [*keys.shape, dim]."""
        return self.rows(self.index(keys))


class FrozenEmbeddingBag(nn.Module):
    """The bags of a FrozenEmbedding, `rows`, combined as those of the EmbeddingBag that it is of. Made by
    `EmbeddingBag.frozen`."""

    def __init__(self, rows: FrozenEmbedding, feature: Feature) -> None:
        super().__init__()
        padding = feature.embedding.config.padding_key
        self.rows = rows
        self.combiner = str(feature.combiner)
        self.prune_negative = feature.prune_negative
        self.padded = padding is not None
        self.padding_key = 0 if padding is None else signed(padding)
        self.filled = feature.default_key is not None
        self.default_key = 0 if feature.default_key is None else signed(feature.default_key)

    def forward(self, keys: torch.Tensor, per_sample_weights: torch.Tensor | None = None) -> torch.Tensor:
        """keys: int64[B, L]. per_sample_weights: float32[B, L]. Returns [B, dim]."""
        kept = torch.ones_like(keys) > 0
        if self.prune_negative:
            kept = kept & (keys >= 0)
        if self.padded:
            kept = kept & (keys != self.padding_key)
        rows = self.rows(keys)
        if per_sample_weights is None:
            weights = kept.to(rows.dtype)
        else:
            if self.combiner != "sum":
                kept = kept & (per_sample_weights > 0)
            weights = torch.where(kept, per_sample_weights, torch.zeros_like(per_sample_weights)).to(rows.dtype)
        pooled = (rows * weights.unsqueeze(-1)).sum(dim=1)
        empty = (kept.sum(dim=1) == 0).unsqueeze(-1)
        if self.combiner == "mean":
            pooled = pooled / torch.where(empty, torch.ones_like(pooled), weights.sum(dim=1, keepdim=True))
        elif self.combiner == "sqrtn":
            norm = (weights * weights).sum(dim=1, keepdim=True).sqrt()
            pooled = pooled / torch.where(empty, torch.ones_like(pooled), norm)
        if self.filled:
            default = self.rows(torch.zeros_like(keys[:, :1]) + self.default_key)[:, 0]
            pooled = torch.where(empty, default, pooled)
        return pooled


def frozen_rows(feature: Feature, keys: Any, dtype: Any) -> FrozenEmbedding:
    """The rows of keys as they are now, scaled to the feature's max_norm. keys: int64 or uint64, in any order.

    Raises WrongDtype; InvalidConfig without keys, and where a key without a row gives what it would begin with.
    """
    config = feature.embedding.config
    if isinstance(config.miss_value, str):
        raise InvalidConfig(
            f"group {config.group} has miss_value={config.miss_value!r}, another row for each key that has none: a "
            "frozen vocabulary has one for all of them; open the group with a number for miss_value"
        )
    wanted = keys_array("keys", keys).reshape(-1).view(np.int64)
    needed = [signed(key) for key in (config.padding_key, feature.default_key) if key is not None]  # by bags
    vocabulary: I64 = np.unique(np.concatenate([wanted, np.array(needed, np.int64)]))
    if vocabulary.size == 0:
        raise InvalidConfig("there are no keys to freeze: give one at least")
    found = feature.embedding.lookup(vocabulary, train=False)
    missing = np.full((1, feature.embedding.dim), config.miss_value, np.float32)
    rows: F32 = np.concatenate([missing, found])
    if feature.max_norm is not None:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.where(norms > feature.max_norm, rows * (feature.max_norm / np.maximum(norms, 1e-30)), rows)
    weights = torch.from_numpy(rows.astype(np.float32)).to(dtype)
    return FrozenEmbedding(torch.from_numpy(vocabulary), weights)
