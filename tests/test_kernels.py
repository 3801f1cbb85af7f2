"""What a kernel may name. A kernel that is found in the cache is not compiled, so its mistakes show on new machines."""

import ast
import threading
from typing import Any

from rockbed.kernels import Deferred
from tests.source_tree import modules

COMPILED = {"kernel", "statistic", "inlined"}
KNOWN_TO_NUMBA = {"np", "math"}


def calls_through_modules(source: str) -> list[str]:
    """Calls in kernels of the kind `module.function()`, but for modules that numba itself knows."""
    kernels = [
        function
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef)
        and COMPILED & {at.id for at in function.decorator_list if isinstance(at, ast.Name)}
    ]
    return [
        f"{kernel.name}: {ast.unparse(call.func)}"
        for kernel in kernels
        for call in ast.walk(kernel)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id not in KNOWN_TO_NUMBA
    ]


def test_kernels_name_each_other_directly() -> None:
    # `Deferred` puts numba's own object in the place of a name, which it cannot do in another module
    found = {module: calls_through_modules(file.read_text()) for module, file in modules().items()}
    assert {module: calls for module, calls in found.items() if calls} == {}


def test_a_call_through_a_module_is_found() -> None:
    source = "@kernel\ndef f(x):\n    return np.sqrt(x) + g(x) + cb.h(x)\ndef not_one(x):\n    return cb.h(x)\n"
    assert calls_through_modules(source) == ["f: cb.h"]


def _other() -> int:
    return 1


def _names_other() -> Any:
    return _other


def test_a_kernel_is_seen_by_other_threads_only_when_what_it_names_is_ready() -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(numba: Any, function: Any) -> Any:
        begun.set()
        go.wait()
        return function

    place = globals()
    place["_other"] = Deferred(_other, slow)
    outer = Deferred(_names_other, lambda numba, function: function)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(outer())) for _ in range(2)]
    try:
        threads[0].start()
        assert begun.wait(20)
        threads[1].start()  # while the first is still making what it names
        threads[1].join(0.2)
        assert found == []
    finally:
        go.set()
        for thread in threads:
            thread.join()
    assert [isinstance(each, Deferred) for each in found] == [False, False]
