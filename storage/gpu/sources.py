"""The CUDA sources as text: one string for each thing that is compiled, whoever compiles it (CuPy, nvcc, a test's g++).

Includes are put in place here rather than found by the compiler: CuPy's cache of compiled kernels looks at the source
alone, and would not notice that a header has changed.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WARP = HERE / "warp.cuh"

# Nothing may be contracted or approximated: the bits are to be those of the CPU's kernels. 177: a function of a header
# that one of the sources does not need.
OPTIONS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--diag-suppress=177")
BLOCK_THREADS = 256

_SCALARS: dict[str, Any] = {"int": np.int32, "i64": np.int64, "float": np.float32, "double": np.float64}
_ELEMENTS = {"int": "i4", "i64": "i8", "u32": "u4", "u8": "u1", "float": "f4", "double": "f8"}


@dataclass(frozen=True, slots=True)
class Module:
    """What is compiled together. file: a `.cu` of this folder; instances: lines behind it that make kernels of it."""

    file: str
    instances: str = ""

    def text(self, warp: Path = WARP) -> str:
        """The source with its includes in place. warp: the file to take for warp.cuh."""
        return _text(self.file, warp) + self.instances

    def kernels(self) -> tuple[str, ...]:
        """The names of the kernels."""
        return tuple(_signatures(self))

    def arguments(self, kernel: str, given: tuple[Any, ...]) -> list[Any]:
        """`given` as what a launch of the kernel takes: numpy scalars of its types, arrays, None for a null pointer.

        Raises TypeError where an array is of another dtype than the kernel's: our own mistake, not to be a wrong read.
        """
        signature = _signatures(self)[kernel]
        if len(signature) != len(given):
            raise TypeError(f"{kernel} takes {len(signature)} arguments, not {len(given)}")
        return [_argument(kernel, of, value) for of, value in zip(signature, given, strict=True)]


def _argument(kernel: str, of: tuple[str, bool], value: Any) -> Any:
    name, is_pointer = of
    if not is_pointer:
        return _SCALARS[name](value)
    if value is not None and name in _ELEMENTS and np.dtype(_ELEMENTS[name]) != value.dtype:
        raise TypeError(f"{kernel}: {name}* was given an array of {value.dtype}")
    return value


@lru_cache
def _text(file: str, warp: Path) -> str:
    done: set[str] = set()

    def put(name: str) -> str:
        if name in done:
            return ""
        done.add(name)
        path = warp if name == WARP.name else HERE / name
        return re.sub(r'^#include "(.+)"\n', lambda found: put(found[1]), path.read_text(), flags=re.MULTILINE)

    return put(file).replace("#pragma once\n", "")


@lru_cache
def _signatures(module: Module) -> dict[str, list[tuple[str, bool]]]:
    """Kernel -> for each argument its type's name and whether it is a pointer."""
    source = ((HERE / module.file).read_text() + module.instances).replace("\\\n", " ")
    found = re.findall(r"\bKERNEL (?:CROWDED )?(\w+)\((.*?)\)", source, re.DOTALL)
    kernels = {name: _types(arguments) for name, arguments in found}
    if "NAME" in kernels:  # of the macro that makes a kernel of an instance
        instances = re.findall(r"^\w+\((\w+),", module.instances, re.MULTILINE)
        kernels |= dict.fromkeys(instances, kernels.pop("NAME"))
    return kernels


def _types(arguments: str) -> list[tuple[str, bool]]:
    each = [argument.replace("const ", "").split() for argument in arguments.split(",")]
    return [(words[0].rstrip("*"), words[0].endswith("*")) for words in each]


TABLE = Module("table.cu")
POOL = Module("pool.cu")
BACKWARD = Module("backward.cu")
