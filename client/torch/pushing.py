"""From backward passes to pushes: one for each pass and storage, or one for all passes of an `accumulate`.

The gradients of a pass are collected while torch goes through the graph and pushed by a callback at its end, the way
torch.nn.parallel.DistributedDataParallel waits for the last gradient. A pass that fails on its way pushes nothing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from rockbed.client.fused_output import FusedOutput
from rockbed.client.joined import OutputGradient, push_together
from rockbed.client.request_ids import RequestId, checked_request
from rockbed.client.storage import PyStorage
from rockbed.client.torch.ranks import is_joined, push_from_one_rank
from rockbed.client.torch.tensors import gradient_array, gradient_tensor
from rockbed.device_arrays import on_device
from rockbed.errors import InvalidBackward, InvalidConfig, WrongDtype


class TrainedLookup:
    """A lookup whose gradient is pushed once. scale: of its gradient, asked for when that is there. frozen: why it is
    not to be trained, None if it is. lent: tensors of its batch that were not copied, and that the push reads again."""

    def __init__(
        self, out: FusedOutput, scale: Callable[[], float], frozen: str | None, lent: Sequence[Any] = ()
    ) -> None:
        self.out = out
        self.pushed = False
        self._scale = scale
        self._frozen = frozen
        self._lent = [(each, each._version) for each in lent if not each.is_inference()]  # those have no version

    @property
    def storage(self) -> PyStorage:
        return self.out.fused.storage

    def gradient(self, gradients: Sequence[Any]) -> OutputGradient:
        """Of the tensors that came of the lookup: `pooled`, if there is one, and the sequences. Raises
        InvalidBackward."""
        if self._frozen is not None:
            raise InvalidBackward(f"the gradient of {self.out!r} cannot be pushed: {self._frozen}")
        if torch.is_grad_enabled():
            raise InvalidBackward(
                "a push cannot be differentiated: call backward() without create_graph=True, and for the gradient of "
                "a gradient torch.autograd.grad with the module's output as its input"
            )
        if self.pushed:
            raise InvalidBackward(
                f"the gradient of {self.out!r} has been pushed, and its rows have changed since: look up again, or go "
                "through both backward passes (retain_graph=True) within rockbed.torch.accumulate(storage)"
            )
        left = list(gradients)
        pooled = left.pop(0) if self.out.fused.dim else None
        named = {name: each for name, each in zip(self.out.sequences, left, strict=True) if each is not None}
        array = partial(self._array, scale=self._scale())
        return OutputGradient(
            self.out,
            None if pooled is None else array("pooled", pooled),
            {name: array(name, each) for name, each in named.items()},
        )

    def must_have_its_batch(self) -> None:
        """Raise InvalidBackward if torch knows of a change of the batch since the lookup."""
        if any(each._version != version for each, version in self._lent):
            raise InvalidBackward(
                f"a tensor of the batch of {self.out!r} was changed in place before its gradient was pushed, which "
                "would go to other rows. Nothing was pushed: change it after backward() (within an accumulate, after "
                "that), or give the module a clone()"
            )

    def _array(self, name: str, gradient: Any, scale: float) -> Any:
        if not on_device(self.out.pooled):
            return gradient_array(gradient, scale)
        # borrowed here, where torch has set the stream that the gradient is made on
        device = self.storage.backend.device
        assert device is not None  # which has made the output
        return device.borrow(f"the gradient of {name!r}", gradient_tensor(gradient, scale))


class Accumulation:
    """What `accumulate` collects. applied: after it, whether the push was applied; False for a request that had been
    applied before, None where nothing was pushed."""

    def __init__(self) -> None:
        self.applied: bool | None = None
        self._lookups: list[TrainedLookup] = []
        self._gradients: list[OutputGradient] = []

    def add(self, lookup: TrainedLookup, gradient: OutputGradient) -> None:
        self._lookups.append(lookup)
        self._gradients.append(gradient)

    def take_over(self, other: "Accumulation") -> None:
        """Add all that another one has collected."""
        self._lookups += other._lookups
        self._gradients += other._gradients

    def push(self, storage: PyStorage, request: RequestId | None = None) -> None:
        """Push what was collected, all or nothing. With a request also where that is nothing: the step is done.
        Raises InvalidBackward, and what FusedEmbedding.apply_gradients raises."""
        if is_joined(storage):
            self.applied = push_from_one_rank(storage, self._gradients, request, self._must_have_batches)
        elif self._gradients:
            self._must_have_batches()
            self.applied = push_together(self._gradients, request)
        elif request is not None:
            self.applied = storage.apply_gradients([], request=request)
        for each in self._lookups:
            each.pushed = True

    def _must_have_batches(self) -> None:
        for each in self._lookups:
            each.must_have_its_batch()


class _Pass:
    """The gradients of one backward pass for one storage. Torch holds on to it, by `at_end`, until the pass is over."""

    def __init__(self, storage: PyStorage) -> None:
        self.storage = storage
        self.collected = Accumulation()

    def at_end(self) -> None:
        with _lock:
            accumulation = _accumulating.get(self.storage)
            if accumulation is not None:
                accumulation.take_over(self.collected)
                return
        self.collected.push(self.storage)


_lock = threading.Lock()
# By torch's number of the pass, and the id of the storage.
_passes: "WeakValueDictionary[tuple[int, int], _Pass]" = WeakValueDictionary()
_accumulating: "WeakKeyDictionary[PyStorage, Accumulation]" = WeakKeyDictionary()


def collect(lookup: TrainedLookup, gradients: Sequence[Any]) -> None:
    """Take the gradients of a lookup's tensors, within the backward pass that they belong to; None for those that have
    none. Raises InvalidBackward."""
    if all(each is None for each in gradients):  # a custom function above gave none
        return
    gradient = lookup.gradient(gradients)
    place = (torch._C._current_graph_task_id(), id(lookup.storage))
    with _lock:
        under_way = _passes.get(place)
        if under_way is None:
            under_way = _passes[place] = _Pass(lookup.storage)
            torch.autograd.Variable._execution_engine.queue_callback(under_way.at_end)
        under_way.collected.add(lookup, gradient)


def pushes_alone(storage: PyStorage) -> bool:
    """Whether a backward pass that has one lookup pushes just that."""
    return storage not in _accumulating and not is_joined(storage)


@contextmanager
def accumulate(storage: PyStorage, *, request: RequestId | None = None) -> Iterator[Accumulation]:
    """Within it, backward passes collect the gradients of a storage's rows; at its end they are pushed, as one change.

    >>> with rockbed.torch.accumulate(storage, request=("trainer-0", step)):  # doctest: +SKIP
    ...     for part in batch.split(256):
    ...         (loss_of(model(part)) / 4).backward()

    request: as of PyStorage.apply_gradients: of a step that has been applied, nothing is applied again. Nothing is
    pushed when an error leaves the block. One at a time for a storage, whatever the thread.
    Raises InvalidConfig; and at its end what FusedEmbedding.apply_gradients raises.
    """
    if not isinstance(storage, PyStorage):
        raise WrongDtype(f"accumulate takes a PyStorage, not a {type(storage).__name__}")
    checked_request(request)
    accumulation = Accumulation()
    with _lock:
        if storage in _accumulating:
            raise InvalidConfig(f"{storage!r} is within an accumulate already: its push comes at the end of that one")
        _accumulating[storage] = accumulation
    try:
        yield accumulation
    finally:
        with _lock:
            del _accumulating[storage]
    accumulation.push(storage, request)
