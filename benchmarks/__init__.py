"""Rockbed, embedded and served, beside np.take, torch and damo-embedding, in one run: `python -m benchmarks`."""
