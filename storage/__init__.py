"""Rows on disk and in memory: records, RocksDB files, journal, hot tier, write-back, catalog, checkpoint."""
