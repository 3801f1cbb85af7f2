"""The modules of Rockbed as files, and what each imports, read from the source without importing any of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("client", "optimizers", "server", "storage")


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package `rockbed`, those behind the links included."""
    found: dict[str, Path] = {}
    places = [ROOT / "rockbed", *(ROOT / "rockbed" / name for name in LINKED)]
    # rglob does not descend into links, so each linked folder is a starting point of its own.
    for file in sorted({file for place in places for file in place.rglob("*.py")}):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, source: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in `source`.

    `from a import b` gives "a.b", which may be a module or a name in one: `module_of` tells.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                home = module.split(".")
                base = ".".join([*home[: len(home) - up], *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def module_of(name: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name is, or lies in: "rockbed.types.F32" -> "rockbed.types"; None outside Rockbed."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None
