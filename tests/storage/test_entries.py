"""Entries of the journal come back as they were written."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage.entries import (
    Request,
    Section,
    delete_parts,
    group_parts,
    push_parts,
    read_delete,
    read_group,
    read_push,
)

REQUEST = st.none() | st.builds(Request, st.text(min_size=1, max_size=20), st.integers(1, 2**63 - 1))


def _payload(parts: list[Any]) -> memoryview:
    for part in parts:
        assert len(bytes(part)) % 8 == 0, "the journal hashes whole words"
    return memoryview(b"".join(bytes(part) for part in parts))


@given(
    REQUEST, st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.booleans(), st.integers(-1, 99)), max_size=3)
)
def test_pushes(request: Request | None, shapes: list[tuple[int, int, bool, int]]) -> None:
    rng = np.random.default_rng(1)
    sections = [
        Section(
            group=i,
            keys=rng.integers(-(2**63), 2**63 - 1, n),
            fresh=rng.integers(0, 2, n).astype(np.uint8),
            grads=rng.standard_normal((n, dim)).astype(np.float32),
            sequential=sequential,
            step=step,
        )
        for i, (n, dim, sequential, step) in enumerate(shapes)
    ]
    back_request, back = read_push(_payload(push_parts(request, sections)))
    assert back_request == request
    assert len(back) == len(sections)
    for one, other in zip(sections, back, strict=True):
        assert (one.group, one.sequential, one.step) == (other.group, other.sequential, other.step)
        for name in ("keys", "fresh", "grads"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(REQUEST, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.text(max_size=9))
def test_deletions(request: Request | None, keys: list[int], reason: str) -> None:
    back = read_delete(_payload(delete_parts(request, 7, np.array(keys, np.int64), reason)))
    assert (back[0], back[1], back[2].tolist(), back[3]) == (request, 7, keys, reason)


@given(st.text(max_size=30))
def test_group_settings(text: str) -> None:
    config = text.replace("\0", "").encode()
    assert read_group(_payload(group_parts(config))) == config
