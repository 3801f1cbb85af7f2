"""Batches one step ahead: their rows come from disk while the trainer computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

_Batch = TypeVar("_Batch")
_END: Any = object()


class prefetching(Generic[_Batch]):  # noqa: N801 - it is called as a function is
    """The batches of a loader; while one is used, the rows of the next are brought from disk into memory.

    >>> for batch in rockbed.torch.prefetching(loader, lambda batch: [(users, batch["user"])]):  # doctest: +SKIP
    ...     train(batch)

    loader: what gives batches, a torch DataLoader say; it is asked for each one step early. keys_of: gives (module,
    its keys) for each module that will look up in a batch, as the module's `prefetch` takes them. It is called in this
    process: the workers of a DataLoader cannot use a storage that was opened before they were forked.
    What a fetch raises is raised when its batch is due.
    """

    def __init__(self, loader: Iterable[_Batch], keys_of: Callable[[_Batch], Iterable[tuple[Any, Any]]]) -> None:
        self._loader = loader
        self._keys_of = keys_of

    def __iter__(self) -> Iterator[_Batch]:
        batches = iter(self._loader)
        due, fetches = next(batches, _END), list[Future[Any]]()
        while due is not _END:
            for each in fetches:
                each.result()
            following = next(batches, _END)
            fetches = [] if following is _END else self._fetches(following)
            yield due
            due = following

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # TypeError for a loader without a length, as it should be

    def _fetches(self, batch: _Batch) -> list[Future[Any]]:
        return [fetch for module, keys in self._keys_of(batch) for fetch in module.prefetch(keys)]
