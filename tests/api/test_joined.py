"""The gradients of several fused lookups as one push."""

import numpy as np
import pytest

from rockbed import Feature, FusedEmbedding, InvalidConfig, PyStorage, Ragged
from rockbed.bags import Bags
from rockbed.client.joined import OutputGradient, filled, push_together
from rockbed.types import F64
from tests.api.helpers import adagrad, assert_sound, embedding, keys_of, ones
from tests.fused import reference
from tests.fused.cases import Specification, every_feature, random_batch, random_gradients, two_tables


def test_lookups_of_two_fused_embeddings_of_other_sizes_are_one_step_of_the_specified_gradients(
    storage: PyStorage,
) -> None:
    """With Adagrad: two steps would not be one of the sum."""
    random = np.random.default_rng(1)
    features = every_feature(two_tables(storage, optimizer=adagrad()))
    one, two = FusedEmbedding(features[::2]), FusedEmbedding(features[1::2])
    specified = Specification(FusedEmbedding(features), adagrad=True)
    sums: dict[tuple[int, int], F64] = {}
    parts = []
    for fused, size, unsigned in ((one, 30, False), (one, 7, True), (two, 21, False), (one, 12, False)):
        batch = random_batch(random, fused.features, size, unsigned=unsigned)
        out = fused.lookup(batch, keep=True)
        pooled, sequences = random_gradients(random, out)
        parts.append(OutputGradient(out, pooled, sequences))
        for each in fused.features:
            group = each.embedding.group

            def row_of(key: int, group: int = group) -> F64:
                return specified.weights(group, key)

            arriving = sequences[each.name] if each.combiner is None else pooled[:, fused.columns[each.name]]
            for key, gradient in reference.backward(each, batch[each.name], row_of, arriving.astype(np.float64)):
                sums[group, key] = sums.get((group, key), np.zeros(gradient.size)) + gradient
    for (group, key), total in sums.items():
        specified.models[group].step(key, total)
    assert push_together(parts, ("trainer", 1))
    specified.assert_met()
    assert not push_together(parts, ("trainer", 1))
    specified.assert_met()
    assert_sound(storage)


def test_features_without_a_gradient_are_left_out(storage: PyStorage) -> None:
    pooled, sequence = embedding(storage, 2, 1), embedding(storage, 2, 2)
    fused = FusedEmbedding([Feature("a", pooled, "sum"), Feature("s", sequence, None)])
    bags = Ragged.from_lists([[1]])
    out = fused.lookup({"a": bags, "s": bags})
    push_together([OutputGradient(out, None, {"s": ones(1, 2)})])
    push_together([OutputGradient(out, ones(1, 2, 3.0), {})])
    counts = [storage.get_rows(group, keys_of(1)).update_num.tolist() for group in (1, 2)]
    assert counts == [[1], [1]]
    assert pooled.lookup(keys_of(1)).tolist() == [[-1.5, -1.5]]
    assert sequence.lookup(keys_of(1)).tolist() == [[-0.5, -0.5]]


def test_default_keys_are_written_into_bags_that_are_empty_after_pruning() -> None:
    bags = Bags(
        "a",
        1,
        keys_of(-1, 5, 3, 4, -2),
        keys_of(0, 0, 2, 4, 5),
        np.array([1, 1, 0, 2, 1], np.float32),
        default_key=-9,
    )
    full = filled(bags, 5)
    assert full.weights is not None
    assert (full.keys.tolist(), full.offsets.tolist()) == ([-9, -9, 4, -9], [0, 1, 2, 3, 4])
    assert full.weights.tolist() == [1, 1, 2, 1]
    assert (full.default_key, full.negative) == (None, True)


def test_a_default_key_that_is_the_padding_key_cannot_be_written_into_a_bag(storage: PyStorage) -> None:
    table = embedding(storage, 2, 1)
    one = FusedEmbedding([Feature("a", table, default_key=0)])
    table.alter(padding_key=0)
    two = FusedEmbedding([Feature("b", table)])
    outs = [one.lookup({"a": Ragged.from_lists([[1]])}), two.lookup({"b": Ragged.from_lists([[1], [2]])})]
    with pytest.raises(InvalidConfig, match="feature 'a' has the group's padding_key as its default_key"):
        push_together([OutputGradient(out, ones(len(out), 2), {}) for out in outs])
    assert not table.lookup(keys_of(1), train=False).any()
