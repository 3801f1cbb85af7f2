"""`Saver`: variables written to files and read back: training checkpoints, saved models, what has changed since."""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rockbed.client.kv_variable import KvVariable, all_of
from rockbed.client.multihash import MultiHashVariable
from rockbed.client.storage import PyStorage
from rockbed.client.variables import is_open, open_variables
from rockbed.config import FLOAT32_MAX, number_problems, whole_problems
from rockbed.errors import InvalidConfig, RockbedError, StorageClosed, WrongDtype
from rockbed.reports import ExportReport, ImportReport

_log = logging.getLogger("rockbed")

FLOAT32_LEAST = 1.401298464324817e-45
"""The smallest float32 above 0: what is nearer to 0 is 0."""
CUTOFF = 1e-20
SHARDS_MAX = 100_000

_Path = str | PathLike[str]


class Saver:
    """Saves and restores variables on the same storages. What it writes are exports of their groups (docs/export.md).

    >>> Saver([users, items]).save("./checkpoint-1")  # doctest: +SKIP
    """

    def __init__(self, var_list: Sequence[KvVariable | MultiHashVariable] | None = None) -> None:
        """var_list: of one storage, or of one list of storages; None = all that are open in this process. Of a
        multi-hash variable it is all tables.

        Raises InvalidConfig, WrongDtype, StorageClosed.
        """
        if isinstance(var_list, KvVariable | MultiHashVariable):
            raise WrongDtype(f"var_list is one variable, {var_list!r}, not a list: give [it]")
        kept: list[KvVariable] = []
        for given in open_variables() if var_list is None else var_list:
            kept += given.tables if isinstance(given, MultiHashVariable) else [given]
        if not kept:
            raise InvalidConfig("there is no variable to be saved: make them before their Saver, or give var_list")
        for each in kept:
            if not isinstance(each, KvVariable):
                raise WrongDtype(f"var_list holds a {type(each).__name__}, not a KvVariable or a MultiHashVariable")
            if each.storages != kept[0].storages:
                raise InvalidConfig(
                    f"variables {kept[0].name!r} and {each.name!r} are on different storages: make a Saver for each"
                )
            if not is_open(each):
                raise StorageClosed(f"variable {each.name!r} was dropped, or its storage closed: open it again")
        self.variables = tuple(kept)
        self.storages: tuple[PyStorage, ...] = self.variables[0].storages

    def save(self, path: _Path, *, since: _Path | None = None, format: str = "npz") -> list[ExportReport]:
        """Write a training checkpoint: weights, slots, counts and times of all rows.

        path: a new directory; on a server a name, and the server chooses where. Of several storages each writes its
        own, `path-00000-of-00002` and so on. since: an earlier one beside it, of the same variables: only rows that
        have changed since, and the keys of those that are gone. format: "npz", "parquet", "safetensors".
        Rows are whole, each as of some moment of the call. Returns a report for each storage. Raises what
        PyStorage.export raises; then what the call has written on other storages is removed.
        """
        return self._export(path, since, format, {"slots": True})

    def export_saved_model(
        self,
        path: _Path,
        *,
        since: _Path | None = None,
        cutoff: float = CUTOFF,
        min_count: int | None = None,
        blacklist: bool = True,
        format: str = "npz",
    ) -> list[ExportReport]:
        """Write a saved model, for serving: weights, without slots.

        cutoff: rows all of whose weights are nearer to 0 than this are left out. min_count: so are rows with fewer
        updates. blacklist: and rows of nothing but zeros, as group lasso leaves them (any cutoff above 0 leaves them
        out as well): where they are missing, lookups give zeros again.
        path, since, format, what is returned and raised: as of `save`. With `since`, rows that are left out now and
        were not then count as gone.
        """
        problems = number_problems("cutoff", cutoff, least=0, most=FLOAT32_MAX)
        if not isinstance(blacklist, bool):
            problems.append(f"blacklist is {blacklist!r}, not True or False")
        if problems:
            raise InvalidConfig("; ".join(problems))
        least = max(float(cutoff), FLOAT32_LEAST if blacklist else 0.0)
        return self._export(path, since, format, {"min_abs": least or None, "min_count": min_count})

    def restore(
        self, path: _Path, *, mode: str = "replace", shards: int | None = None, chain: bool = True
    ) -> list[ImportReport]:
        """Read what `save` or `export_saved_model` wrote; of the latter rows begin with the slots of new ones.

        mode: "replace" what the variables hold by what was saved, or "merge": rows that were not saved stay.
        shards: of how many storages it was saved, None = as many as there are now. Each storage reads its own shard;
        where some of its rows belong to another storage now (another number of them, or other parts), each reads all
        shards and takes the rows that are its own, so on servers all must have all of them then.
        chain: what was saved `since` another one needs that one; False takes the rows for there already (mode="merge").
        Everything is read and checked before the first row is changed. A call that was interrupted can be repeated.
        Returns the reports of all reads. Raises what PyStorage.import_ raises.
        """
        problems = [] if mode in ("replace", "merge") else [f"mode is {mode!r}, not one of 'replace', 'merge'"]
        if shards is not None:
            problems += whole_problems("shards", shards, 1, SHARDS_MAX)
        if mode == "replace" and not chain:
            problems.append("chain=False adds to what is there: give mode='merge'")
        if problems:
            raise InvalidConfig("; ".join(problems))
        count = len(self.storages) if shards is None else int(shards)
        own = [(i, i) for i in range(len(self.storages))]
        every = [(i, k) for i in range(len(self.storages)) for k in range(count)]
        reads = own if count == len(self.storages) else every
        found = self._imported(path, reads, count, chain=chain, dry_run=True)
        if any(report.rows_elsewhere for report in found) and reads is own:
            reads = every
            self._imported(path, [read for read in every if read not in own], count, chain=chain, dry_run=True)
        if mode == "replace":
            for storage in self.storages:
                for each in self.variables:
                    storage.shrink(group=each.config.group, max_age=0)  # every row: none is younger than that
        return self._imported(path, reads, count, chain=chain)

    def _imported(
        self, path: _Path, reads: Sequence[tuple[int, int]], count: int, *, chain: bool, dry_run: bool = False
    ) -> list[ImportReport]:
        """The reports of some reads. reads: (storage, shard of count)."""
        return [
            self.storages[i].import_(_shard(path, k, count), chain=chain, dry_run=dry_run, **wanted)
            for i, k in reads
            for wanted in self._wanted(i)
        ]

    def _wanted(self, storage: int) -> list[dict[str, Any]]:
        """What a storage reads of a shard: the groups that it has, and their slots there."""
        of_slots: dict[tuple[int, int], list[int]] = {}
        for each in self.variables:
            of_slots.setdefault(each.placement.slots_on(storage), []).append(each.config.group)
        return [{"groups": groups, "slots": slots} for slots, groups in of_slots.items()]

    def _export(self, path: _Path, since: _Path | None, format: str, options: dict[str, Any]) -> list[ExportReport]:
        groups = [each.config.group for each in self.variables]
        count = len(self.storages)

        def written(i: int) -> None:
            before = None if since is None else _shard(since, i, count)
            storage, place = self.storages[i], _shard(path, i, count)
            reports[i] = storage.export(place, groups=groups, format=format, digests=True, since=before, **options)

        reports: dict[int, ExportReport] = {}
        try:
            all_of(storage.ahead.lookup(written, i) for i, storage in enumerate(self.storages))
        except BaseException:
            # with those of another attempt they would look like shards of one moment
            self._remove(path, reports)
            raise
        return [reports[i] for i in range(count)]

    def _remove(self, path: _Path, reports: Mapping[int, ExportReport]) -> None:
        for i, report in reports.items():
            place = _shard(path, i, len(self.storages))
            try:
                self.storages[i].remove_export(place, report)
            except RockbedError as error:
                _log.warning("rockbed: %s is left of a save that failed, remove it: %s", place, error)


def _shard(path: _Path, number: int, count: int) -> str:
    """A storage's own directory, or name; in the way in which TensorFlow names shards."""
    return str(Path(path)) if count == 1 else f"{Path(path)}-{number:05d}-of-{count:05d}"
