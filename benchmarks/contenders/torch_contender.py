"""nn.Embedding(sparse=True) with torch.optim.Adagrad: arrays in memory, a fixed number of rows, nothing on disk."""

from collections.abc import Sequence

import torch

from benchmarks.contenders.base import INITIAL_BOUND, LEARNING_RATE, Contender, Settings
from benchmarks.data import F32, Batch


class TorchEmbedding:
    def open(self, settings: Settings) -> None:
        torch.sparse.check_sparse_tensor_invariants.disable()  # they cost time; off is the default, with a warning
        weights = [torch.empty(settings.rows, settings.dim) for _ in range(settings.tables)]
        self._tables = [
            torch.nn.Embedding(
                settings.rows, settings.dim, sparse=True, _weight=weight.uniform_(-INITIAL_BOUND, INITIAL_BOUND)
            )
            for weight in weights
        ]
        self._optimizer = torch.optim.Adagrad([table.weight for table in self._tables], lr=LEARNING_RATE)

    def lookup(self, batch: Batch) -> None:
        with torch.inference_mode():
            self._tables[batch.table](torch.from_numpy(batch.at))

    def apply(self, batch: Batch, grads: F32) -> None:
        # The gradient as autograd makes it, without the cost of autograd. Adagrad sums repeated rows (coalesce).
        weight = self._tables[batch.table].weight
        at = torch.from_numpy(batch.at)[None]
        weight.grad = torch.sparse_coo_tensor(at, torch.from_numpy(grads), weight.shape, check_invariants=False)
        self._optimizer.step()
        weight.grad = None

    def train_step(self, batches: Sequence[Batch], grads: Sequence[F32]) -> None:
        rows = [self._tables[batch.table](torch.from_numpy(batch.at)) for batch in batches]
        torch.autograd.backward(rows, [torch.from_numpy(grad) for grad in grads])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def settle(self) -> None:
        return

    def facts(self) -> dict[str, float]:
        return {"threads": torch.get_num_threads()}

    def close(self) -> None:
        self._tables = []


def make() -> Contender:
    return TorchEmbedding()
