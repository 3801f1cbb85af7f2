"""What the modules give, in which mode, and what they refuse."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import (  # noqa: E402
    Connection,
    Feature,
    GroupConflict,
    InvalidBackward,
    InvalidConfig,
    PermissionDenied,
    PyStorage,
    Ragged,
    ReadOnlyStorage,
    StorageClosed,
    UnknownName,
    WrongDtype,
    WrongShape,
)
from tests.api.helpers import OpenStorage, embedding, run_python, uniform  # noqa: E402
from tests.server.served import Server  # noqa: E402
from tests.torch.helpers import plain, rows, tensor  # noqa: E402

pytestmark = pytest.mark.torch

ONE = (tensor(1), tensor(0, 1))


# --- what is given ---


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 3)])
def test_embedding_takes_keys_of_any_shape_and_value(storage: PyStorage, shape: tuple[int, ...]) -> None:
    table = plain(storage, initializer=uniform())
    keys = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.manual_seed(1))
    found = rockbed.torch.Embedding(table)(keys)
    assert found.shape == (*shape, 2)
    assert found.dtype == torch.float32
    assert found.requires_grad
    wanted = table.lookup(keys.reshape(-1).numpy(), train=False).reshape(*shape, 2)
    np.testing.assert_array_equal(found.detach().numpy(), wanted)
    unsigned = rockbed.torch.Embedding(table)(keys.view(torch.uint64))
    np.testing.assert_array_equal(unsigned.detach().numpy(), wanted)


def test_embedding_scales_rows_down_to_max_norm_and_leaves_them_as_they_are(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    found = rockbed.torch.Embedding(table, max_norm=0.1)(torch.arange(50)).detach()
    stored = torch.from_numpy(rows(table, *range(50)))
    assert (stored.norm(dim=1) > 0.1).sum() > 40
    wanted = torch.nn.functional.embedding(torch.arange(50), stored.clone(), max_norm=0.1)
    torch.testing.assert_close(found, wanted)


def test_bags_may_be_padded_or_begin_at_offsets(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    module = rockbed.torch.EmbeddingBag(table, "sqrtn")
    padded = module(torch.tensor([[1, 2], [3, -1]]))
    assert padded.shape == (2, 2)
    torch.testing.assert_close(module(tensor(1, 2, 3), tensor(0, 2)), padded)
    ended = rockbed.torch.EmbeddingBag(table, "sqrtn", include_last_offset=True)
    torch.testing.assert_close(ended(tensor(1, 2, 3), tensor(0, 2, 3)), padded)
    weights = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    weighted = module(torch.tensor([[1, 2], [3, -1]]), per_sample_weights=weights)
    w = rows(table, 1, 2, 3)
    np.testing.assert_allclose(weighted.detach().numpy(), [(w[0] + 2 * w[1]) / np.sqrt(5), w[2]], rtol=1e-6)


def test_a_collection_gives_columns_and_sequences_by_name(storage: PyStorage) -> None:
    table, other = plain(storage, initializer=uniform()), plain(storage, 2, 3, initializer=uniform())
    module = rockbed.torch.EmbeddingCollection(
        [Feature("a", table), Feature("s", other, None), Feature("b", other, "sum")], missing="empty"
    )
    out = module({"a": (tensor(1, 2), tensor(0, 2, 2)), "s": (tensor(4, 5, 6), tensor(0, 2, 3))})
    assert out.pooled.shape == (2, 5)
    np.testing.assert_allclose(out["a"].detach()[0], rows(table, 1, 2).mean(axis=0), rtol=1e-6)
    assert not out["b"].any()
    np.testing.assert_array_equal(out["s"].detach(), rows(other, 4, 5, 6))
    before = rows(table, 1, 2)
    with pytest.raises(UnknownName, match="there is no feature 'c': the features are 'a', 'b', 's'"):
        out["c"]
    same = module({"a": Ragged.from_lists([[1, 2], []]), "s": Ragged.from_lists([[4, 5], [6]])})
    torch.testing.assert_close([same.pooled, same["s"]], [out.pooled, out["s"]])
    same["a"].sum().backward()
    np.testing.assert_allclose(rows(table, 1, 2), before - 0.5)
    only = rockbed.torch.EmbeddingCollection([Feature("s", other, None)])({"s": (tensor(4), tensor(0, 1))})
    assert only.pooled.shape == (1, 0)
    only["s"].sum().backward()


class Jagged:
    """As torchrec's KeyedJaggedTensor: three bags of "a", then three of "b"."""

    def keys(self) -> list[str]:
        return ["a", "b"]

    def values(self) -> Any:
        return tensor(1, 2, 3, 4, 5)

    def offsets(self) -> Any:
        return tensor(0, 2, 2, 3, 3, 4, 5).int()

    def weights_or_none(self) -> Any:
        return torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def jagged_tensors() -> list[Any]:
    made: list[Any] = [Jagged()]
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except ImportError:
        return made
    ours = Jagged()
    lengths = torch.tensor([2, 0, 1, 0, 1, 1])
    return [*made, KeyedJaggedTensor(ours.keys(), ours.values(), weights=ours.weights_or_none(), lengths=lengths)]


@pytest.mark.parametrize("batch", jagged_tensors(), ids=lambda batch: type(batch).__name__)
def test_a_keyed_jagged_tensor_is_a_batch(storage: PyStorage, batch: Any) -> None:
    table = plain(storage, initializer=uniform())
    module = rockbed.torch.EmbeddingCollection([Feature("b", table, "sum"), Feature("a", table, "sum")])
    found = module(batch)
    same = module(
        {
            "a": (tensor(1, 2, 3), tensor(0, 2, 2, 3), torch.tensor([1.0, 2.0, 3.0])),
            "b": (tensor(4, 5), tensor(0, 0, 1, 2), torch.tensor([4.0, 5.0])),
        }
    )
    torch.testing.assert_close(found.pooled, same.pooled)
    only = rockbed.torch.EmbeddingCollection([Feature("b", table, "sum")], unknown="ignore")
    torch.testing.assert_close(only(batch).pooled, found["b"])
    alone = only({"b": Ragged.from_lists([[], [4], [5]]), "label": 1})
    np.testing.assert_array_equal(alone["b"].detach().numpy(), [[0, 0], *rows(table, 4, 5)])
    assert [future.result() for future in only.prefetch(batch)] == [(2, 0)]
    with pytest.raises(UnknownName, match="no feature 'a'"):
        rockbed.torch.EmbeddingCollection([Feature("b", table, "sum")])(batch)


def test_a_keyed_jagged_tensor_whose_features_have_batches_of_their_own_is_refused(storage: PyStorage) -> None:
    class Uneven(Jagged):
        def offsets(self) -> Any:
            return tensor(0, 2, 2, 3, 4, 5)

    class Variable(Jagged):
        """Two bags of "a" and four of "b"."""

        def variable_stride_per_key(self) -> bool:
            return True

    module = rockbed.torch.EmbeddingCollection([Feature(name, plain(storage), "sum") for name in "ab"])
    for batch, bags in ((Uneven(), 5), (Variable(), 6)):
        with pytest.raises(InvalidConfig, match=f"has {bags} bags for 2 features, not as many for each"):
            module(batch)
    assert storage.stats()["rows"] == 0


def test_a_collection_says_which_features_it_has_and_fetches_no_others(storage: PyStorage) -> None:
    module = rockbed.torch.EmbeddingCollection([Feature("a", plain(storage)), Feature("s", plain(storage), None)])
    out = module({"a": ONE, "s": ONE})
    assert ["a" in out, "s" in out, "b" in out] == [True, True, False]
    with pytest.raises(TypeError, match="not iterable"):
        list(out)
    assert [each.result() for each in module.prefetch({"a": ONE})] == [(1, 0)]
    with pytest.raises(UnknownName, match="there is no feature 'typo': the features are 'a', 's'"):
        module.prefetch({"typo": ONE, "a": ONE})


def test_a_copy_of_a_module_has_the_same_rows_and_a_pickle_is_refused(storage: PyStorage) -> None:
    model = torch.nn.Sequential(rockbed.torch.EmbeddingBag(plain(storage), "sum"), torch.nn.Linear(2, 1))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for each in (copy.deepcopy(model), averaged.module):
        assert each[0].fused.storage is storage
        each[0](torch.tensor([[1]])).sum().backward()
    assert (rows(plain(storage), 1) == -2).all()
    averaged.update_parameters(model)
    for save in (lambda: torch.save(model, io.BytesIO()), lambda: pickle.dumps(storage), lambda: copy.copy(storage)):
        with pytest.raises(WrongDtype, match=r"cannot be pickled: .*Open it in the process .*state_dict\(\)"):
            save()


# --- modes ---


def test_eval_creates_nothing_and_its_gradient_is_refused(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    module = rockbed.torch.Embedding(table).eval()
    assert not module(tensor(1)).any()
    assert storage.stats()["rows"] == 0
    with pytest.raises(InvalidBackward, match=r"eval\(\) mode: call train\(\), or make the module trainable=False"):
        module(tensor(1)).sum().backward()
    with torch.no_grad():
        assert not module(tensor(1)).requires_grad
        module.train()
        assert not module(tensor(1)).requires_grad
    assert storage.stats()["rows"] == 1  # the mode decides, as for dropout


def test_a_module_that_is_not_trainable_never_creates_and_lets_gradients_pass_by(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    stored = table.lookup(np.array([1]))
    module = rockbed.torch.EmbeddingBag(table, "sum", trainable=False).train()
    dense = torch.nn.Linear(2, 1)
    dense(module(torch.tensor([[1, 2]]))).sum().backward()
    np.testing.assert_array_equal(dense.weight.grad, stored)
    np.testing.assert_array_equal(rows(table, 1, 2), [stored[0], [0, 0]])


def test_a_read_only_storage_serves(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store") as storage:
        plain(storage, initializer=uniform()).lookup(np.array([1]))
    with PyStorage(tmp_path / "store", read_only=True) as storage:
        table = plain(storage, initializer=uniform())
        assert rockbed.torch.Embedding(table, trainable=False)(tensor(1, 2)).any()
        with pytest.raises(ReadOnlyStorage):
            rockbed.torch.Embedding(table)(tensor(1))


def test_a_token_of_the_role_read_serves(tmp_path: Path) -> None:
    secrets = {role: f"the secret of {role}, long enough" for role in ("read", "train")}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("".join(f'[[token]]\nname = "{r}"\nrole = "{r}"\nsecret = "{s}"\n' for r, s in secrets.items()))
    tokens.chmod(0o600)
    server = Server(tmp_path)
    try:
        target = server.start(tokens=tokens)
        with PyStorage(target, connection=Connection(token=secrets["train"])) as storage:
            plain(storage, initializer=uniform()).lookup(np.array([1]))
        with PyStorage(target, connection=Connection(token=secrets["read"])) as storage:
            table = plain(storage, initializer=uniform())
            assert rockbed.torch.Embedding(table, trainable=False)(tensor(1, 2)).any()
            with pytest.raises(PermissionDenied):
                rockbed.torch.Embedding(table)(tensor(1))
    finally:
        server.close()


def test_prefetch_brings_rows_into_memory_and_creates_none(storage: PyStorage) -> None:
    table = plain(storage)
    table.lookup(np.array([1, 2]))
    modules = [rockbed.torch.Embedding(table), rockbed.torch.EmbeddingBag(table)]
    assert [each.prefetch(torch.tensor([[1, 2], [2, 3]]))[0].result() for each in modules] == [(2, 1)] * 2
    collection = rockbed.torch.EmbeddingCollection([Feature("a", table), Feature("b", table)], missing="empty")
    assert [each.result() for each in collection.prefetch({"a": ONE})] == [(1, 0)]
    assert storage.stats()["rows"] == 2


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_come_out_where_asked_and_train_float32_rows(storage: PyStorage, dtype: Any) -> None:
    table = plain(storage, initializer=uniform())
    module = rockbed.torch.EmbeddingCollection([Feature("a", table), Feature("s", table, None)], dtype=dtype)
    out = module({"a": ONE, "s": ONE})
    assert out.pooled.dtype == out["s"].dtype == dtype
    before = rows(table, 1)
    np.testing.assert_array_equal(out["s"].detach().float(), torch.from_numpy(before).to(dtype).float())
    (out["a"] + out["s"]).sum().backward()
    np.testing.assert_array_equal(rows(table, 1), before - 2)


def test_autocast_leaves_rows_float32_and_its_half_gradients_train_them(storage: PyStorage) -> None:
    table = plain(storage, initializer=uniform())
    module, dense = rockbed.torch.Embedding(table), torch.nn.Linear(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(tensor(1))
        scores = dense(found)
    assert found.dtype == torch.float32
    assert scores.dtype == torch.bfloat16
    before = rows(table, 1)
    scores.sum().backward()
    # the sum of the columns, rounded to 8 bits here and there
    wanted = dense.weight.detach().to(torch.bfloat16).float().sum(dim=0).numpy()
    np.testing.assert_allclose(before - rows(table, 1), [wanted], rtol=0.02, atol=0.02)


# --- torch's machinery ---


def test_what_comes_out_may_be_changed_in_place(storage: PyStorage) -> None:
    table = plain(storage)
    out = rockbed.torch.Embedding(table)(tensor(1))
    out += 1
    out.pow_(2).sum().backward()
    assert rows(table, 1).tolist() == [[-2, -2]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own modules
def test_a_compiled_model_trains_as_the_plain_one(open_storage: OpenStorage) -> None:
    found = []
    for name in ("plain", "compiled"):
        storage = open_storage(name)
        table = embedding(storage, 4, 1, initializer=uniform())
        torch.manual_seed(1)
        model: Any = torch.nn.Sequential(rockbed.torch.EmbeddingBag(table, "sum"), torch.nn.Linear(4, 1))
        if name == "compiled":
            torch._dynamo.reset()
            model = torch.compile(model, backend="aot_eager")
        losses = []
        for step in range(3):
            loss = model(torch.arange(12).reshape(4, 3) + step).pow(2).mean()
            loss.backward()
            losses.append(loss.item())
        found.append((losses, rows(table, *range(14))))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)


def test_checkpointed_activations_train_once(storage: PyStorage) -> None:
    from torch.utils.checkpoint import checkpoint

    table = plain(storage)
    module = rockbed.torch.Embedding(table)
    checkpoint(lambda keys: module(keys).exp(), tensor(1), use_reentrant=False).sum().backward()
    assert rows(table, 1).tolist() == [[-1, -1]]


# --- state_dict ---


def collection(storage: PyStorage, *, group: int = 1, name: str = "a", **options: Any) -> Any:
    feature = Feature(name, plain(storage, group), "sum", **options)
    return torch.nn.ModuleDict({"sparse": rockbed.torch.EmbeddingCollection([feature]), "dense": torch.nn.Linear(2, 1)})


def test_state_dict_keeps_groups_and_settings_and_no_rows(storage: PyStorage, tmp_path: Path) -> None:
    model = collection(storage, max_norm=2.0)
    model["sparse"]({"a": ONE})
    state = model.state_dict()
    assert set(state) == {"sparse._extra_state", "dense.weight", "dense.bias"}
    (kept,) = state["sparse._extra_state"]["features"]
    assert (kept["name"], kept["group"], kept["dim"], kept["optimizer"]) == ("a", 1, 2, "sgd")
    assert len(pickle.dumps(state["sparse._extra_state"])) < 1000
    torch.save(state, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    again = collection(storage, max_norm=2.0)
    assert str(again.load_state_dict(loaded)) == "<All keys matched successfully>"


def test_load_state_dict_refuses_other_features(storage: PyStorage) -> None:
    state = collection(storage).state_dict()
    for other, message in (
        (collection(storage, group=2), "feature 'a': group is 1 in the state_dict, 2 here"),
        (collection(storage, max_norm=1.0), "feature 'a': max_norm is None in the state_dict, 1.0 here"),
        (collection(storage, name="b"), r"the state_dict has the features \['a'\], this \['b'\]"),
    ):
        with pytest.raises(GroupConflict, match=message):
            other.load_state_dict(state)
    with pytest.raises(GroupConflict, match="not the state of such a module"):
        collection(storage)["sparse"].set_extra_state({"something": 1})
    with pytest.raises(RuntimeError, match=r"Missing key.*sparse._extra_state"):
        collection(storage).load_state_dict({"dense.weight": torch.zeros(1, 2), "dense.bias": torch.zeros(1)})


# --- what is refused ---

CALLS: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("rows", (tensor(1).int(),), WrongDtype, r"keys must be .* int64 or uint64, not int32\[1\] on cpu: use keys.long"),
    ("rows", (torch.ones(1),), WrongDtype, "int64 or uint64, not float32"),
    ("rows", ([1],), WrongDtype, "keys must be a torch tensor of int64 or uint64, not a list"),
    ("rows", (np.array([1]),), WrongDtype, "not a ndarray"),
    ("rows", (tensor(1).to("meta"),), WrongDtype, r"keys must be on the CPU, not int64\[1\] on meta.*\.cpu\(\)"),
    ("rows", (tensor(1).to_sparse(),), WrongDtype, "keys must be a dense tensor, not torch.sparse_coo"),
    ("bag", (tensor(1),), WrongShape, r"\[B, L\] without offsets, or \[nnz\] with offsets, not int64\[1\]"),
    ("bag", (tensor(1)[None], tensor(0)), WrongShape, r"not int64\[1, 1\] on cpu with int64\[1\]"),
    ("bag", (tensor(1), torch.zeros(1)), WrongDtype, "offsets must be .* int64 or int32, not float32"),
    ("bag", (tensor(1), tensor(0)[None]), WrongShape, "offsets must have one axis"),
    ("bag", (tensor(1), tensor(1)), WrongShape, "offsets run from 1 to 1"),
    ("bag", (tensor(1), tensor(0), torch.ones(2)), WrongShape, "per_sample_weights must have the shape of the keys"),
    ("bag", (tensor(1), tensor(0), torch.ones(1).double()), WrongDtype, "per_sample_weights must be .* float32"),
    ("bag", (tensor(1), tensor(0), torch.ones(1, requires_grad=True)), InvalidConfig, "pass weights.detach"),
    ("all", ({"a": ONE, "c": ONE},), UnknownName, "no feature 'c'"),
    ("all", ({},), InvalidConfig, "the batch lacks 'a'"),
    (
        "all",
        ({"a": tensor(1)},),
        WrongDtype,
        r"feature 'a': its bags are \(keys, offsets\), .* or a Ragged, not a Tensor",
    ),
    ("all", ({"a": (tensor(1),)},), WrongDtype, "feature 'a': its bags .*, not 1 values"),
    ("all", ({"a": (tensor(1).int(), tensor(0, 1))},), WrongDtype, "feature 'a': keys must be .* int64"),
    ("all", ({"a": (tensor(1), tensor(0, 2))},), WrongShape, "feature 'a': offsets run from 0 to 2"),
    ("all", ({"a": (*ONE, torch.tensor([float("nan")]))},), InvalidConfig, "feature 'a': weights.0. is nan"),
    ("all", (tensor(1),), WrongDtype, "a batch is a dict"),
]


@pytest.mark.parametrize(("module", "arguments", "error", "message"), CALLS)
def test_a_call_that_cannot_be_says_why(
    storage: PyStorage, module: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    table = plain(storage)
    modules = {
        "rows": rockbed.torch.Embedding(table),
        "bag": rockbed.torch.EmbeddingBag(table),
        "all": rockbed.torch.EmbeddingCollection([Feature("a", table)]),
    }
    with pytest.raises(error, match=message):
        modules[module](*arguments)
    assert storage.stats()["rows"] == 0


def test_a_module_that_cannot_be_says_why(storage: PyStorage) -> None:
    table = plain(storage)
    with pytest.raises(InvalidConfig, match=r"scale is 'x'.*dtype is torch.int64.*trainable is 1"):
        rockbed.torch.Embedding(table, scale="x", dtype=torch.int64, trainable=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="combiner is 'max'"):
        rockbed.torch.EmbeddingBag(table, "max")
    with pytest.raises(WrongDtype, match="embedding is a Embedding, not a PyEmbedding"):
        rockbed.torch.Embedding(rockbed.torch.Embedding(table))


def test_after_closing_both_passes_say_so(open_storage: OpenStorage) -> None:
    storage = open_storage()
    module = rockbed.torch.Embedding(plain(storage))
    out = module(tensor(1))
    storage.close()
    with pytest.raises(StorageClosed):
        out.sum().backward()
    with pytest.raises(StorageClosed):
        module(tensor(1))
    with pytest.raises(StorageClosed):
        module.prefetch(tensor(1))


def test_the_worker_of_a_data_loader_cannot_use_a_storage_opened_before(tmp_path: Path) -> None:
    script = """
import warnings
import torch
import rockbed.torch
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
storage = PyStorage(sys.argv[1])
module = rockbed.torch.Embedding(PyEmbedding(storage, PyOptimizer(name="sgd"), PyInitializer(), 2))
module.prefetch(torch.tensor([1]))[0].result()
class Keys(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, i):
        said = []
        for call in (module, module.prefetch):
            try:
                call(torch.tensor([1]))
            except Exception as error:
                said.append(type(error).__name__ + str("across fork()" in str(error)))
        return " ".join(said)
loader = torch.utils.data.DataLoader(Keys(), num_workers=1, batch_size=None, multiprocessing_context="fork")
print(*loader)
module(torch.tensor([1])).sum().backward()
storage.close()
print("well")"""
    done = run_python(script, tmp_path / "store")
    assert done.stdout.split() == ["StorageClosedTrue", "StorageClosedTrue", "well"], done.stderr
