"""How RocksDB lays `rows/` out."""

import resource

import rocksdict

BLOCK_BYTES = 8 << 10
NEVER = 2**31 - 1
FEW_FILES = 4  # compaction leaves fewer one upon the other

_MEMTABLE_BYTES = 8 << 20
_FILE_BYTES = 4 << 20  # of the level that runs are merged into, and of the next
_FILE_BYTES_MULTIPLIER = 8  # in each level below these: so there are 2,500 files in a store of 250 GB
_OPEN_FILES_MAX = 4096


def _open_files() -> int:
    """How many RocksDB may keep open: half of what the process may have. To open one takes as long as many reads."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES_MAX if limit == resource.RLIM_INFINITY else max(64, min(limit // 2, _OPEN_FILES_MAX))


def row_options(cache_bytes: int, *, create: bool, index_in_cache: bool = False) -> rocksdict.Options:
    """How `rows/` is laid out. benchmarks/rows.py measures other choices."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_write_buffer_size(_MEMTABLE_BYTES)
    options.set_max_background_jobs(2)
    # compactions give way to whoever waits for an answer: with as many threads as cores they would hold a call up
    background = rocksdict.Env()
    background.lower_thread_pool_cpu_priority()
    options.set_env(background)
    options.set_max_open_files(_open_files())
    options.set_keep_log_file_num(4)
    options.set_stats_dump_period_sec(0)
    # A run is merged with all of every file that it overlaps: where each held many groups, that was 10 to 50 times what
    # the run held (`python -m benchmarks.compaction`).
    options.set_target_file_size_base(_FILE_BYTES)
    options.set_target_file_size_multiplier(_FILE_BYTES_MULTIPLIER)
    options.set_level_zero_file_num_compaction_trigger(NEVER)  # see `RowFiles.pace_compaction`
    options.set_level_compaction_dynamic_level_bytes(True)
    # RocksDB shall slow no writer down: a deletion would wait with the GIL held, and a flush, which has little to
    # write, for a compaction of seconds. Write-back asks `is_behind` instead.
    options.set_level_zero_slowdown_writes_trigger(NEVER)
    options.set_level_zero_stop_writes_trigger(NEVER)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    # Floats hardly compress: only the last level, where most rows are and which is written least, is worth the CPU.
    # zstd saves 10% more than LZ4 there, and a cold read takes 1.8 times as long (benchmarks/rows.py).
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.lz4())
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    table.set_block_size(BLOCK_BYTES)
    table.set_bloom_filter(10, False)
    # indexes and filters stay in memory, about 2 bytes a row: through the cache a cold read takes 1.4 times as long
    table.set_cache_index_and_filter_blocks(index_in_cache)
    table.set_format_version(5)
    options.set_block_based_table_factory(table)
    return options
