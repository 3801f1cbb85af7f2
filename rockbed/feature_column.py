"""Feature columns with the names of DeepRec's and TensorFlow's: docs/adaptive.md."""

from rockbed.client.columns import (
    CategoricalColumn,
    EmbeddingColumn,
    categorical_column_with_adaptive_embedding,
    categorical_column_with_embedding,
    embedding_column,
)
from rockbed.client.input_layer import input_layer
from rockbed.client.variable_options import (
    CBFFilter,
    CounterFilter,
    EmbeddingVariableOption,
    GlobalStepEvict,
    InitializerOption,
    L2WeightEvict,
    StorageOption,
    TimeEvict,
)
from rockbed.server.frequency import BloomFrequency, Frequency

__all__ = [
    "BloomFrequency",
    "CBFFilter",
    "CategoricalColumn",
    "CounterFilter",
    "EmbeddingColumn",
    "EmbeddingVariableOption",
    "Frequency",
    "GlobalStepEvict",
    "InitializerOption",
    "L2WeightEvict",
    "StorageOption",
    "TimeEvict",
    "categorical_column_with_adaptive_embedding",
    "categorical_column_with_embedding",
    "embedding_column",
    "input_layer",
]
