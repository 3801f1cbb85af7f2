"""PyTorch modules whose rows are in a store: what `rockbed.torch` has."""

from rockbed.client.torch.collection import CollectionOutput, EmbeddingCollection
from rockbed.client.torch.columns import input_layer
from rockbed.client.torch.frozen import FrozenEmbedding, FrozenEmbeddingBag
from rockbed.client.torch.modules import Embedding, EmbeddingBag
from rockbed.client.torch.prefetching import prefetching
from rockbed.client.torch.pushing import Accumulation, accumulate
from rockbed.client.torch.ranks import join_ranks

__all__ = [
    "Accumulation",
    "CollectionOutput",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingCollection",
    "FrozenEmbedding",
    "FrozenEmbeddingBag",
    "accumulate",
    "input_layer",
    "join_ranks",
    "prefetching",
]
