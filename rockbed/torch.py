"""PyTorch modules whose rows are in Rockbed: docs/torch.md. `import rockbed` does not load this, or torch."""

from rockbed.extras import extra

with extra("torch"):
    from rockbed.client.torch import (
        Accumulation,
        CollectionOutput,
        Embedding,
        EmbeddingBag,
        EmbeddingCollection,
        FrozenEmbedding,
        FrozenEmbeddingBag,
        accumulate,
        input_layer,
        join_ranks,
        prefetching,
    )

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
