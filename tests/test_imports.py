"""`import rockbed` is cheap, imports point down, and what is public is documented."""

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import rockbed
from tests.source_tree import LINKED, ROOT, imports, module_of, modules

HEAVY = ("cupy", "grpc", "numba", "rocksdict", "torch")
LINES_MAX = {"code": 400, "tests": 700}  # a test file holds many small cases of one subject
LONG_FILES_ALLOWED = {  # path -> the reason
    "rockbed/v1/admin_pb2_grpc.py": "generated",
    "rockbed/v1/embedding_pb2_grpc.py": "generated",
}

# Which parts a part may import: itself and what lies below. "rockbed" is the shared modules (errors, types, ...).
BELOW = {
    "rockbed": {"rockbed"},
    "optimizers": {"rockbed", "optimizers"},
    "storage": {"rockbed", "storage"},
    "engine": {"rockbed", "optimizers", "storage", "engine"},
    "service": {"rockbed", "engine", "service"},
    "client": {"rockbed", "optimizers", "storage", "engine", "client"},
    "cli": {"rockbed", "engine", "service", "client", "cli"},
}
SERVICE_FILES = ("service", "admin", "daemon")


def part_of(module: str) -> str:
    """The layer of a module: a key of BELOW, or "public" for rockbed/__init__.py."""
    first, *rest = [*module.split(".")[1:], ""]
    if module in ("rockbed", "rockbed.__main__", "rockbed.torch", "rockbed.feature_column") or first == "compat":
        return "public"
    if first == "server":
        word = rest[0].split("_")[0]
        return "cli" if word == "cli" else "service" if word in SERVICE_FILES else "engine"
    return first if first in LINKED else "rockbed"


def may_use(library: str, module: str) -> bool:
    """Whether a module may import grpc, cupy, rocksdict or torch."""
    names = module.split(".")[1:]
    words = {word for name in names for word in name.split("_")}
    if library == "grpc":
        transport = names[:1] == ["client"] and "transport" in words
        return transport or names[:1] == ["v1"] or part_of(module) == "service"
    if library == "cupy":
        return "gpu" in words
    if library == "torch":
        return names[:2] == ["client", "torch"] or names[0] == "compat"
    return library != "rocksdict" or part_of(module) == "storage"


def violations(module: str, source: str, known: dict[str, Path], is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, a sentence each."""
    wrong = []
    for line, name in imports(module, source, is_package):
        library = name.split(".")[0]
        where = f"{module}, line {line}: "
        if library in LINKED:
            wrong.append(where + f"import rockbed.{library}, never the bare {library}")
        elif library in ("grpc", "cupy", "rocksdict", "torch") and not may_use(library, module):
            wrong.append(where + f"{library} is not to be imported here")
        elif (target := module_of(name, known)) and (part := part_of(module)) != "public":
            below = BELOW[part]
            if part_of(target) not in below:
                wrong.append(where + f"{part} imports {name}; it may import {', '.join(sorted(below))} only")
    return wrong


def measured_import() -> tuple[list[str], float]:
    """Which heavy libraries `import rockbed` loads in a fresh process, and how many seconds it takes there."""
    code = f"""
        import json, sys, time
        start = time.perf_counter()
        import rockbed
        seconds = time.perf_counter() - start
        loaded = sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY!r}))
        print(json.dumps([loaded, seconds]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded, seconds = json.loads(out)
    return loaded, seconds


def test_import_rockbed_loads_nothing_heavy_and_takes_less_than_a_third_of_a_second() -> None:
    runs = [measured_import() for _ in range(3)]
    assert [loaded for loaded, _ in runs] == [[]] * 3
    # The quickest of three, because a busy machine slows a run down. It is about 0.01 s where nothing else runs.
    assert min(seconds for _, seconds in runs) < 0.3


def test_the_torch_modules_are_loaded_when_used_and_say_how_to_install_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # as where it is not installed
import rockbed
assert "torch" in dir(rockbed)
try:
    rockbed.torch
except ModuleNotFoundError as problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "torch is not installed: pip install 'rockbed[torch]'\n"


def test_imports_point_down() -> None:
    known = modules()
    wrong = [
        sentence
        for module, file in known.items()
        for sentence in violations(module, file.read_text(), known, file.name == "__init__.py")
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_a_top_level_folder_by_its_bare_name() -> None:
    wrong = []
    for folder in ("tests", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for line, name in imports(module, file.read_text(), file.name == "__init__.py"):
                if name.split(".")[0] in LINKED:
                    wrong.append(f"{module}, line {line}: {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rockbed.errors", "import rockbed.storage"),
        ("rockbed.wire", "from rockbed import client"),
        ("rockbed.storage.rows", "from rockbed.server.engine import Engine"),
        ("rockbed.storage.rows", "from ..optimizers.base import Optimizer"),
        ("rockbed.storage.rows", "import storage.hot"),
        ("rockbed.storage.rows", "from rockbed import PyStorage"),
        ("rockbed.optimizers.adam", "from rockbed.storage import hot"),
        ("rockbed.optimizers.adam", "def late() -> None:\n    import rocksdict"),
        ("rockbed.server.engine", "import grpc"),
        ("rockbed.server.engine", "from rockbed.client.storage import PyStorage"),
        ("rockbed.server.engine.apply", "from rockbed.server.service import Servicer"),
        ("rockbed.server.service", "from rockbed.storage import hot"),
        ("rockbed.client.storage", "from rockbed.server import service"),
        ("rockbed.server.service", "from rockbed.client.storage import PyStorage"),
        ("rockbed.server.cli", "import grpc"),
        ("rockbed.client.embedding", "import grpc"),
        ("rockbed.storage.hot", "import cupy as cp"),
        ("rockbed.client.fused", "from torch import nn"),
        ("rockbed.client.fused", "from rockbed.torch import Embedding"),
    ],
)
def test_the_lint_sees_an_import_that_points_up(module: str, source: str) -> None:
    known = dict.fromkeys(
        [
            *("rockbed", "rockbed.errors", "rockbed.storage", "rockbed.storage.hot", "rockbed.optimizers"),
            *("rockbed.optimizers.base", "rockbed.server", "rockbed.server.engine", "rockbed.server.service"),
            *("rockbed.client", "rockbed.client.storage", "rockbed.torch"),
        ],
        ROOT,
    )
    assert len(violations(module, source, known)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rockbed.storage.files", "import rocksdict\nfrom rockbed.errors import StorageFull\nfrom . import hot"),
        ("rockbed.storage.hot_gpu", "import cupy"),
        ("rockbed.server.service", "import grpc\nfrom rockbed.server.engine import Engine"),
        ("rockbed.client.transport", "import grpc"),
        ("rockbed.client.storage", "from rockbed.server.engine import Engine"),
        ("rockbed.server.cli", "from rockbed.client.storage import PyStorage"),
        ("rockbed.client.torch.rows", "import torch\nfrom rockbed.client.storage import PyStorage"),
        ("rockbed.torch", "from rockbed.client.torch import Embedding"),
    ],
)
def test_the_lint_lets_an_import_that_points_down_pass(module: str, source: str) -> None:
    lower = ["rockbed", "rockbed.errors", "rockbed.storage.hot", "rockbed.server.engine", "rockbed.client.storage"]
    known = dict.fromkeys(lower, ROOT)
    assert violations(module, source, known) == []


@pytest.mark.parametrize("name", rockbed.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(rockbed, name)
    if isinstance(value, type):
        assert value.__doc__
        undocumented = [
            f"{name}.{member}"
            for member, what in vars(value).items()
            if not member.startswith("_")
            and (callable(what) or isinstance(what, classmethod | property))
            and not what.__doc__
        ]
        assert not undocumented
    assert name in dir(rockbed)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PyStorages'"):
        _ = rockbed.PyStorages


def test_every_error_is_public() -> None:
    from rockbed.errors import all_errors

    assert {cls.__name__ for cls in all_errors().values() if cls.__module__ == "rockbed.errors"} <= set(rockbed.__all__)


def test_no_file_has_outgrown_one_subject() -> None:
    others = (file for folder in ("tests", "benchmarks", "examples") for file in (ROOT / folder).rglob("*.py"))
    too_long = []
    for file in (*modules().values(), *others):
        path = file.relative_to(ROOT)
        lines = file.read_text().count("\n")
        if lines > LINES_MAX["tests" if path.parts[0] == "tests" else "code"] and str(path) not in LONG_FILES_ALLOWED:
            too_long.append(f"{path}: {lines} lines")
    assert not too_long, f"split, or give the reason in LONG_FILES_ALLOWED: {sorted(too_long)}"


def _needs_torch(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return False
    names = [name for _, name in imports("tests", ast.unparse(statement))]
    return any(name.split(".")[0] == "torch" or name.startswith(("rockbed.torch", "tests.torch.")) for name in names)


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda file: file.name)
def test_a_test_file_that_needs_torch_is_skipped_without_it(file: Path) -> None:
    for statement in ast.parse(file.read_text()).body:
        if 'importorskip("torch"' in ast.unparse(statement).replace("'", '"'):
            break
        assert not _needs_torch(statement), f"line {statement.lineno}: pytest.importorskip('torch') belongs above it"
