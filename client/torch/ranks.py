"""Several ranks of torch.distributed on one storage: their pushes one by one, or joined to one."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from rockbed.client.joined import OutputGradient, push_shares, shares_of, steps_of
from rockbed.client.request_ids import RequestId
from rockbed.client.storage import PyStorage
from rockbed.errors import InvalidConfig, RockbedError, WrongDtype

_groups: "WeakKeyDictionary[PyStorage, Any]" = WeakKeyDictionary()


def join_ranks(storage: PyStorage, group: Any = None) -> None:
    """From now on the gradients of all ranks are one push, made by the first of them: one step of every optimizer, as
    if one process had the whole batch. The others wait for it, so that all see the same rows in the next step.

    To be called on every rank, after torch.distributed.init_process_group. group: a process group whose backend takes
    tensors on the CPU (gloo, say), None = all ranks. Every rank then goes through as many backward passes (or
    `accumulate`s) as any other; a request is that of the first rank. Together with scale="mean" a step is that of the
    mean loss over all ranks, whatever the optimizer.
    Raises InvalidConfig where torch.distributed has not begun.
    """
    if not isinstance(storage, PyStorage):
        raise WrongDtype(f"join_ranks takes a PyStorage, not a {type(storage).__name__}")
    if not begun():
        raise InvalidConfig("join_ranks: call torch.distributed.init_process_group before it")
    _groups[storage] = torch.distributed.group.WORLD if group is None else group


def begun() -> bool:
    """Whether this process is a rank of torch.distributed."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def is_joined(storage: PyStorage) -> bool:
    """Whether this storage's pushes are those of all ranks."""
    return storage in _groups


def push_from_one_rank(
    storage: PyStorage, gradients: Sequence[OutputGradient], request: RequestId | None, check: Callable[[], None]
) -> bool | None:
    """Have the first rank push the gradients of all. What it returns or raises is returned and raised on all of them;
    None where there was nothing to push. check: raises what forbids this rank's share; then all of them raise it and
    nothing is pushed: a rank that left alone would keep the others waiting."""
    group, ranks = _groups[storage], torch.distributed
    first, here = ranks.get_global_rank(group, 0), ranks.get_rank()
    everyone: list[Any] = [None] * ranks.get_world_size(group)
    sent: Any
    try:
        check()
        sent = (shares_of(gradients), steps_of(gradients))
    except RockbedError as refused:
        sent = refused
    ranks.gather_object(sent, everyone if here == first else None, dst=first, group=group)
    answer: list[Any] = [None, None]
    if here == first and any(isinstance(each, RockbedError) for each in everyone):
        answer[1] = next(each for each in everyone if isinstance(each, RockbedError))
    elif here == first:
        shares = [share for part, _ in everyone for share in part]
        steps = {number: step for _, part in everyone for number, step in part.items()}
        try:
            if shares:
                answer[0] = push_shares(storage, shares, steps, request)
            elif request is not None:
                answer[0] = storage.apply_gradients([], request=request)
        except RockbedError as refused:
            answer[1] = refused
    ranks.broadcast_object_list(answer, src=first, group=group)
    applied: bool | None = answer[0]
    if answer[1] is not None:
        raise answer[1]
    return applied
