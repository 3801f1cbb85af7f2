"""Sequences as rectangles of tensors: what rockbed.client.padding does, on either device, and torch can go back."""

from typing import Any

import torch


def padded(rows: Any, offsets: Any, length: int | None, keep: str) -> tuple[Any, Any]:
    """rows: [nnz, dim]; offsets: int64[B + 1], on the same device; length, keep: checked, see rockbed.client.padding.

    Returns [B, L, dim], zeros where there is no key, and bool[B, L], where there is one. With a length nothing of the
    device is waited for.
    """
    sizes = offsets.diff()
    bags, keys = len(sizes), len(rows)
    wide = length if length is not None else int(sizes.max()) if bags else 0
    bag = torch.repeat_interleave(sizes, output_size=keys)
    column = torch.arange(keys, device=rows.device) - offsets[bag]
    if keep == "last":
        column = column - (sizes - wide).clamp(min=0)[bag]
    # what is left out goes to one more row, from which no gradient comes
    at = torch.where((column >= 0) & (column < wide), bag * wide + column, bags * wide)
    out = rows.new_zeros(bags * wide + 1, rows.shape[1]).index_copy(0, at, rows)
    mask = torch.arange(wide, device=rows.device) < sizes[:, None]
    return out[:-1].view(bags, wide, rows.shape[1]), mask
