"""Rockbed beside np.take, torch and damo-embedding, in one run: `python -m benchmarks` (docs/benchmarks.md)."""
