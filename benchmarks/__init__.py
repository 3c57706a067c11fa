"""Benchmarks: ``pytest benchmarks/`` prints tables, ``python -m benchmarks.report`` writes ``docs/benchmarks.md``."""
