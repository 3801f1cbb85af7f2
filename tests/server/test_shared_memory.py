"""Memory that clients share with a server: what lies in it instead of travelling, and what is refused."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from rockbed import (
    Connection,
    DeadlineExceeded,
    Feature,
    FusedEmbedding,
    GradientNotFinite,
    InvalidConfig,
    LimitExceeded,
    PyEmbedding,
    PyStorage,
    Ragged,
    UnknownMemory,
)
from rockbed.client import shared_memory as client_memory
from rockbed.client.target import is_on_this_machine
from rockbed.config import StoreConfig
from rockbed.messages import lookup_request, push_request
from rockbed.requests import Gradients, Lookup, Request
from rockbed.server import service_memory
from rockbed.server import shared_memory as server_memory
from rockbed.server.engine import Engine
from rockbed.server.limits import Limits
from rockbed.server.shared_memory import SharedMemory, is_here
from rockbed.shared_messages import HEAD, SharedMessage, read_shared_message, shared_message
from rockbed.storage.journal import Journal
from rockbed.types import F32, I64
from rockbed.v1 import embedding_pb2 as pb
from rockbed.v1 import embedding_pb2_grpc
from rockbed.wire_format import Parts, joined
from tests.api.helpers import Clock, embedding, keys_of, ones, run_python, sgd
from tests.server.served import Connect, Server, refused
from tests.server.test_exactly_once import LosesAnswers
from tests.waiting import until

MIB = 1 << 20
KEYS = np.arange(20_000)  # of dim 4: 320 KB of weights
SECRET = b"0123456789abcdef"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

Memory = Callable[..., int]


@pytest.fixture
def memory() -> Iterator[Memory]:
    """(size = 4 MiB, **options): the descriptor of a memfd."""
    opened: list[int] = []

    def make(size: int = 4 * MIB, begins: bytes = SECRET, seals: int = SEALS, name: str = "rockbed") -> int:
        opened.append(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.pwrite(opened[-1], begins, 0)
        os.ftruncate(opened[-1], size)
        fcntl.fcntl(opened[-1], fcntl.F_ADD_SEALS, seals)
        return opened[-1]

    yield make
    for each in opened:
        os.close(each)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the answers that were written there; -1: there was no room."""
    sizes: list[int] = []

    def spy(view: memoryview, place: SharedMessage, answer: Parts) -> SharedMessage | None:
        found = server_memory.answer_in(view, place, answer)
        sizes.append(-1 if found is None else found.size)
        return found

    monkeypatch.setattr(service_memory, "answer_in", spy)
    return sizes


@pytest.fixture
def lay(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the requests that lay in memory."""
    sizes: list[int] = []

    def spy(view: memoryview, place: SharedMessage) -> memoryview:
        sizes.append(place.size)
        return server_memory.request_in(view, place)

    monkeypatch.setattr(service_memory, "request_in", spy)
    return sizes


def segments(storage: PyStorage) -> Any:
    """What a client has of such memory; None where it has given up."""
    return storage.backend._transport._memory  # type: ignore[attr-defined]


def of(storage: PyStorage, group: int = 0) -> PyEmbedding:
    return embedding(storage, group=group, optimizer=sgd(1.0))


# --- messages that lie in memory ---


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "unix:{folder}/socket"])
def test_large_messages_lie_in_memory_and_say_what_travelling_ones_say(
    server: Server, connect: Connect, lay: list[int], answers: list[int], tmp_path: Path, listen: str
) -> None:
    target = server.start(listen=listen.format(folder=tmp_path))
    shares, sends = connect(target), connect(target, shared_memory=False)
    rng = np.random.default_rng(1)
    grads = rng.standard_normal((KEYS.size, 4)).astype(np.float32)
    bags = Ragged(KEYS, np.arange(0, KEYS.size + 1, 4), rng.random(KEYS.size, np.float32))
    found: list[list[F32]] = []
    for storage, groups in ((shares, (1, 2)), (sends, (3, 4))):
        rows, others = (of(storage, group) for group in groups)
        fused = FusedEmbedding([Feature("a", rows, "mean"), Feature("b", others, combiner=None)])
        rows.apply_gradients(KEYS, grads)
        assert storage.apply_gradients([(rows, KEYS, grads), (others, KEYS, grads)])
        out = fused.lookup({"a": bags, "b": Ragged(KEYS, bags.offsets)})
        fused.apply_gradients(out, out.pooled, out.sequences)
        looked = storage.lookup([(rows, KEYS), (others, KEYS[::-1].copy())])
        found.append([rows.lookup(KEYS), *looked, out.pooled, *out.sequences.values()])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(lay) == 6
    assert min(lay) > 8 * KEYS.size
    rows_bytes = 16 * KEYS.size
    pushed, looked_up = sorted(answers)[:3], sorted(answers)[3:]
    assert pushed == [-1] * 3  # a flag, which travels
    assert [size // rows_bytes for size in looked_up] == [1, 1, 2]
    assert server.daemon is not None
    assert server.daemon._memory.nbytes() == segments(shares).nbytes == 4 * MIB  # one piece, again and again
    assert segments(sends) is None


@pytest.mark.parametrize("duplicates", ["sum", "sequential"])
@pytest.mark.parametrize("how", ["by key", "a bag each", "bags"])
def test_what_a_client_changes_during_a_push_spoils_neither_rows_nor_journal(
    server: Server, connect: Connect, lay: list[int], monkeypatch: pytest.MonkeyPatch, how: str, duplicates: str
) -> None:
    storage = connect(server.start())
    rows = embedding(storage, optimizer=sgd(1.0), duplicates=duplicates)
    fused = FusedEmbedding([Feature("a", rows, "sum")])
    append, spoils = Journal.append, True

    def spoil() -> None:
        for segment in segments(storage)._all if spoils else ():
            segment._memory[HEAD:] = b"\xff" * (segment.size - HEAD)  # NaN

    def spoiled(journal: Journal, kind: int, time_ms: int, parts: Any) -> int:
        spoil()
        return append(journal, kind, time_ms, parts)

    monkeypatch.setattr(Journal, "append", spoiled)
    if how == "by key" and duplicates == "sequential":  # these are looked at before anything else is done with them
        monkeypatch.setattr(Engine, "wait_for_journal_room", lambda engine: spoil())
    keys, step = np.arange(40_000), 4 if how == "bags" else 1
    grads = np.random.default_rng(1).standard_normal((keys.size // step, 4)).astype(np.float32)
    if how == "by key":
        rows.apply_gradients(keys, grads)
    else:
        fused.apply_gradients({"a": Ragged(keys, np.arange(0, keys.size + 1, step))}, grads)
    spoils = False
    assert len(lay) == 1
    wanted = -np.repeat(grads, step, axis=0)
    np.testing.assert_array_equal(rows.lookup(keys), wanted)
    server.stop()
    copy = shutil.copytree(server.folder / "store", server.folder / "copy")  # as a crash would leave it
    with PyStorage(str(copy)) as reopened:
        rows = embedding(reopened, optimizer=sgd(1.0), duplicates=duplicates)
        np.testing.assert_array_equal(rows.lookup(keys), wanted)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_every_precision_lies_there(server: Server, connect: Connect, lay: list[int], precision: str) -> None:
    rows = of(connect(server.start(), precision=precision))
    rows.apply_gradients(KEYS, np.full((KEYS.size, 4), -0.5, np.float32))
    np.testing.assert_array_equal(rows.lookup(KEYS), np.full((KEYS.size, 4), 0.5))
    assert len(lay) == 2


def test_small_messages_travel(server: Server, connect: Connect) -> None:
    storage = connect(server.start())
    of(storage).apply_gradients(keys_of(1), ones(1))
    of(storage).lookup(np.arange(client_memory.WORTH_BYTES // 32))
    assert segments(storage).nbytes == 0
    of(storage).lookup(np.arange(client_memory.WORTH_BYTES // 16))
    assert segments(storage).nbytes == 4 * MIB


def test_the_parts_of_a_large_lookup_lie_there_side_by_side(server: Server, connect: Connect, lay: list[int]) -> None:
    limits = Limits(message_bytes_max=1 << 18)
    storage = connect(server.start(limits=limits), in_flight=3)
    rows = of(storage)
    keys = np.arange(60_000)
    for part in np.split(keys, 10):
        rows.apply_gradients(part, -np.repeat(part[:, None], 4, axis=1).astype(np.float32))
    lay.clear()
    np.testing.assert_array_equal(rows.lookup(keys)[:, 3], keys)
    assert len(lay) == 4
    assert segments(storage).nbytes == 3 * 4 * MIB


def test_many_threads_have_a_piece_each(server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_memory, "_MOST_BYTES", 12 * MIB)  # for three of six at a time: the others' travel
    storage = connect(server.start())

    def train(group: int) -> F32:
        rows = of(storage, group)
        for step in range(20):
            rows.apply_gradients(KEYS, np.full((KEYS.size, 4), -group - step, np.float32))
            rows.lookup(KEYS)
        return rows.lookup(KEYS)

    with ThreadPoolExecutor(6) as pool:
        for group, found in enumerate(pool.map(train, range(6))):
            np.testing.assert_array_equal(found, 20 * group + 190)
    assert 4 * MIB <= segments(storage).nbytes <= 12 * MIB


def test_a_larger_message_gets_a_larger_piece_in_place_of_smaller_ones(
    server: Server, connect: Connect, lay: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_memory, "_MOST_BYTES", 8 * MIB)
    storage = connect(server.start())
    rows, many = of(storage), np.arange(200_000)
    assert rows.lookup(KEYS).shape == (20_000, 4)
    assert rows.lookup(many).shape == (200_000, 4)  # 4.8 MB
    assert segments(storage).nbytes == 8 * MIB
    assert rows.lookup(KEYS).shape == (20_000, 4)  # in the same
    assert segments(storage).nbytes == 8 * MIB
    assert len(lay) == 3
    assert rows.lookup(np.arange(400_000)).shape == (400_000, 4)  # more than there may be: it travels
    assert len(lay) == 3
    assert segments(storage).nbytes == 8 * MIB  # and costs no piece
    assert rows.lookup(many).shape == (200_000, 4)
    assert len(lay) == 4


# --- what may go wrong on the way ---


def test_no_push_is_lost_or_applied_twice_where_answers_are_lost(
    server: Server, connect: Connect, lay: list[int]
) -> None:
    loses = LosesAnswers(1 / 3)
    rows = of(connect(server.start(loses)))
    rng, sums = np.random.default_rng(3), np.zeros(KEYS.size)
    for _ in range(15):
        values = rng.integers(-8, 9, KEYS.size)
        rows.apply_gradients(KEYS, np.repeat(values[:, None], 4, axis=1).astype(np.float32))
        sums += values
        np.testing.assert_array_equal(rows.lookup(KEYS)[:, 0], -sums)
    assert min(loses.lost.values()) > 2
    assert len(lay) > 30  # each attempt anew


def test_a_server_that_was_restarted_is_sent_the_message_and_shares_anew(
    server: Server, connect: Connect, lay: list[int]
) -> None:
    target = server.start()
    storage = connect(target)
    rows = of(storage)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    server.stop()
    server.engine.close()
    server.engine = Engine(server.folder / "store", StoreConfig(write_back_interval_s=3600))
    server.start(listen=target.removeprefix("grpc://"))
    lay.clear()
    rows.apply_gradients(KEYS, ones(KEYS.size))
    assert lay == []
    np.testing.assert_array_equal(rows.lookup(KEYS), -2)
    assert len(lay) == 1
    assert segments(storage).nbytes == 4 * MIB


def test_memory_that_an_unanswered_call_may_still_use_is_used_by_no_other(server: Server, connect: Connect) -> None:
    class Holds(grpc.ServerInterceptor):  # type: ignore[misc]
        """The first lookup, once it has been carried out and before its answer is written."""

        def __init__(self) -> None:
            self.come, self.go = threading.Event(), threading.Event()

        def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = continuation(details)

            def call(request: Any, context: grpc.ServicerContext) -> Any:
                answer = handler.unary_unary(request, context)
                if not self.come.is_set():
                    self.come.set()
                    self.go.wait(30)
                return answer

            if not details.method.endswith("/Lookup"):
                return handler
            return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    holds = Holds()
    storage = connect(server.start(holds), deadline_s=1, retry_s=0)
    rows = of(storage)
    try:
        with pytest.raises(DeadlineExceeded):
            rows.lookup(KEYS)
        rows.apply_gradients(KEYS, ones(KEYS.size))
        out = rows.lookup(KEYS)
        assert server.daemon is not None
        assert server.daemon._memory.nbytes() == 8 * MIB
        holds.go.set()  # now it writes zeros
        for _ in range(20):
            np.testing.assert_array_equal(rows.lookup(KEYS), out)
        np.testing.assert_array_equal(out, -1)
    finally:
        holds.go.set()
    assert segments(storage).nbytes == 4 * MIB  # the other is gone


def test_a_server_that_takes_none_is_asked_once_a_minute(
    server: Server, connect: Connect, lay: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG", "rockbed.client")
    target = server.start(limits=Limits(shared_bytes_max=4 * MIB))
    first, second = connect(target), connect(target)

    def said(level: str) -> int:
        start = f"rockbed: no memory is shared with {target} (4194304 bytes of shared memory, where others have"
        return sum(each.message.startswith(start) and each.levelname == level for each in caplog.records)

    of(first).apply_gradients(KEYS, ones(KEYS.size))
    lay.clear()
    for _ in range(3):
        of(second).apply_gradients(KEYS, ones(KEYS.size))
    assert (lay, said("INFO"), said("DEBUG")) == ([], 1, 0)
    monkeypatch.setattr(client_memory, "_REST_S", 0)
    segments(second).rest()  # the minute is over
    of(second).lookup(KEYS)
    assert (lay, said("INFO"), said("DEBUG")) == ([], 1, 1)
    of(first).lookup(KEYS)  # it still has what it had
    assert len(lay) == 1
    assert server.daemon is not None
    server.daemon._memory._mapped.clear()  # as what was idle is let go of
    np.testing.assert_array_equal(of(second).lookup(KEYS), -4)
    assert len(lay) == 2


def test_an_older_server_in_its_place_is_sent_messages(
    server: Server, connect: Connect, lay: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = server.start()
    storage = connect(target)
    rows = of(storage)
    rows.apply_gradients(KEYS, ones(KEYS.size))
    server.stop()
    server.engine.close()
    server.engine = Engine(server.folder / "store", StoreConfig(write_back_interval_s=3600))
    with monkeypatch.context() as patch:  # one that does not know SharedEmbedding
        patch.setattr(service_memory, "METHODS", ())
        patch.setattr(service_memory.MemoryService, "add_to", lambda self, server: None)
        server.start(listen=target.removeprefix("grpc://"))
    lay.clear()
    for step in range(3):
        rows.apply_gradients(KEYS, ones(KEYS.size))
        np.testing.assert_array_equal(rows.lookup(KEYS), -2 - step)
    assert (lay, segments(storage).nbytes) == ([], 0)


def test_a_large_lookup_waits_for_a_server_that_is_away(server: Server, connect: Connect, lay: list[int]) -> None:
    target = server.start(limits=Limits(message_bytes_max=1 << 19))
    storage = connect(target, retry_s=30)
    rows = of(storage)
    for part in np.split(KEYS, 2):
        rows.apply_gradients(part, ones(part.size))
    segments(storage).clear()
    server.stop()
    back = threading.Timer(1, lambda: server.start(listen=target.removeprefix("grpc://")))
    back.start()
    np.testing.assert_array_equal(rows.lookup(np.tile(KEYS, 3)), -1)  # in two messages
    back.join()
    assert len(lay) == 2


def test_a_forked_child_writes_into_no_memory_of_its_parent(server: Server) -> None:
    script = """
import signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
storage = PyStorage(sys.argv[1])
rows = PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(), 4)
keys = np.arange(20_000)
rows.apply_gradients(keys, np.ones((20_000, 4), np.float32))
memory = storage.backend._transport._memory
(segment,) = memory._free
before = bytes(segment._memory)
memory._lock.acquire()  # as another thread may
child = os.fork()
if child == 0:
    signal.alarm(20)
    for call in (lambda: rows.apply_gradients(keys, np.full((20_000, 4), 9, np.float32)), lambda: rows.lookup(keys)):
        try:
            call()
        except Exception as error:
            print(type(error).__name__ + str("across fork()" in str(error)), flush=True)
    storage.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
memory._lock.release()
assert bytes(segment._memory) == before
assert (rows.lookup(keys) == -1).all()
assert memory.nbytes == 4 << 20
print("well")"""
    done = run_python(script, server.start())
    assert done.stdout.split() == ["StorageClosedTrue"] * 2 + ["well"], done.stderr


def test_an_error_comes_through_and_the_memory_with_it(server: Server, connect: Connect) -> None:
    storage = connect(server.start())
    rows = of(storage)
    grads = ones(KEYS.size)
    grads[-1] = np.inf
    for _ in range(3):
        with pytest.raises(GradientNotFinite):
            rows.apply_gradients(KEYS, grads)
    np.testing.assert_array_equal(rows.lookup(KEYS), 0)
    assert server.daemon is not None
    assert server.daemon._memory.nbytes() == segments(storage).nbytes == 4 * MIB  # the same each time


def test_where_the_system_gives_no_memory_messages_travel(
    server: Server, connect: Connect, lay: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    storage = connect(server.start())
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", none)
        of(storage).apply_gradients(KEYS, ones(KEYS.size))
    assert (lay, segments(storage).nbytes) == ([], 0)
    segments(storage)._rests_until = 0.0  # a minute later
    np.testing.assert_array_equal(of(storage).lookup(KEYS), -1)
    assert len(lay) == 1


def test_a_client_that_is_closed_keeps_none(server: Server, connect: Connect) -> None:
    storage = connect(server.start())
    of(storage).lookup(KEYS)
    memory = segments(storage)
    assert memory.nbytes == 4 * MIB
    storage.close()
    assert memory.nbytes == 0


# --- what a server opens ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seals": 0}, "those seals"),
        ({"seals": fcntl.F_SEAL_GROW}, "those seals"),
        ({"name": "others"}, "of that name"),
        ({"size": HEAD - 1}, "those seals"),
        ({"begins": b"another secret.."}, "does not begin with the secret"),
    ],
)
def test_memory_that_could_harm_the_server_or_is_anothers_is_not_opened(
    memory: Memory, options: dict[str, Any], said: str
) -> None:
    shared = SharedMemory(Limits())
    with pytest.raises(InvalidConfig, match=said):
        shared.add(os.getpid(), memory(**options), SECRET)
    assert shared.nbytes() == 0


def test_memory_of_huge_pages_which_may_run_out_is_not_opened(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge:
        f_bsize = 2 * MIB

    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: Huge)
    with pytest.raises(InvalidConfig, match="of usual pages"):
        SharedMemory(Limits()).add(os.getpid(), memory(), SECRET)


@pytest.mark.parametrize("setting", ["2\n", None])
def test_nothing_is_shared_where_a_page_may_be_missing_when_it_is_touched(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None
) -> None:
    monkeypatch.setattr(server_memory, "_OVERCOMMIT", tmp_path / "overcommit_memory")
    if setting is not None:
        (tmp_path / "overcommit_memory").write_text(setting)
    with pytest.raises(LimitExceeded, match="no memory that is safe to share"):
        SharedMemory(Limits()).add(os.getpid(), memory(), SECRET)


def test_what_is_no_memory_is_not_opened(memory: Memory, tmp_path: Path) -> None:
    shared = SharedMemory(Limits())
    closed = os.dup(memory())
    os.close(closed)
    (tmp_path / "memfd:rockbed").write_bytes(SECRET + bytes(MIB))
    reading, writing = os.pipe()
    with (tmp_path / "memfd:rockbed").open("r+b") as file:
        for process, descriptor in [
            (os.getpid(), closed),
            (os.getpid(), file.fileno()),
            (os.getpid(), reading),
            (os.getpid(), 2**32 - 1),
            (2**31, 0),
        ]:
            with pytest.raises(InvalidConfig, match=f"descriptor {descriptor} of process {process} cannot be shared"):
                shared.add(process, descriptor, SECRET)
    for end in (reading, writing):
        os.close(end)
    for secret in (b"", SECRET[:-1], SECRET + b"\0"):
        with pytest.raises(InvalidConfig, match="the secret"):
            shared.add(os.getpid(), memory(), secret)


def test_no_more_is_shared_than_the_server_is_told(memory: Memory) -> None:
    shared = SharedMemory(Limits(shared_bytes_max=20 * MIB))
    for _ in range(2):
        shared.add(os.getpid(), memory(size=8 * MIB), SECRET)
    shared.add(os.getpid(), memory(size=MIB), SECRET)  # counts as 4 MiB: it takes a descriptor, too
    with pytest.raises(LimitExceeded, match=f"{4 * MIB} bytes .* others have {20 * MIB}, and shared_bytes_max is"):
        shared.add(os.getpid(), memory(size=MIB), SECRET)
    assert shared.nbytes() == 17 * MIB
    shared.close()
    assert shared.nbytes() == 0


def test_what_is_idle_for_a_minute_is_let_go_of(memory: Memory) -> None:
    clock = Clock()
    shared = SharedMemory(Limits(), clock=clock)
    first, second = (shared.add(os.getpid(), memory(), SECRET) for _ in range(2))
    clock.now += 40
    place = SharedMessage(first, HEAD, 1, HEAD, 1)
    view = shared.view(place)
    clock.now += 40
    with pytest.raises(UnknownMemory, match="idle for 60 s"):
        shared.view(SharedMessage(second, HEAD, 1, HEAD, 1))
    assert shared.nbytes() == 4 * MIB
    clock.now += 40
    with pytest.raises(UnknownMemory):
        shared.view(place)
    assert view[: len(SECRET)] == SECRET  # a call that is still at it keeps its own
    shared.close()


def test_it_is_let_go_of_although_nobody_calls(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_memory, "_IDLE_S", 0.2)
    shared = SharedMemory(Limits())
    for _ in range(2):  # and again after all were gone
        shared.add(os.getpid(), memory(), SECRET)
        until(lambda: shared.nbytes() == 0)
    shared.close()


# --- what a client that nobody here wrote may send ---


def share(channel: grpc.Channel, descriptor: int) -> bytes:
    request = pb.ShareMemoryRequest(process=os.getpid(), descriptor=descriptor, secret=SECRET)
    handle: bytes = embedding_pb2_grpc.SharedEmbeddingStub(channel).ShareMemory(request).memory
    return handle


def raw(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(f"/rockbed.v1.SharedEmbedding/{method}")


def messages(keys: I64) -> tuple[bytes, bytes]:
    """A lookup of group 0, and a push."""
    grads = ones(keys.size)
    push = push_request([Gradients(0, keys, grads, None)], [(keys, grads)], 0, Request("", 0))
    return joined(lookup_request(Lookup(0, keys, grads), False, 0)), joined(push)


def test_an_answer_lies_where_there_is_room_for_it_and_travels_otherwise(
    server: Server, connect: Connect, memory: Memory
) -> None:
    target, descriptor = server.start(), memory()
    of(connect(target)).apply_gradients(keys_of(1, 2), -ones(2))
    lookup, push = messages(keys_of(1, 2))
    os.pwrite(descriptor, lookup, 100)
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        handle = share(channel, descriptor)
        answer = raw(channel, "Lookup")(shared_message(SharedMessage(handle, 100, len(lookup), 1_000, 34)))
        assert read_shared_message(answer) == SharedMessage(b"", 1_000, 34)
        lies = pb.LookupResponse.FromString(os.pread(descriptor, 34, 1_000))
        assert lies.weights == np.ones((2, 4), np.float32).tobytes()
        for room in (0, 33):
            answer = raw(channel, "Lookup")(shared_message(SharedMessage(handle, 100, len(lookup), 2_000, room)))
            assert pb.LookupResponse.FromString(pb.SharedMessage.FromString(answer).message) == lies
        assert os.pread(descriptor, 34, 2_000) == bytes(34)
        os.pwrite(descriptor, push, 100)
        answer = raw(channel, "ApplyGradients")(shared_message(SharedMessage(handle, 100, len(push), HEAD, 8)))
        assert read_shared_message(answer) == SharedMessage(b"", HEAD, 2)
        assert pb.ApplyGradientsResponse.FromString(os.pread(descriptor, 2, HEAD)).applied


PLACES = [
    (SharedMessage(b"", HEAD - 1, 10, HEAD, 0), "invalid_config", "10 bytes at 63 of a shared memory of 4194304"),
    (SharedMessage(b"", 4 * MIB - 9, 10, HEAD, 0), "invalid_config", "10 bytes at 4194295"),
    (SharedMessage(b"", 2**63 - 1, 10, HEAD, 0), "invalid_config", "10 bytes at 9223372036854775807"),
    (SharedMessage(b"", HEAD, -1, HEAD, 0), "invalid_config", "-1 bytes at 64"),
    (SharedMessage(b"", HEAD, 10, 0, 10), "invalid_config", "10 bytes at 0"),
    (SharedMessage(b"", HEAD, 10, 4 * MIB, 1), "invalid_config", "1 bytes at 4194304"),
    (SharedMessage(b"", HEAD, (1 << 16) + 1, HEAD, 0), "limit_exceeded", "message_bytes_max is 65536"),
    (SharedMessage(b"", HEAD, 1_000, HEAD, 0), "invalid_config", "1000 bytes that are no request"),
    (SharedMessage(b"x" * 16, HEAD, 10, HEAD, 0), "unknown_memory", "the server has no such memory"),
    (b"\x0a\x05", "invalid_config", "2 bytes that are no SharedMessage"),
    (b"\x10\xff", "invalid_config", "2 bytes that are no SharedMessage"),
    (b"", "unknown_memory", "the server has no such memory"),
]


@pytest.mark.parametrize(("place", "code", "said"), PLACES)
@pytest.mark.parametrize("method", ["Lookup", "ApplyGradients", "FusedApplyGradients"])
def test_a_place_where_no_message_can_be_is_refused(
    server: Server, memory: Memory, method: str, place: SharedMessage | bytes, code: str, said: str
) -> None:
    target = server.start(limits=Limits(message_bytes_max=1 << 16))
    descriptor = memory(begins=SECRET + bytes(48) + b"\xff" * 2_000)
    with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
        handle = share(channel, descriptor)
        if isinstance(place, SharedMessage):
            numbers = place.at, place.size, place.room_at, place.room
            place = shared_message(SharedMessage(place.memory or handle, *numbers))
        found = refused(raw(channel, method), place)
        assert (found[0], found[1]) == (
            grpc.StatusCode.NOT_FOUND if code == "unknown_memory" else grpc.StatusCode.INVALID_ARGUMENT,
            code,
        )
        assert said in found[2]


def test_only_callers_on_this_machine_share() -> None:
    here = ["unix:", "unix:/tmp/socket", "ipv4:127.0.0.1:40312", "ipv4:127.8.0.1:1", "ipv6:%5B::1%5D:40312"]
    here += ["ipv6:[::1]:1", "ipv6:%5B::ffff:127.0.0.1%5D:1"]
    there = [
        "ipv4:10.0.0.1:40312",
        "ipv6:%5B2001:db8::1%5D:1",
        "ipv6:%5B::ffff:10.0.0.1%5D:1",
        "",
        "vsock:1:2",
        "ipv4:",
    ]
    assert [is_here(peer) for peer in here + there] == [True] * len(here) + [False] * len(there)


def test_others_are_refused(server: Server, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_memory, "is_here", lambda peer: not peer.startswith("ipv4:127.0.0.1:"))
    with grpc.insecure_channel(server.start().removeprefix("grpc://")) as channel:
        request = pb.ShareMemoryRequest(process=os.getpid(), descriptor=memory(), secret=SECRET)
        found = refused(embedding_pb2_grpc.SharedEmbeddingStub(channel).ShareMemory, request)
    assert (found[0], found[1]) == (grpc.StatusCode.PERMISSION_DENIED, "permission_denied")
    assert "is another machine" in found[2]


def test_a_client_asks_only_servers_that_may_be_on_this_machine() -> None:
    here = ["grpc://127.0.0.1:7400", "grpc://127.1.2.3:1", "grpc://localhost:1", "grpc://[::1]:1", "grpc+unix:///tmp/s"]
    there = ["grpc://127.example.com:1", "grpc://10.0.0.1:1", "grpc://host:1", "grpcs://localhost:1", "grpc://[::2]:1"]
    assert [is_on_this_machine(each) for each in here + there] == [True] * len(here) + [False] * len(there)


def test_whether_to_share_is_true_or_false() -> None:
    with pytest.raises(InvalidConfig, match="shared_memory is 'no', not True or False"):
        Connection(shared_memory="no")  # type: ignore[arg-type]
