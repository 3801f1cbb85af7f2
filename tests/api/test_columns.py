"""Feature columns: ids in all their forms, pruned and combined, plain, fused and adaptive, and one push for all."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rockbed import (
    Frequency,
    InvalidBackward,
    InvalidConfig,
    PyInitializer,
    PyStorage,
    Ragged,
    SparseTensor,
    UnknownGroup,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from rockbed import feature_column as fc
from rockbed.client.hashing import hash_buckets
from rockbed.types import F32, F64
from tests.api.helpers import Clock, OpenStorage, adagrad, keys_of, ones, sgd, uniform, zeros

SGD = sgd(1.0)


def column(key: str = "item", dim: int = 2, *, ev_option: Any = None, dtype: Any = np.int64, **options: Any) -> Any:
    categorical = fc.categorical_column_with_embedding(key, dtype, ev_option=ev_option)
    return fc.embedding_column(categorical, dim, **{"initializer": zeros(), **options})


def adaptive(
    key: str = "item", dim: int = 2, *, buckets: int = 100, ev_option: Any = None, dtype: Any = np.int64, **options: Any
) -> Any:
    categorical = fc.categorical_column_with_adaptive_embedding(key, buckets, dtype, ev_option=ev_option)
    return fc.embedding_column(categorical, dim, **{"initializer": zeros(), **options})


def layer(storage: PyStorage, columns: Any, features: Any, masks: Any = None, **options: Any) -> Any:
    features = features if isinstance(features, dict) else {"item": features}
    given = {"optimizer": SGD, **options}
    return fc.input_layer(features, columns, masks, storage=storage, **given)


def train(
    storage: PyStorage, columns: Any, features: Any, masks: Any = None, value: float = 1.0, **options: Any
) -> Any:
    out = layer(storage, columns, features, masks, **options)
    out.apply_gradients(np.full(out.shape, value, np.float32))
    return out


BAGS = [[1, 2], [], [3], [-1, 2, -5, 4], [-7]]
MASK = [1, 0, 1, 1, 0, 1, 1, 0]
FORMS = {
    "sparse": SparseTensor(
        np.array([[0, 0], [0, 1], [2, 0], [3, 0], [3, 1], [3, 2], [3, 3], [4, 0]]),
        np.array([1, 2, 3, -1, 2, -5, 4, -7]),
        [5, 4],
    ),
    "ragged": Ragged.from_lists(BAGS),
    "padded": np.array([bag + [-1] * (4 - len(bag)) for bag in BAGS]),
}
PADDED_MASK = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]], np.int32)


def combined(rows: dict[int, F64], combiner: str, max_norm: float | None, dim: int) -> F64:
    """What BAGS give, by the formulas."""
    out = np.zeros((len(BAGS), dim))
    for i, bag in enumerate(BAGS):
        found = [rows[key] for key in bag if key >= 0]
        if max_norm is not None:
            found = [row * min(1.0, max_norm / float(np.linalg.norm(row))) for row in found]
        if found:
            divisor = {"sum": 1, "mean": len(found), "sqrtn": math.sqrt(len(found))}[combiner]
            out[i] = np.sum(found, axis=0) / divisor
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("kind", ["plain", "fused", "adaptive"])
def test_bags_are_pruned_and_combined(
    storage: PyStorage, form: str, combiner: str, max_norm: float | None, kind: str
) -> None:
    make = adaptive if kind == "adaptive" else column
    one = make(dim=3, combiner=combiner, max_norm=max_norm, initializer=uniform())
    one.use_fused_lookup = kind == "fused"
    masks = {"item": PADDED_MASK if form == "padded" else MASK} if kind == "adaptive" else None
    mask_of = {1: 1, 2: 0, 3: 1, 4: 1}  # of the ids that are left; in the fourth bag, the 2 stands before its -5
    rows = one.open(storage, SGD)
    keys = np.array(list(mask_of))

    def values() -> F32:
        if kind == "adaptive":
            return np.asarray(rows.lookup(keys, list(mask_of.values())).rows)
        return rows.lookup(keys)  # type: ignore[no-any-return]

    before = dict(zip(mask_of, values().astype(np.float64), strict=True))
    out = layer(storage, one, FORMS[form], masks)
    np.testing.assert_allclose(out, combined(before, combiner, max_norm, 3), rtol=0, atol=1e-6)
    grads = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
    out.apply_gradients(grads)
    after = dict(zip(mask_of, values().astype(np.float64), strict=True))
    if kind == "adaptive":  # ids 1 to 4 have buckets of their own, so rows are as apart as they are for plain columns
        assert np.unique(hash_buckets(keys, 100)).size == keys.size
    for key in mask_of:  # by central differences of what was returned, in float64
        wanted = np.zeros(3)
        for j in range(3):
            moved = [{**before, key: before[key] + step * np.eye(3)[j]} for step in (1e-6, -1e-6)]
            high, low = (combined(each, combiner, max_norm, 3) for each in moved)
            wanted[j] = ((high - low) * grads).sum() / 2e-6
        np.testing.assert_allclose(before[key] - after[key], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "fused"])
def test_weights_are_for_plain_columns(storage: PyStorage, name: str) -> None:
    one = column()
    one.use_fused_lookup = name == "fused"
    one.open(storage, SGD).apply_gradients(keys_of(1, 2), -ones(2, 2) * np.array([[1], [2]], np.float32))
    bags = Ragged.from_lists([[1, 2], [1, 2]], [[3.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(layer(storage, one, bags)[:, 0], np.array([1.25, 2]), rtol=1e-6)
    with pytest.raises(InvalidConfig, match="column 'item': it is adaptive and takes no weights"):
        layer(storage, adaptive(name="other"), bags, {"item": [0] * 4})


def test_one_id_a_sample_and_strings(storage: PyStorage) -> None:
    words, tags = column("word", dtype=str), adaptive("tag", dtype=str, threshold=Frequency(enter=2))
    features = {"word": np.array(["a", "b", "a"]), "tag": np.array([["x", ""], ["x", "y"], ["", ""]])}
    train(storage, [words, tags], features)
    out = layer(storage, [words, tags], features)
    # a word has the sum of its gradients; of tags, "x" was frequent at once, with 1 and 1/2; "y" has 1/2
    np.testing.assert_array_equal(out[:, 0], [-2, -1, -2])
    np.testing.assert_array_equal(out[:, 2], [-1.5, -1, 0])


def test_strings_may_be_lists_padded_to_one_length(storage: PyStorage) -> None:
    each = column(dim=1, dtype=str, combiner="sum", initializer=PyInitializer(name="ones"))
    out = layer(storage, each, [["red", "shoe"], ["hat", ""]])
    np.testing.assert_array_equal(out, [[2], [1]])


def test_a_mask_has_the_shape_of_the_ids_or_one_axis(storage: PyStorage) -> None:
    ids, mask = [[1, 2], [3, 4], [5, -1]], [[1, 0], [0, 1], [1, 1]]
    each = adaptive(dim=1, combiner="sum")
    for given in (mask, np.array(mask), np.array(mask).reshape(6, 1), np.array(mask).reshape(-1).tolist()):
        train(storage, each, ids, {"item": given})
    exact = storage.names()["item_embedding/exact"]
    assert storage.get_rows(exact, np.arange(1, 7)).update_num.tolist() == [4, 0, 0, 4, 4, 0]
    with pytest.raises(WrongShape, match=r"each of the 6 ids, not int64\[2, 3\]"):
        layer(storage, each, np.array(ids), {"item": np.array(mask).reshape(2, 3)})


@pytest.mark.parametrize("kind", ["plain", "fused", "adaptive"])
def test_the_callers_arrays_may_change_before_the_gradient(storage: PyStorage, kind: str) -> None:
    each = adaptive() if kind == "adaptive" else column()
    each.use_fused_lookup = kind == "fused"
    ids = np.array([1, 2])
    out = layer(storage, each, ids, {"item": [1, 1]} if kind == "adaptive" else None)
    ids[:] = 7
    out.apply_gradients(np.ones_like(out))
    rows = storage.get_rows(storage.names()["item_embedding" + "/exact" * (kind == "adaptive")], np.array([1, 2]))
    assert rows.update_num.tolist() == [1, 1]


def test_a_column_whose_rows_are_gone_begins_anew(storage: PyStorage, tmp_path: Path) -> None:
    each = column()
    storage.checkpoint(tmp_path / "empty")
    train(storage, each, keys_of(1))
    storage.drop_group(storage.names()["item_embedding"])
    np.testing.assert_array_equal(train(storage, each, keys_of(1)), [[0, 0]])
    storage.restore_from(tmp_path / "empty")
    np.testing.assert_array_equal(train(storage, each, keys_of(1)), [[0, 0]])


def test_columns_stand_side_by_side_and_share_one_push(storage: PyStorage) -> None:
    fused, plain, mixed = column("a", 1), column("b", 2), adaptive("c", 3, max_norm=99.0)
    fused.use_fused_lookup = True
    features = {"a": keys_of(1, 2), "b": keys_of(1, 1), "c": keys_of(5, 6)}
    parts: dict[Any, Any] = {}
    out = layer(storage, [fused, plain, mixed], features, {"c": [1, 0]}, cols_to_output_tensors=parts)
    assert out.shape == (2, 6)
    assert [parts[each].shape for each in (fused, plain, mixed)] == [(2, 1), (2, 2), (2, 3)]
    lsn = storage.stats()["last_lsn"]
    assert out.apply_gradients(np.arange(12, dtype=np.float32).reshape(2, 6), ("trainer", 1)) is True
    assert storage.stats()["last_lsn"] == lsn + 1
    assert storage.last_request("trainer") == 1
    again = layer(storage, [fused, plain, mixed], features, {"c": [1, 0]})
    np.testing.assert_array_equal(again, [[0, -8, -10, -3, -4, -5], [-6, -8, -10, -9, -10, -11]])
    assert again.apply_gradients(np.ones((2, 6), np.float32), ("trainer", 1)) is False


def test_fused_columns_are_looked_up_in_one_call(storage: PyStorage) -> None:
    columns = [column(name) for name in "abc"]
    for each in columns:
        each.use_fused_lookup = True
    features = {name: keys_of(i, i + 1) for i, name in enumerate("abc")}
    train(storage, columns, features, value=2.0)
    np.testing.assert_array_equal(layer(storage, columns, features), np.full((2, 6), -2.0))


def test_two_columns_may_share_their_rows(storage: PyStorage) -> None:
    for fuse in (False, True):
        name = f"shared {fuse}"
        both = [column("a", name=name), column("b", name=name)]
        for each in both:
            each.use_fused_lookup = fuse
        train(storage, both, {"a": keys_of(1, 2), "b": keys_of(2, 3)})
        out = layer(storage, both, {"a": keys_of(1, 2), "b": keys_of(2, 3)})
        np.testing.assert_array_equal(out[:, [0, 2]], [[-1, -2], [-2, -1]])


def test_without_training_nothing_is_made(storage: PyStorage) -> None:
    columns = [column("a"), adaptive("b")]
    out = layer(storage, columns, {"a": keys_of(1), "b": keys_of(1)}, {"b": [1]}, train=False)
    assert storage.stats()["rows"] == 0
    with pytest.raises(InvalidBackward, match="train=False"):
        out.apply_gradients(np.ones(out.shape, np.float32))


def test_a_gradient_is_taken_once(storage: PyStorage) -> None:
    fused = column("a")
    fused.use_fused_lookup = True
    columns = [fused, adaptive("b")]
    out = train(storage, columns, {"a": keys_of(1), "b": keys_of(1)}, {"b": [1]})
    with pytest.raises(InvalidBackward, match="look up again"):
        out.apply_gradients(np.ones(out.shape, np.float32))
    with pytest.raises(WrongShape):
        layer(storage, columns, {"a": keys_of(1), "b": keys_of(1)}, {"b": [1]}).apply_gradients(ones(1, 3))


def test_rows_begin_as_tensorflows_unless_told(storage: PyStorage) -> None:
    rule = fc.embedding_column(fc.categorical_column_with_embedding("item"), 16).initializer.rule
    assert (rule.name, rule.params()["stddev"]) == ("truncate_normal", 0.25)
    own = fc.EmbeddingVariableOption(init_option=fc.InitializerOption(uniform()))
    one = fc.embedding_column(fc.categorical_column_with_embedding("item", ev_option=own), 4)
    assert one.initializer.rule.name == "random_uniform"
    assert layer(storage, one, keys_of(1)).any()


# --- options ---


def option(**given: Any) -> Any:
    return fc.EmbeddingVariableOption(**given)


@pytest.mark.parametrize(
    "of", [fc.CounterFilter(3), fc.CBFFilter(3, 1000, 0.01), fc.CBFFilter(3, counter_type=np.uint8)]
)
def test_a_filter_admits_ids_at_their_third_occurrence(storage: PyStorage, of: Any) -> None:
    init = fc.InitializerOption(default_value_no_permission=0.5)
    one, other = (
        column(ev_option=option(filter_option=of, init_option=init)),
        adaptive("tag", ev_option=option(filter_option=of)),
    )
    features = {"item": keys_of(1, 1), "tag": keys_of(1, 1)}
    out = train(storage, [one, other], features, {"tag": [1, 1]})
    np.testing.assert_array_equal(out, [[0.5, 0.5, 0, 0]] * 2)
    out = train(storage, [one, other], features, {"tag": [1, 1]})
    np.testing.assert_array_equal(out, [[0, 0, -2, -2]] * 2)  # the exact row begins as the bucket's row
    assert storage.stats()["groups"][storage.names()["tag_embedding/exact"]]["rows"] == 1


def test_steps_to_live(storage: PyStorage) -> None:
    ev_option = option(evict_option=fc.GlobalStepEvict(5))
    for name, one, masks in (("plain", column, None), ("tag", adaptive, {"item": [1]})):
        each = one(ev_option=ev_option, name=name)
        for step in range(1, 11):
            train(storage, each, keys_of(step), masks, global_step=step)
        group = storage.names()[name if masks is None else f"{name}/exact"]
        assert each.evict(storage, 5) == 0
        assert each.evict(storage, 8) == 2  # 8 - 2 > 5
        assert each.evict(storage, 8) == 0
        report = storage.get_rows(group, np.arange(1, 11))
        assert (
            report.status.tolist() == [3] * 2 + [0] * 8 or (report.update_num > 0).tolist() == [False] * 2 + [True] * 8
        )
        with pytest.raises(InvalidConfig, match="give the global_step of this batch"):
            layer(storage, each, keys_of(1), masks)
        with pytest.raises(InvalidConfig, match="evict takes a global_step"):
            each.evict(storage)


def test_steps_are_known_after_a_restart(open_storage: OpenStorage) -> None:
    each = column(ev_option=option(evict_option=fc.GlobalStepEvict(2)))
    with open_storage() as storage:
        for step in range(1, 4):
            train(storage, each, keys_of(step), global_step=step)
    with open_storage() as storage:
        train(storage, each, keys_of(4), global_step=4)
        assert each.evict(storage, 5) == 2
        assert each.open(storage, SGD).lookup(np.arange(1, 5), train=False)[:, 0].tolist() == [0, 0, -1, -1]


def test_steps_at_which_nothing_was_pushed_pass_too(storage: PyStorage) -> None:
    each = column(ev_option=option(evict_option=fc.GlobalStepEvict(5)))
    train(storage, each, keys_of(7), global_step=1)
    train(storage, each, keys_of(8), global_step=10)
    assert each.evict(storage, 6) == 0
    assert each.evict(storage, 10) == 1  # 10 - 1 > 5
    assert each.evict(storage, 15) == 0
    assert each.evict(storage, 16) == 1  # though there was no push after step 10


def test_a_push_is_of_the_step_of_its_batch(storage: PyStorage) -> None:
    each = column(ev_option=option(evict_option=fc.GlobalStepEvict(5)))
    first = layer(storage, each, keys_of(7), global_step=1)
    second = layer(storage, each, keys_of(8), global_step=10)  # looked up ahead
    layer(storage, each, keys_of(8), train=False, global_step=99)
    first.apply_gradients(np.ones_like(first))
    second.apply_gradients(np.ones_like(second))
    assert each.evict(storage, 10) == 1


def test_rows_of_small_weights_go(storage: PyStorage) -> None:
    each = column(ev_option=option(evict_option=fc.L2WeightEvict(0.5)))  # sum(w^2) < 1
    with pytest.raises(UnknownGroup, match="no rows"):
        each.evict(storage)
    rows = each.open(storage, SGD)
    rows.apply_gradients(keys_of(1, 2, 3), np.array([[0.9, 0.3], [1, 0], [2, 2]], np.float32))
    assert each.evict(storage) == 1
    assert rows.lookup(keys_of(1, 2, 3), train=False).any(axis=1).tolist() == [False, True, True]


def test_rows_live_for_a_time(open_storage: OpenStorage, clock: Clock) -> None:
    storage = open_storage(clock=clock)
    each = column(ev_option=option(evict_option=fc.TimeEvict(10)))
    train(storage, each, keys_of(1))
    clock.now += 10
    assert not layer(storage, each, keys_of(1), train=False).any()
    with pytest.raises(InvalidConfig, match="expire by themselves"):
        each.evict(storage)


def test_storage_size_is_what_the_storage_must_have(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=1 << 20)
    fits = option(storage_option=fc.StorageOption("DRAM_SSDHASH", storage_size=[1 << 20]))
    train(storage, column(ev_option=fits), keys_of(1))
    more = option(storage_option=fc.StorageOption(storage_size=[1 << 30]))
    with pytest.raises(InvalidConfig, match="memory_budget of 1048576"):
        layer(storage, column(ev_option=more, name="other"), keys_of(1))


BAD: list[tuple[Any, str]] = [
    (lambda: fc.CounterFilter(-1), "filter_freq"),
    (lambda: fc.CBFFilter(3, 100), "go together"),
    (lambda: fc.CBFFilter(3, 0, 0.1), "go together"),
    (lambda: fc.CBFFilter(300, counter_type=np.uint8), "counters of uint8|uint8 counters stop at 255"),
    (lambda: fc.CBFFilter(3, counter_type=np.int64), "not an unsigned"),
    (lambda: fc.CBFFilter(1 << 20, 100, 0.1), "65535"),
    (lambda: fc.GlobalStepEvict(0), "steps_to_live"),
    (lambda: fc.L2WeightEvict(-1.0), "l2_weight_threshold"),
    (lambda: fc.TimeEvict(0), "seconds"),
    (lambda: fc.InitializerOption(default_value_dim=4096), "default_value_dim"),  # type: ignore[arg-type]
    (lambda: fc.InitializerOption("zeros"), "not a PyInitializer"),  # type: ignore[arg-type]
    (lambda: fc.StorageOption("HBM"), "storage_type"),
    (lambda: fc.StorageOption(storage_path="/x"), "storage_path"),  # type: ignore[arg-type]
    (lambda: fc.StorageOption(cache_strategy="LFU"), "cache_strategy"),  # type: ignore[arg-type]
    (lambda: fc.StorageOption(storage_size=[1, 2]), "storage_size"),
    (lambda: option(filter_option=fc.TimeEvict(3)), "filter_option is a TimeEvict"),
    (lambda: fc.categorical_column_with_embedding("a", partition_num=2), "partition_num"),
    (lambda: fc.categorical_column_with_embedding("a", np.float32), "key_dtype"),
    (lambda: fc.categorical_column_with_embedding(""), "key"),
    (lambda: fc.categorical_column_with_embedding("a", ev_option=3), "ev_option"),  # type: ignore[arg-type]
    (lambda: adaptive(buckets=0), "hash_bucket_size"),
    (
        lambda: adaptive(ev_option=option(init_option=fc.InitializerOption(default_value_no_permission=1.0))),
        "default_value_no_permission",
    ),
    (lambda: column(combiner="max"), "combiner is 'max'"),
    (lambda: column(max_norm=0.0), "max_norm"),
    (lambda: column(dim=0), "dimension"),
    (lambda: column(initializer="zeros"), "not a PyInitializer"),
    (lambda: column(ev_option=option(init_option=fc.InitializerOption(zeros()))), "give one of them"),
    (lambda: column(slots="copy"), "adaptive"),
    (lambda: adaptive(slots="some"), "slots is 'some', not one of 'copy', 'fresh'"),
    (lambda: adaptive(threshold=3), "threshold is 3, not a Frequency"),
    (lambda: setattr(adaptive(), "use_fused_lookup", True), "is adaptive"),
    (lambda: setattr(column(), "use_fused_lookup", 1), "use_fused_lookup is 1"),
]


@pytest.mark.parametrize(("make", "said"), BAD)
def test_what_cannot_be_is_said(make: Any, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        make()


def test_batches_that_cannot_be(storage: PyStorage) -> None:
    plain, masked = column("a"), adaptive("b")
    both = {"a": keys_of(1, 2), "b": keys_of(1, 2)}
    calls: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (plain, {"b": keys_of(1)}, None, UnknownName, "there is no feature 'a', only 'b'"),
        ([], both, None, InvalidConfig, "no feature_columns"),
        ([plain, "b"], both, None, WrongDtype, "not a str"),
        (masked, both, None, InvalidConfig, "column 'b': it is adaptive, and adaptive_mask_tensors has no mask"),
        (masked, both, {"b": [1]}, WrongShape, "column 'b': a mask must have a value for each of the 2 ids"),
        (masked, both, {"b": [1, 2]}, InvalidConfig, "column 'b': a mask holds 2"),
        (masked, both, {"b": ones(2)[:, 0]}, WrongDtype, "integers of 0 and 1"),
        ([plain, masked], both, {"a": [1, 0]}, UnknownName, "'a' is no key of an adaptive column"),
        (masked, both, [1, 0], WrongDtype, "dict of masks"),
        ([plain, masked], {"a": keys_of(1), "b": keys_of(1, 2)}, {"b": [1, 1]}, WrongShape, "as many samples"),
        (plain, {"a": np.array(["x"])}, None, WrongDtype, "column 'a': .*ids must be int64"),
        (plain, {"a": np.array([1.5])}, None, WrongDtype, "ids must be int64"),
        (plain, {"a": np.ones((1, 1, 1), np.int64)}, None, WrongShape, "ids have one axis, or two"),
    ]
    for columns, features, masks, error, said in calls:
        with pytest.raises(error, match=said):
            layer(storage, columns, features, masks)
    with pytest.raises(WrongDtype, match="a column is opened in a PyStorage"):
        layer("here", plain, both)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="train is 1"):
        layer(storage, plain, both, train=1)
    assert storage.stats()["rows"] == 0


def test_a_column_of_another_optimizer_is_a_conflict(storage: PyStorage) -> None:
    one = column()
    train(storage, one, keys_of(1))
    with pytest.raises(Exception, match="sgd"):
        layer(storage, one, keys_of(1), optimizer=adagrad())
