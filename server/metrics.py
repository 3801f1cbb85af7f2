"""The store in figures, for Prometheus: those of `stats()`, read when it asks. docs/metrics.md has them."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rockbed._version import __version__
from rockbed.errors import RockbedError
from rockbed.server import statistics
from rockbed.server.engine import Engine
from rockbed.server.serving import Serving


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric. name: without the prefix, a counter's ends in _total. key: its name in `stats()`."""

    name: str
    key: str
    help: str

    def family(self, *labels: str) -> CounterMetricFamily | GaugeMetricFamily:
        """Without values."""
        cls = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        return cls(f"rockbed_{self.name}", self.help, labels=labels)


_STORE = (
    _Family("memory_budget_bytes", "memory_budget", "Bytes of rows that memory may hold."),
    _Family("disk_bytes", "disk_bytes", "Bytes of RocksDB's table files."),
    _Family("live_bytes", "live_bytes", "Of these, bytes of records that are the newest of their key: an estimate."),
    _Family("disk_records", "records", "Records in RocksDB: an estimate."),
    _Family("pending_compaction_bytes", "pending_compaction_bytes", "Bytes that RocksDB is going to rewrite."),
    _Family("uncompacted_files", "uncompacted_files", "Files one upon the other, which compaction is going to merge."),
    _Family("journal_bytes", "journal_bytes", "Bytes of the journal in use."),
    _Family("last_lsn", "last_lsn", "Number of the newest journal entry."),
    _Family("flushed_lsn", "flushed_lsn", "Number of the journal entry up to which everything is written back."),
    _Family(
        "write_back_lag_seconds", "write_back_lag_s", "Most seconds that a journal entry waits to be written back."
    ),
    _Family("written_back_rows_total", "rows_written_back", "Rows written to RocksDB."),
    _Family("journal_stalls_total", "journal_stalls", "Pushes that waited because the journal was full."),
    _Family(
        "journal_stall_seconds_total", "journal_stall_s", "Seconds that pushes waited because the journal was full."
    ),
    _Family("memory_stalls_total", "memory_stalls", "Calls that waited for room in memory."),
    _Family("memory_stall_seconds_total", "memory_stall_s", "Seconds that calls waited for room in memory."),
    _Family("kept_batches", "kept_batches", "Batches kept between their lookup and their push."),
    _Family("kept_bytes", "kept_bytes", "Bytes of memory of these."),
)
_GROUP = (
    _Family("rows", "rows", "Rows created and not removed; expired ones count until they are swept."),
    _Family("memory_rows", "memory_rows", "Rows in memory."),
    _Family("memory_bytes", "memory_bytes", "Bytes of rows and their index in memory."),
    _Family("dirty_rows", "dirty_rows", "Rows newer in memory than on disk."),
    _Family("device_rows", "device_rows", "Rows on the device (a GPU)."),
    _Family("device_dirty_rows", "device_dirty_rows", "Rows newer on the device than in memory."),
    _Family("admission_bytes", "admission_bytes", "Bytes of the counts of an admission rule."),
    _Family("lookup_keys_total", "lookup_keys", "Keys looked up."),
    _Family("memory_hits_total", "memory_hits", "Keys looked up whose row was in memory."),
    _Family("disk_hits_total", "disk_hits", "Rows read from disk, by lookups and pushes."),
    _Family("misses_total", "misses", "Keys looked up without training that had no row."),
    _Family("inserts_total", "inserts", "Rows created."),
    _Family("not_admitted_total", "not_admitted", "Keys looked up in training that the admission rule gave no row."),
    _Family("expired_total", "expired", "Rows found expired, or swept."),
    _Family("removed_total", "removed", "Rows removed by shrink, or by an import of what has changed."),
    _Family("evictions_total", "evictions", "Rows that left memory for the disk."),
    _Family("push_keys_total", "push_keys", "Keys pushed."),
    _Family("updates_total", "updates", "Rows updated, once a push."),
    _Family("rejected_pushes_total", "rejected_not_finite", "Pushes refused because a gradient held NaN or Inf."),
    _Family(
        "gradient_square_sum_total",
        "gradient_square_sum",
        "Sum of the squared L2 norms of the gradients applied, those of a key in a push summed, before clipping.",
    ),
    _Family(
        "gradient_norm_max",
        "gradient_norm_max",
        "Largest L2 norm of a gradient applied in the last one to two minutes, before clipping.",
    ),
)
_SKIPPED = _Family("skipped_gradients_total", "skipped_", "Gradients dropped.")
_REASONS = ("absent", "unadmitted", "not_finite")
_OPEN = "1 while the store works; at 0 it is closed, or has failed and has to be opened again."


class StoreMetrics(Collector):
    """Of what is served, until `detach`. Thread-safe."""

    def __init__(self, serving: Serving) -> None:
        self._serving: Serving | None = serving
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        """Of a store that is closed, or has failed, only that it is."""
        with self._lock:
            return [] if self._serving is None else list(_collected(self._serving.engine))

    def detach(self) -> None:
        """Let go of the engine, after a scrape under way."""
        with self._lock:
            self._serving = None


def _collected(engine: Engine) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "rockbed_build_info", "Always 1; the label says which Rockbed this is.", labels=["version"]
    )
    build.add_metric([__version__], 1)
    yield build
    try:
        stats = statistics.collect(engine)
    except RockbedError:
        yield _gauge("store_open", _OPEN, 0)
        return
    yield _gauge("store_open", _OPEN, 1)
    yield _gauge(
        "background_error", "1 while background work (write-back, say) fails.", bool(stats["background_error"])
    )
    yield _gauge("journal_limit_bytes", "Bytes of the journal at which pushes wait.", engine.config.journal_bytes_max)
    unflushed = stats["last_lsn"] - stats["flushed_lsn"]
    yield _gauge("unflushed_entries", "Journal entries that a crash now would replay.", unflushed)
    for metric in _STORE:
        family = metric.family()
        family.add_metric([], stats[metric.key])
        yield family
    groups = {str(number): group for number, group in stats["groups"].items()}
    for metric in _GROUP:
        family = metric.family("group")
        for number, group in groups.items():
            family.add_metric([number], group[metric.key])
        yield family
    skipped = _SKIPPED.family("group", "reason")
    for number, group in groups.items():
        for reason in _REASONS:
            skipped.add_metric([number, reason], group[_SKIPPED.key + reason])
    yield skipped


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"rockbed_{name}", text, value=value)
