"""The engine behind an open store, and what operators do with one."""
