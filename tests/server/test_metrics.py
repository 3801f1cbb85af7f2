"""What a daemon tells Prometheus is what happened."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import GradientNotFinite, InvalidConfig, PyStorage, ServerUnavailable, UnknownGroup
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.recent import RecentMaximum
from rockbed.server.service_metrics import SECONDS
from rockbed.v1 import embedding_pb2, embedding_pb2_grpc
from tests.api.fused_batches import bags, looked_up
from tests.api.helpers import Clock, OpenStorage, embedding, engine_of, keys_of, ones, sgd
from tests.metrics_page import PAGE, page
from tests.scraping import busy_daemon, scraped, value
from tests.waiting import until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with busy_daemon(tmp_path) as daemon:
        yield daemon


def _lookup(*keys: int, group: int = 0) -> Any:
    return embedding_pb2.LookupRequest(group=group, keys=np.array(keys, "<i8").tobytes())


def _channel(daemon: Daemon) -> Any:
    return grpc.insecure_channel(daemon.target.removeprefix("grpc://"))


# --- requests ---


def test_calls_keys_and_bytes_are_counted_by_method(daemon: Daemon) -> None:
    done = {"code": "OK", "error": ""}
    assert value(daemon, "rockbed_requests_total", method="Embedding/Lookup", **done) == 1
    assert value(daemon, "rockbed_requests_total", method="Embedding/ApplyGradients", **done) == 1
    assert value(daemon, "rockbed_request_keys_total", method="Embedding/Lookup") == 10
    assert value(daemon, "rockbed_request_keys_total", method="Embedding/ApplyGradients") == 10
    sent = _lookup(*range(7))
    answer = embedding_pb2.LookupResponse(weights=bytes(7 * 4 * 4))
    before = {
        name: value(daemon, name, method="Embedding/Lookup")
        for name in ("rockbed_request_bytes_total", "rockbed_response_bytes_total")
    }
    with _channel(daemon) as channel:
        embedding_pb2_grpc.EmbeddingStub(channel).Lookup(sent)
    after = {name: value(daemon, name, method="Embedding/Lookup") - count for name, count in before.items()}
    assert after == {
        "rockbed_request_bytes_total": sent.ByteSize(),
        "rockbed_response_bytes_total": answer.ByteSize(),
    }


def test_messages_in_shared_memory_are_counted_as_if_they_travelled(daemon: Daemon) -> None:
    names = ("rockbed_request_bytes_total", "rockbed_response_bytes_total")
    with PyStorage(daemon.target) as storage:
        embedding(storage).lookup(np.arange(20_000), train=False)
    received, sent = (value(daemon, name, method="SharedEmbedding/Lookup") for name in names)
    assert 160_000 < received < 160_100
    assert 320_000 < sent < 320_100
    assert value(daemon, "rockbed_shared_memory_bytes") == 4 << 20


def test_fused_batches_count_the_keys_that_travel_and_what_is_kept(daemon: Daemon) -> None:
    with PyStorage(daemon.target) as storage:
        batch = [bags("a", 0, [1, 2], [3]), bags("b", 0, [4], [], combiner=None)]
        pooled, sequences, handle = looked_up(storage, batch, keep=True)
        assert value(daemon, "rockbed_kept_batches") == 1
        assert value(daemon, "rockbed_kept_bytes") == storage.stats()["kept_bytes"] > 0
        storage.backend.fused_apply_gradients(batch, handle, pooled, sequences, {}, None)
        storage.backend.fused_apply_gradients(batch, None, pooled, sequences, {}, None)
    assert value(daemon, "rockbed_kept_batches") == 0
    assert value(daemon, "rockbed_request_keys_total", method="Embedding/FusedLookup") == 4
    assert value(daemon, "rockbed_request_keys_total", method="Embedding/FusedApplyGradients") == 4
    done = {"code": "OK", "error": ""}
    assert value(daemon, "rockbed_requests_total", method="Embedding/FusedApplyGradients", **done) == 2


def test_a_call_that_fails_is_counted_with_its_status_and_error(daemon: Daemon) -> None:
    with PyStorage(daemon.target) as storage:
        rows = embedding(storage)
        with pytest.raises(GradientNotFinite):
            rows.apply_gradients(keys_of(1), ones(1, value=np.nan))
    with _channel(daemon) as channel:
        with pytest.raises(grpc.RpcError):
            embedding_pb2_grpc.EmbeddingStub(channel).Lookup(_lookup(1, group=9))
        garbage = channel.unary_unary("/rockbed.v1.Embedding/Lookup")
        with pytest.raises(grpc.RpcError):
            garbage(b"\xff\xff")
    name, bad = "rockbed_requests_total", "INVALID_ARGUMENT"
    assert value(daemon, name, method="Embedding/ApplyGradients", code=bad, error="gradient_not_finite") == 1
    assert value(daemon, name, method="Embedding/Lookup", code="NOT_FOUND", error="unknown_group") == 1
    assert value(daemon, name, method="Embedding/Lookup", code=bad, error="invalid_config") == 1
    assert value(daemon, "rockbed_requests_in_flight", method="Embedding/Lookup") == 0


def test_methods_that_do_not_exist_make_no_series(daemon: Daemon) -> None:
    with _channel(daemon) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/rockbed.v1.Embedding/Nonsense")(b"")
    assert all("Nonsense" not in str(family.samples) for family in scraped(daemon).values())


def test_a_stream_counts_the_keys_and_the_latency_of_each_of_its_requests(daemon: Daemon) -> None:
    with _channel(daemon) as channel:
        stub = embedding_pb2_grpc.EmbeddingStub(channel)
        assert len(list(stub.LookupStream(iter([_lookup(1, 2), _lookup(3)])))) == 2
        with pytest.raises(grpc.RpcError):
            list(stub.LookupStream(iter([_lookup(4), _lookup(5, group=9), _lookup(6)])))
    method = "Embedding/LookupStream"
    assert value(daemon, "rockbed_requests_total", method=method, code="OK", error="") == 1
    assert value(daemon, "rockbed_requests_total", method=method, code="NOT_FOUND", error="unknown_group") == 1
    assert value(daemon, "rockbed_request_keys_total", method=method) == 5
    assert value(daemon, "rockbed_request_duration_seconds_count", method=method) == 4


def test_a_stream_is_in_flight_until_its_client_leaves_which_is_no_error_of_the_server(daemon: Daemon) -> None:
    left = threading.Event()

    def requests() -> Iterator[Any]:
        yield _lookup(1)
        left.wait()

    method = "Embedding/LookupStream"
    with _channel(daemon) as channel:
        answers = embedding_pb2_grpc.EmbeddingStub(channel).LookupStream(requests())
        next(answers)
        assert value(daemon, "rockbed_requests_in_flight", method=method) == 1
        answers.cancel()
        left.set()
        until(lambda: value(daemon, "rockbed_requests_in_flight", method=method) == 0)
    # gRPC may tell a server that a client has no more to say before it tells that it has left
    ends = (value(daemon, "rockbed_requests_total", method=method, code=code, error="") for code in ("OK", "CANCELLED"))
    assert sum(ends) == 1


def test_latency_is_a_histogram_whose_buckets_add_up(daemon: Daemon) -> None:
    samples = scraped(daemon)["rockbed_request_duration_seconds"].samples
    lookup = [sample for sample in samples if sample.labels["method"] == "Embedding/Lookup"]
    buckets = {sample.labels["le"]: sample.value for sample in lookup if sample.name.endswith("_bucket")}
    assert [float(bound) for bound in buckets] == [*SECONDS, float("inf")]
    assert (SECONDS[0], SECONDS[-1]) == (1e-4, 30.0)
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["+Inf"] == 1
    (total,) = (sample.value for sample in lookup if sample.name.endswith("_sum"))
    assert all(count == (float(bound) >= total) for bound, count in buckets.items())


class _Holds(grpc.ServerInterceptor):  # type: ignore[misc]
    """Keeps lookups until they may go on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if not details.method.endswith("/Lookup"):
            return handler

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self.go.wait()
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def test_a_call_refused_because_too_many_are_under_way_is_counted_and_waiting_is_latency(
    open_storage: OpenStorage,
) -> None:
    engine, holds = engine_of(open_storage()), _Holds()
    config = ServerConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", workers=1, queue_max=1)
    daemon = Daemon(engine, config, interceptors=[holds])
    lookup, done = "Embedding/Lookup", {"code": "NOT_FOUND", "error": "unknown_group"}
    try:
        with _channel(daemon) as channel:
            stub = embedding_pb2_grpc.EmbeddingStub(channel)
            served = [stub.Lookup.future(_lookup(1)) for _ in range(2)]
            until(lambda: value(daemon, "rockbed_requests_in_flight", method=lookup) == 1)
            until(lambda: daemon._workers.tasks == 2)
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.Lookup(_lookup(1))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            holds.go.set()
            assert all(isinstance(call.exception(), grpc.RpcError) for call in served)
            until(lambda: value(daemon, "rockbed_requests_total", method=lookup, **done) == 2)
            with pytest.raises(grpc.RpcError):
                stub.Lookup(_lookup(1))
        until(lambda: value(daemon, "rockbed_requests_total", method=lookup, **done) == 3)
        limit = {"code": "RESOURCE_EXHAUSTED", "error": "overloaded"}
        assert value(daemon, "rockbed_requests_total", method=lookup, **limit) == 3
        assert value(daemon, "rockbed_requests_in_flight", method=lookup) == 0
    finally:
        holds.go.set()
        daemon.stop(0)


# --- the store ---


def test_what_groups_count_is_exported_under_their_numbers(daemon: Daemon) -> None:
    with PyStorage(daemon.target) as storage:
        embedding(storage, group=7).lookup(np.arange(3), train=False)
        stats = storage.stats()
    assert value(daemon, "rockbed_misses_total", group="7") == 3
    assert value(daemon, "rockbed_inserts_total", group="0") == 10
    assert value(daemon, "rockbed_updates_total", group="0") == 10
    assert value(daemon, "rockbed_skipped_gradients_total", group="0", reason="absent") == 0
    assert value(daemon, "rockbed_last_lsn") == stats["last_lsn"] > 0
    assert value(daemon, "rockbed_unflushed_entries") == stats["last_lsn"]
    assert value(daemon, "rockbed_memory_budget_bytes") == stats["memory_budget"]
    assert value(daemon, "rockbed_store_open") == 1


def test_gradient_norms_are_those_of_the_summed_gradients_before_clipping(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage, clip_norm=0.1)
    rng = np.random.default_rng(3)
    grads = rng.normal(size=(40_000, 4)).astype(np.float32)
    keys = rng.integers(0, 30_000, 40_000)
    rows.apply_gradients(keys, grads)
    sums = np.zeros((30_000, 4))
    np.add.at(sums, keys, grads.astype(np.float64))
    squares = (sums**2).sum(1)
    stats = storage.stats()["groups"][0]
    np.testing.assert_allclose(stats["gradient_square_sum"], squares.sum(), rtol=1e-5)  # float32 sums of repeats
    np.testing.assert_allclose(stats["gradient_norm_max"], np.sqrt(squares.max()), rtol=1e-5)
    assert stats["updates"] == np.unique(keys).size


@pytest.mark.parametrize("dim", [1, 3, 8, 33])
def test_gradients_as_large_as_float32_have_a_finite_norm_whatever_the_dim(open_storage: OpenStorage, dim: int) -> None:
    storage = open_storage()
    largest = float(np.finfo(np.float32).max)
    rows = embedding(storage, dim, duplicates="sequential", optimizer=sgd(0.0))
    rows.apply_gradients(keys_of(1, 2, 1), ones(3, dim, largest))
    stats = storage.stats()["groups"][0]
    np.testing.assert_allclose(stats["gradient_square_sum"], 3 * dim * largest**2)
    np.testing.assert_allclose(stats["gradient_norm_max"], np.sqrt(dim) * largest)


def test_a_push_that_is_refused_for_nan_counts_as_rejected_and_nothing_else(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    rows.apply_gradients(keys_of(1), ones(1))
    before = storage.stats()["groups"][0]
    with pytest.raises(GradientNotFinite):
        rows.apply_gradients(keys_of(2), ones(1, value=np.inf))
    largest = float(np.finfo(np.float32).max)
    with pytest.raises(GradientNotFinite):  # finite ones whose sum is not
        rows.apply_gradients(keys_of(2, 2), ones(2, value=largest))
    assert storage.stats()["groups"][0] == before | {
        "rejected_not_finite": 2,
        "memory_bytes": storage.stats()["groups"][0]["memory_bytes"],
    }


def test_the_largest_norm_is_remembered_for_one_to_two_minutes() -> None:
    clock = Clock(1_000.0)
    recent = RecentMaximum(clock)
    recent.note(3)
    clock.now += 59
    recent.note(2)
    assert recent.value() == 3
    clock.now += 60
    assert recent.value() == 3
    recent.note(1)
    clock.now += 2
    assert recent.value() == 1
    clock.now += 1_000
    assert recent.value() == 0


def test_lag_begins_with_a_push_and_ends_with_the_write_back(open_storage: OpenStorage) -> None:
    storage = open_storage()
    rows = embedding(storage)
    storage.flush()
    assert storage.stats()["write_back_lag_s"] == 0
    rows.apply_gradients(keys_of(1), ones(1))
    first = storage.stats()["write_back_lag_s"]
    assert 0 < first < storage.stats()["write_back_lag_s"]
    storage.flush()
    assert storage.stats()["write_back_lag_s"] == 0


def test_lag_does_not_count_the_time_in_which_nothing_was_to_be_written(open_storage: OpenStorage) -> None:
    storage = open_storage(still=False, write_back_interval=0.05)
    embedding(storage)
    written = engine_of(storage).write_back
    until(lambda: storage.stats()["flushed_lsn"] == storage.stats()["last_lsn"])
    flushed = written.clean_at
    until(lambda: written.clean_at > flushed)  # without a flush


def test_a_call_that_waits_for_memory_is_a_stall(open_storage: OpenStorage) -> None:
    storage = open_storage(memory_budget=1 << 16)
    rows = embedding(storage)
    assert storage.stats()["memory_stalls"] == 0
    for start in range(0, 3_000, 100):
        rows.apply_gradients(np.arange(start, start + 100), ones(100))
    stats = storage.stats()
    assert stats["memory_stalls"] > 0
    assert stats["memory_stall_s"] > 0
    assert stats["journal_stalls"] == stats["journal_stall_s"] == 0


# --- the endpoint ---


def test_two_daemons_of_a_process_have_metrics_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with busy_daemon(tmp_path / "one") as one, busy_daemon(tmp_path / "two") as two:
        with PyStorage(one.target) as storage, pytest.raises(UnknownGroup):
            storage.shrink(group=5, max_age=3)
        failed = {"method": "Admin/Shrink", "code": "NOT_FOUND", "error": "unknown_group"}
        assert value(one, "rockbed_requests_total", **failed) == 1
        assert value(two, "rockbed_requests_total", **failed) == 0


def test_a_metrics_port_that_is_taken_is_said_and_leaves_nothing_behind(
    daemon: Daemon, open_storage: OpenStorage
) -> None:
    engine = engine_of(open_storage("other"))
    free = Daemon(engine, ServerConfig(listen="127.0.0.1:0"))
    free.stop(0)
    listen = f"127.0.0.1:{free.port}"
    with pytest.raises(ServerUnavailable, match=r"cannot serve metrics on 127\.0\.0\.1:\d+: .*another metrics_listen"):
        Daemon(engine, ServerConfig(listen=listen, metrics_listen=f"127.0.0.1:{daemon.metrics_port}"))
    taken = daemon.target.removeprefix("grpc://")
    with pytest.raises(ServerUnavailable, match="cannot listen on"):
        Daemon(engine, ServerConfig(listen=taken, metrics_listen=listen))
    again = Daemon(engine, ServerConfig(listen=listen, metrics_listen="127.0.0.1:0"))
    again.stop(0)
    assert again.port == free.port


@pytest.mark.parametrize("listen", ["9400", ":9400", "localhost:", "localhost:99999", "localhost:x", "unix:/socket"])
def test_a_metrics_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(InvalidConfig, match=r"metrics_listen is .*, not HOST:PORT"):
        ServerConfig(metrics_listen=listen)
    assert ServerConfig(metrics_listen="0.0.0.0:9400").metrics_listen == "0.0.0.0:9400"


def test_of_a_store_that_is_closed_only_that_is_exported(tmp_path: Path, open_storage: OpenStorage) -> None:
    engine = engine_of(open_storage())
    daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
    try:
        engine.close()
        found = scraped(daemon)
        assert found["rockbed_store_open"].samples[0].value == 0
        assert "rockbed_disk_bytes" not in found
        assert "process_resident_memory_bytes" in found
    finally:
        daemon.stop(0)


def test_the_port_is_closed_with_the_daemon(tmp_path: Path) -> None:
    with busy_daemon(tmp_path) as daemon:
        daemon.stop(0)
        with pytest.raises(OSError, match="refused"):
            scraped(daemon)


def test_the_page_of_metrics_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert text == page(text), "run `python -m tests.metrics_page`"
