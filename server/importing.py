"""Import: rows of an export, or of a damo-embedding dump, into a store."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rockbed.errors import DimMismatch, GroupConflict, InvalidConfig, RowNotFinite, StorageCorrupt, UnknownGroup
from rockbed.reports import ImportReport
from rockbed.requests import ImportOptions, PutRows
from rockbed.server import removal
from rockbed.server.chains import chain_of
from rockbed.server.fitting import called, same_variable
from rockbed.server.group import Group
from rockbed.server.import_sources import Source, sources_of
from rockbed.server.putting import put
from rockbed.server.rules import rules_of
from rockbed.server.scanning import current
from rockbed.slots import SLOTS, slots_of
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

BATCH_BYTES_MAX = 4 << 20  # of rows in one journal entry
_REMOVE_KEYS = 1 << 14  # in one journal entry
DISTINCT_KEYS_MAX = 1 << 24  # that are compared with each other at a time, 8 bytes each


def import_(
    engine: "Engine", path: Path, options: ImportOptions, progress: Callable[[int, int], None] | None
) -> ImportReport:
    """See PyStorage.import_."""
    engine.check_open()
    engine.must_be_writable("import")
    chain = chain_of(path) if options.chain else [path]
    exports = [(each, _chosen(engine, each, sources_of(each), options, whole=each == path)) for each in chain]
    tell = progress or (lambda done, total: None)
    total = sum(source.rows for _, sources in exports for source in sources)
    report = ImportReport(options.mode)
    report.rows_elsewhere = _check(engine, exports, options, lambda: tell(0, total))
    done = 0
    for _, sources in [] if options.dry_run else exports:
        for source in sources:
            group = _group_for(engine, source, report)
            for counts in (report.rows_read, report.rows_written, *([report.rows_removed] if source.goes_on else [])):
                counts.setdefault(group.number, 0)
            for _, rows in source.tables():
                kept = _in_slots(rows, options)
                report.rows_read[group.number] += kept.keys.size
                done += rows.keys.size - kept.keys.size
                for batch in _batches(group, kept):
                    report.rows_written[group.number] += put(engine, group.number, batch, mode=options.mode)
                    done += batch.keys.size
                    tell(done, total)
            for keys in source.removed():
                report.rows_removed[group.number] += _remove(engine, group, keys[_wanted(keys, options)])
    return report


def _in_slots(rows: PutRows, options: ImportOptions) -> PutRows:
    wanted = _wanted(rows.keys, options)
    if wanted.all():
        return rows
    return _picked(rows, wanted)


def _picked(rows: PutRows, which: Any) -> PutRows:
    """Some of the rows. which: a slice, or bool[n]."""
    given: dict[str, Any] = {each.name: getattr(rows, each.name) for each in fields(rows)}
    picked: dict[str, Any] = {name: None if array is None else array[which] for name, array in given.items()}
    return PutRows(**picked)


def _wanted(keys: I64, options: ImportOptions) -> Bool:
    if (options.slots_from, options.slots_to) == (0, SLOTS):
        return np.ones(keys.size, np.bool_)
    slots = slots_of(keys)
    wanted: Bool = (slots >= options.slots_from) & (slots < options.slots_to)
    return wanted


def _remove(engine: "Engine", group: Group, keys: I64) -> int:
    """Remove the rows of those keys that have one. Returns how many."""
    removed = 0
    for start in range(0, keys.size, _REMOVE_KEYS):
        with engine.quiet(), group.lock:
            group.must_exist()
            there = current(group, keys[start : start + _REMOVE_KEYS]).keys
            removal.remove(engine, group, there, "import")
        removed += there.size
    return removed


def _chosen(
    engine: "Engine", path: Path, sources: list[Source], options: ImportOptions, *, whole: bool
) -> list[Source]:
    """Those whose rows go to a group that is asked for. whole: there must be some for each; what an export goes on from
    may have had fewer."""
    if options.groups is None:
        return sources
    numbers = [_number_of(engine, source) for source in sources]
    absent = [group for group in options.groups if group not in numbers]
    if absent and whole:
        known = engine.groups.get(absent[0])
        wanted = f"group {absent[0]}" if known is None else called(known.config)
        there = ", ".join(
            str(number) if source.config is None or source.config.name is None else f"{number} ({source.config.name!r})"
            for source, number in zip(sources, numbers, strict=True)
            if number is not None
        )
        raise UnknownGroup(f"{path} has no rows for {wanted} of this store (it has some for: {there or 'none'})")
    return [source for source, number in zip(sources, numbers, strict=True) if number in options.groups]


def _number_of(engine: "Engine", source: Source) -> int | None:
    """The number that the rows' group has in this store, or will be created with: the one it had, by which its rows
    begin as they did. None = that is another name's here, and it gets one that is free."""
    group = _group_of(engine, source)
    if group is not None:
        return group.number
    return None if source.number in engine.groups else source.number


def _group_of(engine: "Engine", source: Source) -> Group | None:
    """The store's group for the rows: that of the same name if they have one, else that of the same number."""
    config = source.config
    if config is None or config.name is None:
        return engine.groups.get(source.number)
    return next((group for group in list(engine.groups.values()) if group.config.name == config.name), None)


def _must_fit(group: Group | None, source: Source, path: Path) -> None:
    """Raise unless the store's group, if there is one, can take the rows."""
    if group is None:
        if source.config is None:
            raise UnknownGroup(
                f"group {source.number} does not exist, and {path}, a dump, does not say how it learns: open a "
                f"PyEmbedding of dim {source.dim} on it first"
            )
        return
    if group.config.dim != source.dim:
        raise DimMismatch(
            f"group {source.number} stores rows of dim {group.config.dim}, {path} has rows of dim {source.dim}: import "
            "into another store, or leave the group out"
        )
    if source.config is None:
        return
    if not same_variable(group.config, source.config):
        raise GroupConflict(
            f"{called(group.config)} is the variable {group.config.variable}, {path} has rows of the variable "
            f"{source.config.variable}, whose keys stand for other ids: open it as it was, in another store or under "
            "another name, or leave the group out"
        )
    if source.slots is None:
        return
    stored, sent = group.optimizer, rules_of(source.config)[0]
    if (stored.name, stored.slots(source.dim)) != (sent.name, sent.slots(source.dim)):
        raise GroupConflict(
            f"group {source.number} holds the slots of optimizer {stored.name!r}, {path} those of {sent.name!r}: "
            "export without slots to import the weights alone, or leave the group out"
        )


def _group_for(engine: "Engine", source: Source, report: ImportReport) -> Group:
    group = _group_of(engine, source)
    if group is None and source.config is not None:
        number = _number_of(engine, source)
        config = source.config if number is None else replace(source.config, group=number)
        group = engine.open_group(config, by_name=number is None, used=False)
        report.groups_created.append(group.number)
    return group or engine.group(source.number)


# --- checks before the first row is written ---


def _check(
    engine: "Engine", exports: list[tuple[Path, list[Source]]], options: ImportOptions, tell: Callable[[], None]
) -> int:
    """Raise for what cannot be imported. Returns how many rows, and keys to be removed, have other slots."""
    elsewhere = 0
    for path, sources in exports:
        for source in sources:
            if source.goes_on and options.mode == "keep":
                raise InvalidConfig(f"{path} says what has changed since another export: import it with mode='replace'")
            _must_fit(_group_of(engine, source), source, path)
    for path, sources in exports:
        for source in sources:
            padding = _padding_key(engine, source)
            for file, rows in source.tables():
                _check_rows(path / file if path.is_dir() else path, rows, padding)
                elsewhere += int((~_wanted(rows.keys, options)).sum())
                tell()
            _check_distinct(source, path)
            for keys in source.removed():
                elsewhere += int((~_wanted(keys, options)).sum())
                tell()
    return elsewhere


def _padding_key(engine: "Engine", source: Source) -> int | None:
    group = _group_of(engine, source)
    config = source.config if group is None else group.config
    return None if config is None else config.padding_key


def _check_rows(file: Path, rows: PutRows, padding: int | None) -> None:
    for what, values in (("weights", rows.weights), ("slots", rows.slots)):
        if values is not None:
            _check_finite(file, rows.keys, values, what)
    for what, numbers in (("update_num", rows.update_num), ("update_time", rows.update_time_ms)):
        if numbers is not None and not 0 <= numbers.min() <= numbers.max() <= 1 << 62:
            raise StorageCorrupt(
                f"{file}: {what} holds {numbers.min()} to {numbers.max()}, which cannot be. Nothing was imported; "
                "export it again"
            )
    if padding is not None and (rows.keys.view(np.uint64) == np.uint64(padding % 2**64)).any():
        raise InvalidConfig(
            f"{file} has a row for key {padding}, which is the padding key of its group and has none. Nothing was "
            "imported"
        )


def _check_finite(file: Path, keys: I64, values: F32, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise RowNotFinite(
            f"{file}: the {what} of {bad.size} rows hold NaN or Inf, the first of key {keys[bad[0]]}. Nothing was "
            "imported; leave these rows out"
        )


def _check_distinct(source: Source, path: Path) -> None:
    # Keys of all files together need not fit into memory: one part of them is compared at a time.
    parts = -(-source.rows // DISTINCT_KEYS_MAX)
    for part in range(parts):
        keys = np.sort(np.concatenate([keys[_part_of(keys, parts) == part] for keys in source.key_arrays()]))
        twice = keys[1:][keys[1:] == keys[:-1]]
        if twice.size:
            raise StorageCorrupt(
                f"{path}: group {source.number} has {twice.size} rows for keys that have one already, the first for "
                f"key {twice[0]}. Nothing was imported; export it again"
            )


def _part_of(keys: I64, parts: int) -> I64:
    mixed = keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # keys that are multiples of `parts` spread too
    part: I64 = ((mixed >> np.uint64(32)) % np.uint64(parts)).astype(np.int64)
    return part


def _batches(group: Group, rows: PutRows) -> Iterator[PutRows]:
    """Parts that fit into a journal entry of a moderate size, and into the memory budget."""
    step = max(1, min(BATCH_BYTES_MAX // group.record_bytes, group.table.capacity // 4))
    for start in range(0, rows.keys.size, step):
        yield _picked(rows, slice(start, start + step))
