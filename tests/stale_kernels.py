"""Deletes compiled kernels that numba would reuse wrongly: `python -m tests.stale_kernels`.

numba's cache on disk looks at the time and size of a kernel's own file. What the kernel took from other
files (an inlined helper, a constant) is frozen in it, and a change there goes unseen. So an index (.nbi)
is dropped when any Rockbed module that its file imports, directly or through others, is newer.
"""

from pathlib import Path

from tests.source_tree import imports, module_of, modules


def delete_stale(known: dict[str, Path]) -> list[Path]:
    """Delete the indexes that are out of date and return them. known: dotted name -> file, as `modules()` gives."""
    uses: dict[str, set[str]] = {}
    for module, file in known.items():
        names = imports(module, file.read_text(), file.name == "__init__.py")
        uses[module] = {found for _, name in names if (found := module_of(name, known))}
    stale = []
    for module, file in known.items():
        # The index of a kernel is named <file>.<function>-<line>.<python>.nbi.
        indexes = list((file.parent / "__pycache__").glob(f"{file.stem}.*.nbi"))
        if indexes:
            newest = max(known[used].stat().st_mtime for used in _closure(module, uses))
            stale += [index for index in indexes if index.stat().st_mtime < newest]
    for index in stale:
        index.unlink(missing_ok=True)
    return stale


def _closure(module: str, uses: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += uses[here]
    return seen


if __name__ == "__main__":
    if stale := delete_stale(modules()):
        print(f"{len(stale)} kernels are out of date and will be compiled again")
