"""The device tier: hot rows in the memory of an NVIDIA GPU; docs/gpu.md says how. CuPy is imported when one is used."""
