"""DistributedDataParallel: two processes on one server end where one process ends."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: `make test` installs it")

import rockbed.torch  # noqa: E402
from rockbed import InvalidConfig, PyStorage, WrongDtype  # noqa: E402
from rockbed.types import F32  # noqa: E402
from tests.api.helpers import QUIET, Served  # noqa: E402
from tests.torch.helpers import Counting, plain, rows, tensor  # noqa: E402
from tests.torch.rank import KINDS, model_of, train  # noqa: E402

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]


def ranks(target: str, meeting: Path) -> list[dict[str, list[float]]]:
    """Run both ranks; their losses by optimizer."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.torch.rank", target, str(rank), str(meeting)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [each.communicate(timeout=120) for each in started]
    assert [each.returncode for each in started] == [0, 0], told
    return [json.loads(out) for out, _ in told]


def rows_after(storage: PyStorage, rule: str) -> F32:
    """The rows of both groups of the model."""
    features = model_of(storage, rule).sparse.fused.features
    return np.concatenate([each.embedding.lookup(np.arange(-1, 9), train=False) for each in features])


def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    wanted = {rule: train(str(alone), rule) for rule in KINDS}
    served = Served(tmp_path / "shared", **QUIET)
    try:
        told = ranks(served.daemon.target, tmp_path / "meeting")
        with PyStorage(alone) as storage:
            for rule in KINDS:
                assert rows_after(storage, rule).any()
                np.testing.assert_allclose(
                    rows_after(served, rule), rows_after(storage, rule), rtol=1e-4, atol=1e-5, err_msg=rule
                )
                # each rank's loss is the mean over half of the batch
                losses = np.mean([each[rule] for each in told], axis=0)
                np.testing.assert_allclose(losses, wanted[rule], rtol=1e-4, atol=1e-6, err_msg=rule)
    finally:
        served.close()


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_joined_rank_pushes_once_and_errors_come_back(storage: PyStorage) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table, scale="mean")
    rockbed.torch.join_ranks(storage)
    counting = Counting(storage)
    (module(tensor(1)).sum() + module(tensor(1, 2)).sum()).backward()
    assert counting.pushes == 1
    assert rows(table, 1, 2)[:, 0].tolist() == [-2, -1]
    with pytest.raises(rockbed.GradientNotFinite):
        (module(tensor(1)) * float("inf")).sum().backward()
    for request, applied in ((("trainer", 1), True), (("trainer", 1), False), (None, None)):
        with rockbed.torch.accumulate(storage, request=request) as accumulation:
            pass
        assert accumulation.applied is applied


@pytest.mark.usefixtures("one_rank")
def test_a_rank_whose_share_is_refused_does_not_leave_the_others_waiting(
    storage: PyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = plain(storage)
    module = rockbed.torch.Embedding(table, scale="mean")
    rockbed.torch.join_ranks(storage)
    gather, sent = torch.distributed.gather_object, []

    def gathered(own: Any, everyone: Any, **options: Any) -> None:
        sent.append(own)
        gather(own, everyone, **options)

    def refused(_: Any) -> None:
        raise InvalidConfig("this share cannot be pushed")

    monkeypatch.setattr(torch.distributed, "gather_object", gathered)
    monkeypatch.setattr("rockbed.client.torch.ranks.steps_of", refused)
    out = module(tensor(1)).sum()
    with pytest.raises(InvalidConfig, match="this share cannot be pushed"):
        out.backward()
    assert [type(each) for each in sent] == [InvalidConfig]
    assert rows(table, 1)[:, 0].tolist() == [0]


def test_joining_without_ranks_says_what_is_missing(storage: PyStorage) -> None:
    with pytest.raises(InvalidConfig, match=r"call torch\.distributed.init_process_group before it"):
        rockbed.torch.join_ranks(storage)
    with pytest.raises(WrongDtype, match="takes a PyStorage, not a str"):
        rockbed.torch.join_ranks("store")  # type: ignore[arg-type]
    assert rockbed.torch.Embedding(plain(storage), scale="mean").gradient_scale() == 1.0
