"""Adaptive lookups at a server: what it refuses and how it says so, limits, tokens, answers that are lost."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import AdaptiveEmbedding, PermissionDenied, PyStorage
from rockbed.client.hashing import hash_buckets
from rockbed.server.limits import Limits
from rockbed.v1 import embedding_pb2 as pb
from rockbed.v1 import embedding_pb2_grpc
from tests.api.helpers import keys_of, ones, sgd, zeros
from tests.server.served import Connect, Server, refused
from tests.server.test_exactly_once import LosesAnswers

DIM = 32
SMALL = Limits(message_bytes_max=1 << 16, keys_max=1_000)


def _adaptive(storage: PyStorage, **options: Any) -> AdaptiveEmbedding:
    return AdaptiveEmbedding(storage, sgd(1.0), zeros(), DIM, "ids", 5, **options)


@pytest.fixture
def rows(server: Server, connect: Connect) -> AdaptiveEmbedding:
    """On a server of small limits."""
    return _adaptive(connect(server.start(limits=SMALL)))


@pytest.fixture
def stub(server: Server, rows: AdaptiveEmbedding) -> Iterator[Any]:
    assert server.daemon is not None
    with grpc.insecure_channel(server.daemon.target.removeprefix("grpc://")) as channel:
        yield embedding_pb2_grpc.EmbeddingStub(channel)


def _request(rows: AdaptiveEmbedding, **given: Any) -> Any:
    good = {"keys": keys_of(1, 2).tobytes(), "buckets": keys_of(0, 4).tobytes(), "mask": b"\1\0", "train": True}
    return pb.AdaptiveLookupRequest(
        **{"static_group": rows.static.group, "exact_group": rows.exact.group, **good, **given}
    )


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"keys": b"1234567"}, "wrong_shape", "7 bytes"),
        ({"buckets": bytes(8)}, "wrong_shape", "1 buckets and 2 values of the mask for 2 keys"),
        ({"mask": b"\1"}, "wrong_shape", "a mask of 1 bytes for 2 keys"),
        ({"mask": b""}, "wrong_shape", "a mask of 0 bytes for 2 keys"),
        ({"mask": None}, "invalid_config", "has no threshold"),
        ({"buckets": keys_of(0, 5).tobytes()}, "invalid_config", "buckets from 0 to 5: this variable has 5"),
        ({"buckets": keys_of(-1, 0).tobytes()}, "invalid_config", "buckets from -1 to 0"),
        ({"exact_group": 3}, "unknown_group", "3"),
        ({"static_group": 2**32 - 1}, "unknown_group", "4294967295"),
        ({"precision": 7}, "invalid_config", "precision 7"),
        ({"keys": bytes(8 * 1001), "buckets": bytes(8 * 1001), "mask": bytes(1001)}, "limit_exceeded", "keys_max"),
        (
            {"keys": bytes(8 * 999), "buckets": bytes(8 * 999), "mask": bytes(999)},
            "limit_exceeded",
            "message_bytes_max",
        ),
    ],
)
def test_a_request_that_cannot_be_makes_no_rows(
    server: Server, rows: AdaptiveEmbedding, stub: Any, given: dict[str, Any], code: str, said: str
) -> None:
    found = refused(stub.AdaptiveLookup, _request(rows, **given))
    assert found[1] == code
    assert said in found[2]
    assert sum(group.counters.rows for group in server.engine.groups.values()) == 0


def test_parts_the_wrong_way_round_are_refused(server: Server, rows: AdaptiveEmbedding, stub: Any) -> None:
    request = _request(rows, static_group=rows.exact.group, exact_group=rows.static.group)
    assert "not the static and the exact part" in refused(stub.AdaptiveLookup, request)[2]


def test_weights_travel_in_the_precision_asked_for(rows: AdaptiveEmbedding, stub: Any) -> None:
    rows.lookup(keys_of(1), [1]).apply_gradients(ones(1, DIM))
    answer = stub.AdaptiveLookup(_request(rows, precision=pb.FLOAT16))
    assert np.frombuffer(answer.weights, "<f2").tolist() == [-1] * DIM + [0] * DIM
    assert (answer.mask, answer.migrated) == (b"\1\0", 0)


def test_many_ids_go_in_several_messages(rows: AdaptiveEmbedding) -> None:
    ids = np.arange(3_000)
    found = rows.lookup(ids, ids % 2)
    assert found.migrated == 1_500
    found.apply_gradients(ones(ids.size, DIM))
    np.testing.assert_array_equal(rows.lookup(ids, ids % 2).rows[ids % 2 == 1], -ones(1_500, DIM))


def test_answers_that_are_lost_make_no_second_copy(server: Server, connect: Connect) -> None:
    loses = LosesAnswers(0.3)
    rows = _adaptive(connect(server.start(loses)))
    ids = np.arange(200)
    ids = ids[hash_buckets(ids, 5) != hash_buckets(keys_of(1000), 5)][:60]  # their buckets are not trained
    for key in ids:
        rows.lookup(keys_of(key, 1000), [1, 0]).apply_gradients(ones(2, DIM))
    assert min(loses.lost.values()) > 5
    report = rows.report()
    assert (report.migrated, report.exact_rows, report.static_rows) == (60, 60, 1)
    assert (rows.lookup(ids, np.ones(60, int)).rows == -1).all()
    assert (rows.lookup(keys_of(1000), [0]).rows == -60).all()


def test_a_reader_reads_and_a_token_reaches_its_groups_only(server: Server, connect: Connect, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    bound = "groups = [1]"
    parts = zlib.crc32(b"own/static"), zlib.crc32(b"own/exact")
    own = f"groups = {[32768 + number % 32768 for number in parts]}"
    more = _token("bound", "train", bound) + _token("owner", "train", own)
    tokens.write_text("".join(_token(name, role) for name, role in ROLES.items()) + more)
    tokens.chmod(0o600)
    target = server.start(tokens=tokens)
    trained = _adaptive(connect(target, token=_secret("trainer")))
    trained.lookup(keys_of(1), [1]).apply_gradients(ones(1, DIM))
    reader = _adaptive(connect(target, token=_secret("reader")))
    assert reader.lookup(keys_of(1, 2), [1, 0], train=False).rows[:, 0].tolist() == [-1, 0]
    with pytest.raises(PermissionDenied, match="look up with train=True"):
        reader.lookup(keys_of(1), [1])
    trained.storage = connect(target, token=_secret("bound"))
    with pytest.raises(PermissionDenied, match="group"):
        trained.lookup(keys_of(1), [1])
    mine = AdaptiveEmbedding(connect(target, token=_secret("owner")), sgd(1.0), zeros(), DIM, "own", 5)
    assert mine.lookup(keys_of(1, 2), [1, 0]).mask.tolist() == [True, False]


ROLES = {"trainer": "train", "reader": "read"}


def _secret(name: str) -> str:
    return f"the secret of the {name}"


def _token(name: str, role: str, more: str = "") -> str:
    return f'[[token]]\nname = "{name}"\nrole = "{role}"\nsecret = "{_secret(name)}"\n{more}\n'
