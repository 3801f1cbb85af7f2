"""What a launcher checks: the types of arguments, and under the shim what a kernel may not do."""

import builtins
import importlib.util
import sys
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rockbed.device_arrays import Stream
from rockbed.errors import DeviceUnavailable, MissingPackage
from rockbed.storage.gpu import sources
from rockbed.storage.gpu.cupy_launcher import CupyLauncher
from rockbed.storage.gpu.sources import BACKWARD, POOL, TABLE, Module
from rockbed.storage.gpu.table import DeviceTable
from tests.gpu.host_launcher import HostLauncher
from tests.gpu.tables import make_table


def test_without_cupy_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackage, match=r"pip install 'rockbed\[gpu\]'"):
        CupyLauncher()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no CuPy: pip install 'rockbed[gpu]'")
def test_without_a_device_the_error_says_so() -> None:
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    with pytest.raises(DeviceUnavailable, match="CUDA device"):
        CupyLauncher(count)


def test_streams_are_ordered_by_events_and_their_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for CuPy, whose own objects for streams of others may destroy those: none is made.
    calls: list[tuple[Any, ...]] = []
    current = SimpleNamespace(ptr=0)

    def device(number: int) -> AbstractContextManager[None]:
        calls.append(("device", number))
        return nullcontext()

    runtime = SimpleNamespace(
        getDeviceCount=lambda: 2,
        CUDARuntimeError=RuntimeError,
        eventRecord=lambda event, stream: calls.append(("record", event, stream)),
        streamWaitEvent=lambda stream, event: calls.append(("wait", stream, event)),
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        Device=device,
        Event=lambda disable_timing: SimpleNamespace(ptr=99),
        get_current_stream=lambda number: current,
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    launcher = CupyLauncher(1)
    for same in (0, 1):  # the default stream, which waits for itself as it is
        launcher.wait_for(same)
        launcher.let_go_on(same)
    assert calls == []
    launcher.wait_for(70)
    launcher.let_go_on(70)
    assert calls == [
        *(("device", 1), ("record", 99, 70), ("wait", 0, 99)),
        *(("device", 1), ("record", 99, 0), ("wait", 70, 99)),
    ]
    current.ptr = 80
    assert launcher.current_stream() == Stream(80, owner=current)


def test_arguments_are_given_the_types_of_the_kernel() -> None:
    flags, rows = np.zeros(4, np.uint8), np.zeros(4, np.int32)
    given = TABLE.arguments("change_flags", (flags, rows, 4, 1, 2))
    assert [type(each) for each in given[2:]] == [np.int64, np.int32, np.int32]
    with pytest.raises(TypeError, match=r"change_flags: int\* was given an array of int64"):
        TABLE.arguments("change_flags", (flags, rows.astype(np.int64), 4, 1, 2))
    with pytest.raises(TypeError, match="change_flags takes 5 arguments, not 4"):
        TABLE.arguments("change_flags", (flags, rows, 4, 1))


def test_every_kernel_of_the_sources_is_known_and_launched_by_somebody() -> None:
    assert {"find", "settle", "clock_turn"} <= set(TABLE.kernels())
    assert POOL.kernels() == ("pool", "mark_absent", "check_offsets")
    assert Module("update.cu", "UPDATE(one, Sgd, 4)\nUPDATE(two, Adam, 4)\n").kernels() == ("one", "two")
    code = "".join(path.read_text() for path in sources.HERE.glob("*.py"))
    for name in (*TABLE.kernels(), *POOL.kernels(), *BACKWARD.kernels()):
        assert f'"{name}"' in code, f"{name} is never launched"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if (i <= n) flags[i] = 1;", "wrote beside an array"),
        ("if (i < n && i % 2) wait_for_lanes(~0u);", "threads wait for lanes that never come"),
        ("if (i == 0) load_four((const float*)(flags + 4));", "no multiple of 16"),
    ],
)
def test_the_shim_notices(body: str, said: str) -> None:
    launcher = HostLauncher()
    module = Module("table.cu", f"KERNEL wrong(u8* flags, i64 n) {{ const i64 i = thread_number(); {body} }}\n")
    with pytest.raises(AssertionError, match=said):
        launcher.launch(module, "wrong", 32, launcher.zeros(32, np.uint8), 32)


def test_the_shim_notices_work_on_a_stream_of_the_thread() -> None:
    launcher = HostLauncher()
    launcher.own_stream_only = True
    with launcher.own_stream(), launcher.own_stream():
        made = launcher.zeros(3, np.uint8)
    with pytest.raises(AssertionError, match="stream of the thread's"):
        launcher.to_host(made)
    with pytest.raises(AssertionError, match="stream of the thread's"):
        launcher.zeros(3, np.uint8)


def test_a_table_launches_through_its_launcher_only() -> None:
    launcher = HostLauncher()
    table: DeviceTable = make_table(launcher)
    launcher.launches.clear()
    waits = launcher.waits
    rows = launcher.to_device(np.arange(3, dtype=np.int32))
    table.insert(launcher.to_device(np.arange(3)), 1, 1, pin=True)
    assert launcher.waits == waits + 1  # how many of them are new
    table.update(rows, launcher.zeros((3, 4), np.float32), 0.1, step=-1, now_ms=1, lsn=1)
    table.gather(rows)
    table.unpin()
    assert launcher.waits == waits + 1
    assert launcher.launches[-3:] == ["update", "gather", "clear_bits"]
